"""The diffusion head denoises as published, every solver finds the data, and the chain is float32 in any network."""

import json
from itertools import pairwise
from math import sqrt

import pytest
import torch
from golden.cases import load_case
from small_mar import counts, published_tensors, tiny_mar, tokenizer_of
from torch.testing import assert_close

from var_toolkit.core.bind import bind, run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Plan
from var_toolkit.heads.diffusion import (
    PREDICTIONS,
    SOLVERS,
    Chain,
    Diffusion,
    Prediction,
    ddim,
    ddpm,
    dpm,
    guided,
    posterior,
)
from var_toolkit.models.layers.diffusion_head import DiffusionMLP, TokenDenoiser

CASE = load_case("mar-head")
RUNS = CASE.facts["runs"]


@pytest.fixture(scope="module")
def net():
    config, prefix = CASE.facts["config"], "diffloss.net."
    channels = config["vae_embed_dim"] * config["patch_size"] ** 2
    network = DiffusionMLP(channels, config["diffloss_w"], config["diffloss_d"], config["decoder_embed_dim"])
    tensors = published_tensors(CASE)
    network.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return network


def denoiser_of(net, rows):
    return TokenDenoiser(net, rows.unsqueeze(0), "epsilon")


def test_single_evaluations_are_the_published_ones(net):
    tensors, tolerance = CASE.tensors, CASE.facts["tolerance"]
    rows, whole = len(tensors["x"]), Chain.of("cosine")
    both = denoiser_of(net, tensors["z"])
    with torch.no_grad():
        for row, step in enumerate(tensors["t"].tolist()):
            x = tensors["x"][row].view(1, 1, -1)
            found = denoiser_of(net, tensors["z"][row : row + 1])(x, step)
            value, variance = tensors["head"][row].chunk(2)
            assert_close(found.value.flatten(), value, atol=tolerance["head"], rtol=0)
            assert_close(2 * found.fraction.flatten() - 1, variance, atol=tolerance["head"], rtol=0)
            mean, log_variance = posterior(whole, x, found, step, "epsilon")
            expected = tensors["step_mean"][row]
            assert_close(mean.flatten(), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
            assert_close(log_variance.flatten(), tensors["step_log_variance"][row], atol=1e-4, rtol=0)
            pair = both(x.expand(1, len(tensors["z"]), -1), step)
            pair = Prediction(*(part.view(2, rows, -1) for part in pair))
            value, variance = tensors["head_cfg"][row].chunk(2)
            found = guided(pair, 1.5)
            assert_close(found.value[0, row], value, atol=tolerance["head_cfg"], rtol=0)
            assert_close(2 * found.fraction[0, row] - 1, variance, atol=tolerance["head_cfg"], rtol=0)


@pytest.mark.parametrize("facts", RUNS, ids=lambda facts: f"run{facts['id']}-{facts['num_sampling_steps']}")
def test_samples_are_the_published_ones(net, facts):
    tensors, number = CASE.tensors, facts["id"]
    head = Diffusion("ddpm", counts(facts["num_sampling_steps"]), facts["temperature"])
    chain, start = head.chain("cosine"), tensors[f"init_{number}"].unsqueeze(0)
    assert list(chain.indices) == facts["timesteps"]
    assert chain.betas == pytest.approx(facts["betas"], rel=1e-6)
    rows = tensors["z"].unflatten(0, (2, -1)) if facts["cfg"] != 1 else tensors["z"][: start.shape[1]].unsqueeze(0)
    denoiser = TokenDenoiser(net, rows, "epsilon")

    def predicted(x, k):
        found = denoiser(x.expand(len(rows), -1, -1), chain.indices[k])
        return guided(found, facts["cfg"] - 1) if len(rows) == 2 else found

    added = tensors[f"noise_{number}"].transpose(0, 1).flatten(1).unsqueeze(0) * facts["temperature"]
    with torch.no_grad():
        found = ddpm(chain, predicted, start, added, denoiser)
    assert_close(found[0], tensors[f"sample_{number}"], atol=1e-4 * facts["max_abs"], rtol=0)


class Oracle:
    """Knows the data."""

    def __init__(self, data, prediction):
        self.data, self.prediction = data, prediction

    def predicted(self, chain):
        def at(x, k):
            a, s = chain.roots(k)
            noise = (x - a * self.data) / s
            value = a * noise - s * self.data if self.prediction == "velocity" else noise
            return Prediction(value, torch.full_like(x, 0.3))

        return at

    def given(self, x, start, chain, k):
        return x


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(
    "head",
    [Diffusion("ddpm", 2), Diffusion("ddpm", 100), Diffusion("ddpm", (6, 2, 0)), Diffusion("ddim", 7),
     Diffusion("dpm++", 1), Diffusion("dpm++", 2), Diffusion("dpm++", 10)],
    ids=lambda head: f"{head.solver}-{head.denoising_steps}",
)  # fmt: skip
def test_an_oracle_leads_every_solver_to_the_data(head, schedule, prediction):
    torch.manual_seed(0)
    data, start = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    chain, oracle = head.chain(schedule), Oracle(data, prediction)
    if head.solver == "ddpm":
        added = torch.randn(1, 3, 4 * len(chain.indices), dtype=torch.float64)
        found = ddpm(chain, oracle.predicted(chain), start, added, oracle)
    else:
        found = {"ddim": ddim, "dpm++": dpm}[head.solver](chain, oracle.predicted(chain), start, oracle)
    assert_close(found, data, atol=1e-9, rtol=0)


@pytest.mark.parametrize("steps", [2, 6, 25])
def test_dpm_agrees_with_diffusers(steps):
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, algorithm_type="dpmsolver++", timestep_spacing="linspace"
    )
    theirs.set_timesteps(steps)
    chain = Diffusion("dpm++", steps).chain("linear")
    assert list(chain.indices)[::-1] == theirs.timesteps.tolist()
    torch.manual_seed(0)
    start, weight = torch.randn(1, 5, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)

    def network(x, index):
        return torch.tanh(x @ weight + index / 1000)

    x = start
    for index in theirs.timesteps.tolist():
        x = theirs.step(network(x, index), index, x).prev_sample
    found = dpm(chain, lambda x, k: Prediction(network(x, chain.indices[k]), None), start, Oracle(None, "epsilon"))
    assert_close(found, x, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_the_first_step_ruins_epsilon_and_not_velocity():
    """MMAR's argument (arXiv 2410.10798): what the first step makes of rounding errors."""
    torch.manual_seed(0)
    chain, (data, start) = Diffusion("ddpm", 100).chain("cosine"), torch.randn(2, 1, 1000, 16)
    k, worst = len(chain.indices) - 1, {}
    a, s = chain.roots(k)
    a_then, s_then = chain.roots(k - 1)
    factors = {"epsilon": abs(s_then - a_then / a * s), "velocity": abs(s_then * a - a_then * s)}
    assert factors["epsilon"] == pytest.approx(315, rel=0.01)
    assert factors["velocity"] < 0.02
    for prediction in PREDICTIONS:
        exact = Oracle(data, prediction).predicted(chain)(start, k).value
        rounded = exact.bfloat16().float()
        states = [
            a_then * chain.clean(start, value, k, prediction) + s_then * chain.noise(start, value, k, prediction)
            for value in (exact, rounded)
        ]
        worst[prediction] = float((states[1] - states[0]).abs().max())
    assert worst["epsilon"] > 1
    assert worst["velocity"] < 1e-3


def test_the_chain_and_the_head_are_float32_in_a_network_of_bfloat16():
    network = tiny_mar()
    exact = {name: tensor.clone() for name, tensor in network.head.state_dict().items()}
    network.bfloat16()
    assert network.z_proj.weight.dtype == torch.bfloat16
    assert all(torch.equal(tensor, exact[name]) for name, tensor in network.head.state_dict().items())
    run = run_of(tokenizer_of(network), network, guidance=1.0, head=Diffusion("ddpm", (3, 2, 0)), iterations=3)
    assert decode(run, torch.tensor([1, 2]), Noise([0, 1])).latent.dtype == torch.float32


@pytest.mark.parametrize("solver", SOLVERS[1:])
def test_what_is_not_finite_is_told_with_its_step_and_place(solver):
    network = tiny_mar()
    network.head.final_layer.linear.bias.data.fill_(float("nan"))
    run = run_of(tokenizer_of(network), network, head=Diffusion(solver, 5), iterations=2)
    with pytest.raises(FloatingPointError, match=r"epsilon at denoising step 4, tokens 0 to 2 of map 0,.* not finite"):
        decode(run, torch.tensor([1]), Noise([0]))


def test_temperature_is_of_the_noise_that_is_added():
    network, chain = tiny_mar(), (3, 2, 0)
    images = [
        decode(
            run_of(tokenizer_of(network), network, head=Diffusion("ddpm", chain, temperature), iterations=2),
            torch.tensor([1]), Noise([0]),
        ).latent
        for temperature in (1.0, 0.5)
    ]  # fmt: skip
    assert not torch.equal(*images)


@pytest.mark.parametrize("head", [Diffusion(), Diffusion("ddpm", (6, 2, 0), 0.9), Diffusion("dpm++", 10)])
def test_a_plan_with_the_head_is_json_both_ways(head):
    network = tiny_mar()
    plan = run_of(tokenizer_of(network), network, head=head.published_as("ddpm"), iterations=4).plan
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read == plan
    bind(read, {"backbone": network}, tokenizer_of(network))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "euler"}, "solver is 'euler'; it must be one of published, ddpm, ddim, dpm++"),
        ({"solver": "ddpm", "denoising_steps": 1}, "denoising_steps is 1; it must be a whole number from 2"),
        ({"denoising_steps": 0}, "denoising_steps is 0"),
        ({"solver": "ddim", "denoising_steps": (3, 2)}, "sections are of ddpm"),
        ({"temperature": 0}, "temperature is 0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words.replace("+", r"\+").replace("(", r"\(")):
        Diffusion(**settings)


def test_more_steps_than_a_section_has_are_refused():
    with pytest.raises(ValueError, match="a section of 334 steps has no 400 of them"):
        Diffusion("ddpm", (400, 2, 0)).chain("cosine")


def test_deterministic_solvers_start_where_dividing_is_harmless():
    cosine, linear = (Diffusion("dpm++", 10).chain(schedule) for schedule in ("cosine", "linear"))
    assert linear.indices[-1] == 999
    assert 990 < cosine.indices[-1] < 999
    assert 1 / sqrt(cosine.cumulative[-1]) <= 200
    assert all(low < high for low, high in pairwise(cosine.indices))
