"""Flows draw as published; solvers find the data, cost what they say, and each image has its own noise."""

import json
from math import exp
from types import SimpleNamespace

import pytest
import torch
from golden.cases import FOLDER, load_case
from small_flowar import golden_flowar, plan_of, tiny_flowar, tiny_kl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from var_toolkit.core.bind import bind, run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.flow import SOLVERS, Flow
from var_toolkit.models.layers import linear
from var_toolkit.pipeline import Pipeline
from var_toolkit.tokenizers.latent_pyramid import LatentPyramid

LABELS = torch.tensor([1, 4, 2])


@pytest.mark.parametrize("name", ["flowar-sample", "flowar-sample-cross"])
def test_tokens_and_latents_are_the_published_ones(name, monkeypatch):
    case, network, features = load_case(name), golden_flowar(name.endswith("cross")), []

    class StoredNoise(Noise):
        def normal(self, stream, position, tokens, width):
            assert stream is Stream.FLOW
            return torch.cat(case.maps("noise"), dim=1)[:2, position : position + tokens]

    def field(hidden, scale, made=network.field):
        features.append(hidden)
        return made(hidden, scale)

    monkeypatch.setattr(network, "field", field)
    pyramid = LatentPyramid(network.scales, 16)
    tokenizer = SimpleNamespace(scales=network.scales, pyramid_of=lambda schedule: pyramid)
    sampling = case.facts["sampling"]
    settings = {"steps": sampling["num_steps"], "guidance_interval": (0.0, sampling["guidance"])}
    plan = Pipeline(tokenizer, network).plan(cfg=sampling["cfg"], solver="published", **settings)
    flow = plan.steps[0].head
    decoded = decode(bind(plan, {"backbone": network}, tokenizer), case.tensors["label"], StoredNoise([0, 1]))
    assert flow.times() == pytest.approx(sampling["t_steps"])
    for k in range(3):
        assert 1 + plan.steps[k].guidance == sampling["guidance_per_scale"][k]
        # At the first scale, which is never guided, the null half is not looked at.
        assert len(features[k]) == (4 if k else 2)
        assert_close(features[k], case.maps("cond")[k][: len(features[k])], atol=1e-4, rtol=0)
        assert_close(decoded.tokens[k], case.maps("tokens")[k], atol=2e-4, rtol=0)
    assert_close(decoded.latent, case.tensors["latent"], atol=2e-4, rtol=0)
    assert (decoded.forward_passes, decoded.evaluations) == (3, 3 * 4)


@pytest.mark.parametrize(("steps", "evaluations"), [(25, 24), (50, 50)])
def test_the_published_grids_are_those_of_the_published_sampler(steps, evaluations):
    sampler = json.loads((FOLDER / "flowar-published-settings" / "case.json").read_text())["sampler"]
    grid, flow = sampler["grids"][str(steps)], Flow(steps=steps)
    assert flow.times() == pytest.approx(grid["t"], abs=1e-6)
    asked = list(flow.evaluated())
    assert (len(asked), asked) == (evaluations, flow.times()[:-1])
    assert [int(torch.tensor(time) * 1000) for time in asked] == grid["time_index"]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [2, 3, 25, 50])
