"""MAR agrees with the published network, training pass and sampler, whatever the sizes of a case."""

import json

import pytest
import torch
from golden.cases import FOLDER, load_case
from small_mar import StoredNoise, counts, golden_mar, tiny_mar, tokenizer_of
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition
from var_toolkit.core.bind import bind, run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import plan_of
from var_toolkit.core.preserved import preserved_outside
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.diffusion import Diffusion, losses, noisy
from var_toolkit.loading import skeleton
from var_toolkit.models.layers.masked_order import cosine_groups, drawn_share
from var_toolkit.registry import entry

SETTINGS = json.loads((FOLDER / "mar-published-settings" / "case.json").read_text())


def hidden_last(mask_BL):
    """An order whose first ranks are the visible tokens, by position, and how many those are."""
    return mask_BL.argsort(dim=1, stable=True), int((mask_BL[0] == 0).sum())


@pytest.mark.parametrize("run", [name[5:] for name in load_case("mar-forward").tensors if name.startswith("mask_")])
def test_features_are_the_published_ones(run):
    case = load_case("mar-forward")
    network, tensors = golden_mar(case), case.tensors
    patches = tokenizer_of(network).pyramid.maps(tensors["latents"])
    assert torch.equal(patches, tensors["patches"])
    order, known = hidden_last(tensors[f"mask_{run}"])
    labels = tensors["labels"] if run != "null" else torch.full_like(tensors["labels"], network.config.num_classes)
    condition = network.condition(Condition(labels=labels))
    tolerance = {"atol": case.facts["tolerance"]["z*"], "rtol": 0}
    with torch.no_grad():
        encoded = network.encoded(condition, patches, order, known)
        assert_close(encoded, tensors.get(f"encoded_{run}", encoded), **tolerance)
        features = network.features(condition, patches, order, known, slice(None))
        by_position = torch.zeros_like(features).scatter(1, order.unsqueeze(-1).expand_as(features), features)
        assert_close(by_position, tensors[f"z_{run}"], **tolerance)
        some = network.features(condition, patches, order, known, slice(known, None))
    assert_close(some, features[:, known:], atol=1e-5, rtol=1e-5)


def test_key_names_are_the_published_ones():
    case = load_case("mar-forward")
    found = {name: list(tensor.shape) for name, tensor in golden_mar(case).state_dict().items()}
    assert found == {name: shape for name, (shape, _) in case.facts["state_dict"]["mar"].items()}


@pytest.mark.parametrize("run", range(len(load_case("mar-sample").facts["runs"])))
def test_images_are_the_published_ones(run, monkeypatch):
    case = load_case("mar-sample")
    facts, tensors, tolerance = case.facts["runs"][run], case.tensors, case.facts["tolerance"]
    network, seen = golden_mar(case), []
    tokenizer = tokenizer_of(network)
    assert facts["cfg_schedule"] == "linear"
    head = Diffusion("ddpm", counts(facts["num_sampling_steps"]), facts["temperature"])
    assert list(head.chain("cosine").indices) == facts["timesteps"]
    plan = plan_of(network, guidance=facts["cfg"] - 1, head=head, iterations=facts["num_iter"])
    assert [step.places.count for step in plan.steps] == facts["tokens_per_iteration"]
    assert [1 + step.guidance for step in plan.steps] == pytest.approx(facts["cfg_per_iteration"], rel=1e-6)
    noise = StoredNoise(*(tensors[f"{name}_{run}"] for name in ("orders", "init", "noise")))

    def denoiser(hidden, at, made=network.denoiser):
        seen.append((at.positions, hidden))
        return made(hidden, at)

    monkeypatch.setattr(network, "denoiser", denoiser)
    decoded = decode(bind(plan, {"backbone": network}, tokenizer), tensors[f"labels_{run}"], noise)
    for number, (positions, hidden) in enumerate(seen):
        assert (tensors[f"drawn_{run}"].gather(1, positions) == number).all()
        for half, name in zip(hidden.chunk(2) if facts["cfg"] != 1 else [hidden], ("z", "z_null"), strict=False):
            expected = tensors[f"{name}_{run}"].gather(1, positions.unsqueeze(-1).expand_as(half))
            assert_close(half, expected, atol=tolerance["z_*"], rtol=0)
    assert_close(decoded.latent, tensors[f"latents_{run}"], atol=1e-4 * facts["max_abs"], rtol=0)
    assert decoded.forward_passes == facts["num_iter"]
    assert decoded.evaluations == facts["num_iter"] * len(facts["timesteps"])


