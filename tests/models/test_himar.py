"""Hi-MAR agrees with the published network and sampler, whatever the sizes of a case."""

import json
from dataclasses import replace

import pytest
import torch
from golden.cases import FOLDER, load_case
from golden.recipe import fill_
from small_mar import StoredNoise, counts, tokenizer_of
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition
from var_toolkit.core.bind import bind, run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.plan import plan_of
from var_toolkit.core.preserved import preserved_before
from var_toolkit.formats.published import backbone_from_tensors
from var_toolkit.heads.diffusion import Diffusion
from var_toolkit.loading import skeleton
from var_toolkit.models.layers import map_head
from var_toolkit.registry import entry

SETTINGS = json.loads((FOLDER / "himar-published-settings" / "case.json").read_text())
FORWARD, SAMPLE = load_case("himar-forward"), load_case("himar-sample")


def golden(case):
    """The network of a case, read as its published file is."""
    shapes = case.facts["state_dict"]["himar"]
    tensors = fill_({name: torch.zeros(shape) for name, (shape, _) in shapes.items()}, case.facts["salt"])
    for name, tensor in tensors.items():
        if name.endswith("adaLN_shift"):
            tensor += torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(tensor.shape[-1] // 4)
        if name.endswith("adaLN_scale"):
            tensor *= 10
    return backbone_from_tensors("himar", tensors, case.facts["config"], "checkpoint-last.pth")


@pytest.fixture(scope="module")
def network():
    return golden(FORWARD)


def order_of(hidden_BL):
    return hidden_BL.argsort(dim=1, stable=True), int((hidden_BL[0] == 0).sum())


@pytest.mark.parametrize("kind", ["class", "null"])
def test_features_of_both_phases_are_the_published_ones(network, kind):
    tensors, tolerance = FORWARD.tensors, {"atol": FORWARD.facts["tolerance"]["z_*"], "rtol": 0}
    pivots, labels = network.scales.lengths[0], tensors["labels"]
    labels = labels if kind == "class" else torch.full_like(labels, network.config.num_classes)
    condition = network.condition(Condition(labels=labels))
    with torch.no_grad():
        order, known = order_of(tensors["mask_1"][:, :pivots])
        found = network.pivot_features(condition, tensors["pivots"], order, known, slice(0, pivots))
        found = torch.zeros_like(found).scatter(1, order.unsqueeze(-1).expand_as(found), found)
        assert_close(found, tensors[f"z_1_{kind}"], **tolerance)
        order, known = order_of(tensors["mask_2"][:, pivots:])
        found = network.token_features(condition, tensors["pivot_z"], tensors["tokens"], order, known)
        assert_close(found, tensors[f"z_2_{kind}"], **tolerance)


def test_the_map_head_is_the_published_one(network):
    tensors, head = FORWARD.tensors, network.cond_diffloss["net"]
    side = tensors["map_x"].shape[-1]
    table = map_head.positions(side, tensors["pos_embed"].shape[1], torch.device("cpu"))
    assert_close(table, tensors["pos_embed"], atol=1e-6, rtol=0)
    x, z, null = (part.flatten(2).mT for part in (tensors["map_x"], *(
        tensors[name].permute(0, 3, 1, 2) for name in ("map_z", "map_z_null"))))  # fmt: skip
    with torch.no_grad():
        found, unguided = (head(x, tensors["map_t"][:, None], head.c_embedder(features)) for features in (z, null))
    assert_close(found.mT.unflatten(2, (side, side)), tensors["map_eps"], atol=2e-4, rtol=0)
    both = unguided + 2.2 * (found - unguided)
    assert_close(both.mT.unflatten(2, (side, side)), tensors["map_eps_cfg"], atol=2e-4, rtol=0)


class PhaseNoise(StoredNoise):
    """Orders and noise of both phases."""

    def __init__(self, tensors, run, pivots, firsts):
        orders = tensors[f"orders_{run}"]
        super().__init__(orders, tensors[f"pivot_init_{run}"], tensors[f"pivot_noise_{run}"])
        self.pivots, self.firsts = pivots, firsts
        self.maps, self.map_steps = tensors[f"map_init_{run}"], tensors[f"map_noise_{run}"]

    def order(self, first, count):
        return self.orders[:, first : first + count].flip(1) - first

    def normal_at(self, stream, positions_BL, width, *, attempt=0):
        if int(positions_BL[0, 0]) < self.pivots:
            return super().normal_at(stream, positions_BL, width)
        number = self.firsts.index(attempt)
        if stream is Stream.DIFFUSION:
            return self.maps[number].flatten(2).mT
        return self.map_steps[number].flatten(3).permute(1, 3, 0, 2).flatten(2)


@pytest.mark.parametrize("run", range(len(SAMPLE.facts["runs"])))
def test_images_are_the_published_ones(run, monkeypatch):
    facts, tensors, network = SAMPLE.facts["runs"][run], SAMPLE.tensors, golden(SAMPLE)
    tokenizer, seen, pivots = tokenizer_of(network), [], network.scales.lengths[0]
    heads = [Diffusion("ddpm", counts(facts[name]), facts["temperature"]) for name in ("pivot_steps", "map_steps")]
    for head, name in zip(heads, ("pivot_timesteps", "map_timesteps"), strict=True):
        assert list(head.chain("cosine").indices) == facts[name]
    plan = plan_of(network, guidance=(facts["re_cfg"] - 1, facts["cfg"] - 1), iterations=facts["num_iter"])
    plan = replace(plan, steps=tuple(replace(step, head=heads[step.scale]) for step in plan.steps))
    phases = [[step for step in plan.steps if step.scale == k] for k in range(2)]
    for steps, kind, guidance in zip(phases, ("pivots", "tokens"), ("re_cfg", "cfg"), strict=True):
        assert [step.places.count for step in steps] == facts[f"{kind}_per_iteration"]
        assert [1 + step.guidance for step in steps] == pytest.approx(facts[f"{guidance}_per_iteration"], rel=1e-6)
    noise = PhaseNoise(tensors, run, pivots, [step.places.first for step in phases[1]])

    def denoiser(hidden, at, made=network.denoiser):
        seen.append((at.scale, at.positions, hidden))
        return made(hidden, at)

    monkeypatch.setattr(network, "denoiser", denoiser)
    images = len(tensors[f"labels_{run}"])
    decoded = decode(bind(plan, {"backbone": network}, tokenizer), tensors[f"labels_{run}"], noise)
    first = [(where, hidden[:images]) for scale, where, hidden in seen if scale == 0]
    for number, (where, hidden) in enumerate(first):
        assert (tensors[f"pivot_drawn_{run}"].gather(1, where) == number).all()
        expected = tensors[f"pivot_z_{run}"].gather(1, where.unsqueeze(-1).expand_as(hidden))
        assert_close(hidden, expected, atol=2e-4, rtol=0)
    second = [(where - pivots, hidden[:images]) for scale, where, hidden in seen if scale == 1]
    for number, (where, _) in enumerate(second):
        assert (tensors[f"drawn_{run}"].gather(1, where) == number).all()
    assert_close(second[0][1], tensors[f"z_first_{run}"], atol=2e-4, rtol=0)
    assert_close(second[-1][1], tensors[f"z_last_{run}"], atol=2e-4, rtol=0)
    drawn = tokenizer.pyramid.grow(None, decoded.tokens[0], 0)
    assert_close(drawn, tensors[f"pivots_{run}"], atol=1e-4 * facts["max_abs_pivots"], rtol=0)
    assert_close(decoded.latent, tensors[f"latents_{run}"], atol=1e-4 * facts["max_abs"], rtol=0)


def test_the_latent_of_the_last_pivot_is_without_influence(network):
    run = run_of(tokenizer_of(network), network, head=Diffusion("dpm++", 2), iterations=2)
    pivots = run.schedule.lengths[0]

    class Spoilt(Noise):
        """Other noise for the pivot that is drawn last."""

        def normal_at(self, stream, positions_BL, width, *, attempt=0):
            found = super().normal_at(stream, positions_BL, width, attempt=attempt)
            return found + 9 * torch.equal(positions_BL, self.order(0, pivots)[:, -1:])

    drawn = [decode(run, torch.tensor([1]), noise) for noise in (Noise([3]), Spoilt([3]))]
    assert not torch.equal(drawn[0].tokens[0], drawn[1].tokens[0])
    assert torch.equal(drawn[0].latent, drawn[1].latent)


def test_editing_is_refused_in_words(network):
    tokenizer = tokenizer_of(network)
    tokens = tokenizer.scales.split(torch.zeros(1, tokenizer.scales.total, network.channels))
    run = run_of(tokenizer, network, head=Diffusion("dpm++", 2), iterations=2)
    preserved = preserved_before(1, tokens, tokenizer, tokenizer.scales)
    with pytest.raises(ValueError, match="HiMAR draws whole images only"):
        decode(run, torch.tensor([1]), Noise([3]), preserved=preserved)


@pytest.mark.parametrize("size", [name for name, facts in SETTINGS["sizes"].items() if "parameters" in facts])
def test_published_sizes_have_their_parameters_and_settings(size):
    facts, common = SETTINGS["sizes"][size], SETTINGS["sizes"]["common"]
    found = entry(facts["function"].replace("_", "-"))
    pipe, sampling = skeleton(found.name), facts["sampling"]
    tables = 2 * common["seq_len"] * facts["gdm_w"]  # of sines and zeros, which need not be stored
    assert sum(p.numel() for p in pipe.backbone.parameters()) + tables == facts["parameters"]
    assert len(pipe.backbone.state_dict()) + 2 == facts["keys"]
    assert found.published["fid"] == facts["readme"]["fid"]
    assert found.source.parameters == pytest.approx(facts["parameters"], rel=0.01)
    phases = [[step for step in pipe.plan().steps if step.scale == k] for k in range(2)]
    assert [len(phase) for phase in phases] == [sampling["pivot_iterations"], sampling["num_iter"]]
    steps = [phase[0].head.denoising_steps for phase in phases]
    assert steps == [sampling["pivot_head_steps"], sampling["map_head_steps"]]
    for phase, name, tokens in zip(phases, ("re_cfg", "cfg"), (common["pivots"], common["seq_len"]), strict=True):
        assert phase[-1].guidance == pytest.approx((sampling[name] - 1) * (tokens - 1) / tokens)