def test_an_oracle_leads_every_solver_to_the_data(solver, steps):
    data, noise = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    flow = Flow(solver, steps)
    assert_close(flow.solve(lambda x, t: noise - data, noise), data, atol=1e-12, rtol=0)
    # Where the path goes from where it is, which nobody can say once it has arrived.
    assert_close(flow.solve(lambda x, t: (x - data) / t, noise), data, atol=1e-12, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_one_step_is_enough_on_a_straight_path(solver):
    data, noise = torch.randn(2, 3, dtype=torch.float64)
    assert_close(Flow(solver, 1).solve(lambda x, t: (x - data) / t, noise), data, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_twice_the_steps_halve_or_quarter_the_error_on_a_curved_path(solver, order):
    start, exact = torch.ones(1, dtype=torch.float64), exp(-2)  # of dx/dt = (1 + 2 t) x
    ends = [float(Flow(solver, steps).solve(lambda x, t: (1 + 2 * t) * x, start)) for steps in (40, 80)]
    errors = [abs(end - exact) for end in ends]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [2, 5, 24])
def test_the_network_is_asked_as_often_and_when_it_says(solver, steps):
    flow, asked = Flow(solver, steps), []

    def velocity(x, time):
        asked.append(time)
        return x

    flow.solve(velocity, torch.ones(1, dtype=torch.float64))
    assert asked == pytest.approx(list(flow.evaluated()), abs=1e-12)
    twice = {"midpoint": 2 * steps, "heun": 2 * steps - 1}
    assert len(asked) == twice.get(solver, steps - steps % 2 if solver == "published" else steps)


def decoded_with_rows(plan, network) -> tuple[torch.Tensor, list[list[int]]]:
    """An image's latent, and how many rows the head computes at each evaluation of each scale."""
    rows = [[] for _ in plan.schedule.lengths]

    def count(_, args):
        rows[plan.schedule.lengths.index(args[0].shape[1])].append(len(args[0]))

    hook = network.flownet.register_forward_pre_hook(count)
    latent = decode(plan, LABELS[:1], Noise([0])).latent
    hook.remove()
    return latent, rows


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("guidance", "interval"), [(2.0, (0.0, 0.6)), (2.0, (0.25, 1.0)), (0.0, (0.0, 1.0))])
def test_the_null_half_is_computed_only_where_it_has_a_say(solver, guidance, interval):
    network, flow = tiny_flowar(), Flow(solver, 4, interval)
    plan = plan_of(tiny_kl(), network, flow, guidance=guidance)
    _, rows = decoded_with_rows(plan, network)
    assert rows[0] == [1] * len(list(flow.evaluated()))  # the first scale is never guided
    guided = [2 if guidance and interval[0] <= t <= interval[1] else 1 for t in flow.evaluated()]
    assert rows[1] == rows[2] == guided
    for k, own in enumerate(rows):
        assert flow.rows(plan.plan.steps[k].guidance, 1) == sum(own)