def test_the_loss_and_its_gradients_are_the_published_ones():
    case = load_case("mar-loss")
    network, tensors, tolerance = golden_mar(case).train(), case.tensors, case.facts["tolerance"]
    data = tokenizer_of(network).pyramid.maps(tensors["latents"])
    images, tokens, _ = data.shape
    order, known = hidden_last(tensors["mask"])
    where = order[:, known:]

    def hidden(by_row):
        rows = by_row.view(-1, images, tokens, *by_row.shape[1:])
        index = where.view(1, *where.shape, *[1] * (rows.ndim - 3)).expand(len(rows), -1, -1, *rows.shape[3:])
        return rows.gather(2, index)

    labels = torch.where(tensors["drop"].bool(), network.config.num_classes, tensors["labels"])
    steps, noise = hidden(tensors["t"]), hidden(tensors["noise"])
    clean = hidden(data.flatten(0, 1)).expand_as(noise)
    states = noisy("cosine", clean, noise, steps)
    output = network(labels, data, order, known, states, steps)
    error, bound = losses("cosine", "epsilon", output, clean, states, noise, steps)
    assert_close(error, hidden(tensors["mse"]), atol=tolerance["mse"], rtol=0)
    assert_close(bound, hidden(tensors["vb"]), atol=1e-5, rtol=1e-3)
    loss = (error + bound).mean()
    assert_close(loss.view(1), tensors["loss"], atol=tolerance["loss"], rtol=0)
    loss.backward()
    gradients = dict(network.named_parameters())
    for name, expected in tensors.items():
        if name.startswith("grad_"):
            found = gradients[name.removeprefix("grad_")].grad
            assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("size", [name for name, facts in SETTINGS["sizes"].items() if "parameters" in facts])
def test_published_sizes_have_their_parameters_and_settings(size):
    facts = SETTINGS["sizes"][size]
    found = entry(facts["function"].replace("_", "-"))
    pipe = skeleton(found.name)
    assert sum(p.numel() for p in pipe.backbone.parameters()) == facts["parameters"]
    assert sum(p.numel() for p in pipe.backbone.head.parameters()) == facts["head_parameters"]
    assert len(pipe.backbone.state_dict()) == facts["keys"]
    assert found.published["fid"] == facts["readme"]["fid"]
    assert found.source.parameters == pytest.approx(facts["parameters"], abs=5e5)
    plan, sampling = pipe.plan(), facts["sampling"]
    tokens = SETTINGS["sizes"]["common"]["seq_len"]
    assert len(plan.steps) == sampling["num_iter"]
    assert plan.steps[-1].guidance == pytest.approx((sampling["cfg"] - 1) * (tokens - 1) / tokens)
    assert plan.steps[0].head == Diffusion("ddpm", counts(sampling["num_sampling_steps"]), sampling["temperature"])


def test_the_published_schedule_has_its_shape():
    assert [group.count for group in cosine_groups(0, 256, 256)] == [1] * 256
    assert [group.count for group in cosine_groups(0, 256, 4)] == [20, 55, 84, 97]
    many = [group.count for group in cosine_groups(0, 256, 64)]
    assert (many[:13], max(many)) == ([1] * 13, 7)
    assert drawn_share(cosine_groups(0, 256, 64)[-1], Schedule((16,))) == 255 / 256


@pytest.mark.parametrize("steps", [0, 10])
def test_a_number_of_iterations_beyond_the_tokens_is_refused(steps):
    with pytest.raises(ValueError, match=rf"steps is {steps}; it must be from 1 to 9"):
        plan_of(tiny_mar(), iterations=steps)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_an_image_does_not_depend_on_its_batch(steps):
    network = tiny_mar()
    run = run_of(tokenizer_of(network), network, guidance=1.5, head=Diffusion("ddpm", (3, 2, 0)), iterations=steps)
    together = decode(run, torch.tensor([1, 4, 2]), Noise([5, 6, 7])).latent
    alone = decode(run, torch.tensor([4]), Noise([6])).latent
    assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)
    assert not torch.equal(together[0], together[1])


def test_the_cost_counts_what_is_computed():
    from torch.utils.flop_counter import FlopCounterMode

    network = tiny_mar()
    run = run_of(tokenizer_of(network), network, guidance=1.0, head=Diffusion("ddpm", 5), iterations=4)
    from var_toolkit.models.layers import linear

    with FlopCounterMode(display=False) as counter, pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_has_onednn", lambda: False)
        decode(run, torch.tensor([1]), Noise([0]))
    assert run.cost().multiply_adds == pytest.approx(counter.get_total_flops() / 2, rel=0.1)


def test_preserved_tokens_count_as_drawn_first():
    network = tiny_mar()
    tokenizer = tokenizer_of(network)
    run = run_of(tokenizer, network, head=Diffusion("dpm++", 2), iterations=9)
    drawn = torch.zeros(3, 3, dtype=torch.bool)
    drawn[:2, :2] = True
    preserved = preserved_outside(drawn, [torch.ones(1, 9, 4)], tokenizer, network.scales)
    decoded = decode(run, torch.tensor([1, 2]), Noise([0, 1]), preserved=preserved)
    kept = (decoded.tokens[0] == 1).all(dim=-1)
    assert torch.equal(kept, ~drawn.flatten().expand(2, -1))
    assert decoded.forward_passes == 4