def test_guidance_counts_and_its_interval_does():
    network, tokenizer = tiny_flowar(), tiny_kl()
    off, inside, always, nowhere = (
        decode(plan_of(tokenizer, network, Flow(steps=6, interval=interval), guidance=guidance), LABELS, Noise([0] * 3))
        for guidance, interval in ((0.0, (0, 1)), (2.0, (0, 0.5)), (2.0, (0, 1)), (2.0, (0.99, 0.99)))
    )
    assert_close(nowhere.latent, off.latent, atol=1e-5, rtol=0)
    assert_close(always.tokens[0], off.tokens[0], atol=1e-5, rtol=0)
    for one, other in ((off, inside), (inside, always), (off, always)):
        assert not torch.allclose(one.latent, other.latent, atol=1e-2)
    assert always.cache_bytes == 2 * off.cache_bytes
    assert nowhere.cache_bytes == off.cache_bytes  # the null half is not computed where no step asks for it


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "rk4"}, "solver is 'rk4'"),
        ({"steps": 1}, "steps is 1"),
        ({"solver": "heun", "steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"interval": 0.9}, "guidance_interval is 0.9"),
        ({"interval": (0.5, 0.2)}, r"guidance_interval is \(0.5, 0.2\)"),
        ({"interval": (0, 1.2)}, "guidance_interval"),
        ({"interval": (0.5,)}, "guidance_interval"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        Flow(**settings)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_an_image_does_not_depend_on_the_batch(cross):
    plan = plan_of(tiny_kl(), tiny_flowar(cross_attention=cross), guidance=1.5)
    together = decode(plan, LABELS, Noise([7, 8, 9]))
    for i, seed in enumerate((7, 8, 9)):
        alone = decode(plan, LABELS[i : i + 1], Noise([seed]))
        for one, many in zip(alone.tokens, together.tokens, strict=True):
            assert_close(one[0], many[i], atol=2e-5, rtol=1e-4)
    again = decode(plan, LABELS, Noise([7, 8, 9]))
    assert torch.equal(again.latent, together.latent)
    others = decode(plan, LABELS, Noise([6, 5, 4]))
    assert (others.latent - together.latent).abs().mean() > 0.1


def test_every_scale_and_every_token_has_noise_of_its_own():
    """A field that stands still returns the noise it began with."""
    network = tiny_flowar()
    torch.nn.init.zeros_(network.flownet.final_layer.linear.weight)
    torch.nn.init.zeros_(network.flownet.final_layer.linear.bias)
    decoded = decode(plan_of(tiny_kl(), network), LABELS[:1], Noise([3]))
    assert torch.equal(torch.cat(decoded.tokens, dim=1), Noise([3]).normal(Stream.FLOW, 0, 14, 4))


@pytest.mark.parametrize("patch_nums", [(1, 2, 4, 8), (1, 3, 5), (1, 2, 3, 4), (3,)], ids=str)
def test_any_schedule_is_drawn_and_decoded(patch_nums):
    tokenizer, events = tiny_kl(*patch_nums), []
    plan = plan_of(tokenizer, tiny_flowar(patch_nums=patch_nums), guidance=1.0)
    decoded = decode(plan, LABELS, Noise([0, 1, 2]), on_scale=events.append)
    assert [tokens.shape for tokens in decoded.tokens] == [(3, side * side, 4) for side in patch_nums]
    assert [event.latent.shape for event in events] == [(3, 4, side, side) for side in patch_nums]
    assert all(event.preview().shape == (3, 3, 2 * patch_nums[-1], 2 * patch_nums[-1]) for event in events)
    assert decoded.latent.dtype == torch.float32


@pytest.mark.parametrize("solver", ["published", "heun"])
def test_the_state_is_float64_and_the_network_float32(solver, monkeypatch):
    seen = []

    def spied(self, velocity, noise, made=Flow.solve):
        seen.append(noise.dtype)
        return made(self, lambda x, t: (seen.append(x.dtype), velocity(x, t))[1], noise)

    monkeypatch.setattr(Flow, "solve", spied)
    network = tiny_flowar()
    network.flownet.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    decode(plan_of(tiny_kl(), network, Flow(solver, 2), guidance=1.0), LABELS[:1], Noise([0]))
    evaluations = Flow(solver, 2).evaluations()
    assert seen == ([torch.float64] + [torch.float64, torch.float32] * evaluations) * 3


@pytest.mark.parametrize("scale", [0, 2])
def test_latents_that_are_not_finite_are_an_error_that_names_the_scale(scale):
    network = tiny_flowar()
    with torch.no_grad():
        network.diffusion_pos_embed_learned[:, network.scales.offsets[scale]] = float("inf")
    with pytest.raises(FloatingPointError, match=f"the latents of scale {scale} are not finite"):
        decode(plan_of(tiny_kl(), network), LABELS, Noise([0, 1, 2]))


def test_bfloat16_draws_about_the_same():
    network, tokenizer = tiny_flowar(), tiny_kl()
    full = decode(plan_of(tokenizer, network, guidance=0.5), LABELS, Noise([0, 1, 2]))
    half = decode(plan_of(tokenizer, network.bfloat16(), guidance=0.5), LABELS, Noise([0, 1, 2]))
    assert half.latent.dtype == torch.float32
    assert full.cache_bytes == 2 * half.cache_bytes
    assert (full.latent - half.latent).abs().mean() < 0.1 * full.latent.abs().mean()


def test_packed_weights_draw_the_same():
    network, tokenizer = tiny_flowar(cross_attention=True), tiny_kl()
    expected = decode(plan_of(tokenizer, network, guidance=1.0), LABELS, Noise([0, 1, 2]))
    linear.pack_linears(network)
    packed = decode(plan_of(tokenizer, network, guidance=1.0), LABELS, Noise([0, 1, 2]))
    assert_close(packed.latent, expected.latent, atol=5e-5, rtol=1e-4)


def test_continuous_tokens_need_a_flow_and_discrete_ones_take_none(small_var, small_tokenizer):
    with pytest.raises(ValueError, match="FlowAR has a Flow head; a step of the plan has Categorical"):
        run_of(tiny_kl(), tiny_flowar(), head=Categorical())
    with pytest.raises(ValueError, match="VAR has a Categorical head; a step of the plan has Flow"):
        run_of(small_tokenizer, small_var, head=Flow())


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_the_work_told_in_advance_is_the_work_done(cross, guidance, monkeypatch):
    sizes = {"embed_dim": 64, "encoder_depth": 3, "decoder_depth": 3, "patch_nums": (1, 2, 4, 8)}
    network = tiny_flowar(cross_attention=cross, **sizes)
    plan = plan_of(tiny_kl(1, 2, 4, 8), network, Flow("midpoint", 4, (0.0, 0.4)), guidance=guidance)
    told = plan.cost()
    # The counter sees neither oneDNN's products nor those of fused attention.
    monkeypatch.setattr(linear, "_has_onednn", lambda: False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decoded = decode(plan, LABELS[:1], Noise([0]))
    assert counter.get_total_flops() / 2 == pytest.approx(told.multiply_adds, rel=0.03)
    assert (told.forward_passes, told.evaluations) == (decoded.forward_passes, decoded.evaluations) == (4, 4 * 8)
    assert told.cache_bytes(torch.float32) == decoded.cache_bytes


def test_the_plan_says_what_it_does():
    plan = plan_of(tiny_kl(), tiny_flowar(), Flow("heun", 10, (0.1, 0.7)), guidance=1.4)
    assert str(plan) == "scales 0-2: FlowAR 3 x 32, guidance 0 to 1.4, 10 steps (heun), guided from 0.7 to 0.1"
