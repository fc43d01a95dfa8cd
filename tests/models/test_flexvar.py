"""FlexVAR gives what the published code gives, at any schedule."""

import json
from dataclasses import replace

import pytest
import torch
from golden.cases import load_case
from golden.recipe import fill_
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.cli import main
from var_toolkit.conditions.condition import Condition
from var_toolkit.core.bind import bind
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import BACKBONE, plan_of
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.published import backbone_from_tensors
from var_toolkit.heads.categorical import Categorical
from var_toolkit.models.flexvar import FlexVAR, FlexVARConfig
from var_toolkit.tokenizers.raster_vq import tokenizer_from_tensors

CASE = load_case("flexvar")
RUNS = CASE.facts["runs"]
LISTED = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32}  # sides that the published code samples


def weights(part: str) -> dict[str, torch.Tensor]:
    """The published state dict of a part, filled by the recipe of the case."""
    told = CASE.facts["weights"]
    shapes = told["models"][part]["state_dict"]
    return fill_({name: torch.zeros(shape) for name, shape in shapes.items()}, told["salt"])


def backbone(**sizes) -> FlexVAR:
    """The transformer of the case; `sizes` are those that no tensor determines."""
    return backbone_from_tensors("flexvar", weights("var"), sizes, "FlexVAR.pth")


def schedule_of(run: str) -> Schedule:
    return Schedule(tuple(RUNS[run]["schedule"]))


def tolerance(name: str) -> float:
    """The tolerance that the case gives for a tensor."""
    told = CASE.facts["tolerance"]
    kind, _, what = name.partition("_")
    patterns = (name, f"tf*_{what}" if kind.startswith("tf") else "", f"*_{what}", f"{kind}_*")
    return next(told[pattern] for pattern in patterns if pattern in told)


def assert_published(found: torch.Tensor, name: str) -> None:
    assert_close(found, CASE.tensors[name], atol=tolerance(name), rtol=0)


@pytest.fixture(scope="module")
def tokenizer():
    side = CASE.tensors["f"].shape[-1]
    return tokenizer_from_tensors(weights("vae"), {}, (side,), "FlexVAE.pth")


@pytest.fixture(scope="module")
def network():
    return backbone()


@torch.no_grad()
def test_images_become_the_published_latent(tokenizer):
    assert_published(tokenizer.features(CASE.tensors["image"]), "f")


@torch.no_grad()
@pytest.mark.parametrize("run", [run for run in RUNS if run.startswith("tf")])
def test_teacher_forcing_is_the_published_one(run, tokenizer, network):
    schedule, labels = schedule_of(run), CASE.tensors["labels"]
    tokens = tokenizer.token_maps(CASE.tensors["image"], schedule)
    assert torch.equal(torch.cat(tokens, dim=1), CASE.tensors[f"{run}_ids"])
    inputs = tokenizer.pyramid_of(schedule).teacher_inputs(tokens)
    assert_published(inputs, f"{run}_x")
    logits = network(labels, inputs, schedule=schedule)
    assert_published(logits, f"{run}_logits")
    loss = F.cross_entropy(logits.flatten(0, 1), torch.cat(tokens, dim=1).flatten())
    assert_published(loss[None], f"{run}_loss")


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CASE.tensors if name.startswith("pos_")])
def test_positions_are_resized_as_published(name, network):
    side = int(name.removeprefix("pos_"))
    assert_published(network._position_embeddings(range(1), Schedule((side,))), name)


def drawn(run: str, tokenizer, monkeypatch):
    """What is drawn for a run of the case, and the guided logits of every scale before the filters."""
    told, seen = RUNS[run], []
    given = Categorical.filtered
    monkeypatch.setattr(Categorical, "filtered", lambda head, logits: seen.append(logits) or given(head, logits))
    network = backbone(largest_side=told["max_pn"])
    head = Categorical(top_k=told["top_k"], top_p=told["top_p"])
    plan = plan_of(network, schedule=schedule_of(run), guidance=told["cfg"], head=head)
    if told.get("used_llamagen_cfg"):  # null + cfg (conditional - null), at every scale
        plan = plan.changed(guidance=told["cfg"] - 1)
    made = bind(plan, {BACKBONE: network}, tokenizer)
    labels = CASE.tensors["labels"]
    return plan, decode(made, labels, Noise(range(len(labels)), torch.device("cpu"))), seen


@pytest.mark.parametrize("run", [run for run, told in RUNS.items() if told.get("top_k") == 1])
def test_greedy_sampling_is_the_published_one(run, tokenizer, monkeypatch):
    _, found, logits = drawn(run, tokenizer, monkeypatch)
    assert torch.equal(torch.cat(found.tokens, dim=1), CASE.tensors[f"{run}_idx"])
    assert_published(torch.cat(logits, dim=1), f"{run}_logits")
    if f"{run}_image_0" in CASE.tensors:
        image = tokenizer.decode(found.latent)[:1]
        assert_close(image, CASE.tensors[f"{run}_image_0"].clamp(-1, 1), atol=tolerance(f"{run}_image_0"), rtol=0)


def test_sides_that_are_not_listed_are_greedy_whatever_the_settings(tokenizer, monkeypatch):
    plan, found, logits = drawn("seeded", tokenizer, monkeypatch)
    told = RUNS["seeded"]
    greedy = [side not in LISTED or side > told["max_pn"] for side in told["schedule"]]
    assert any(greedy)
    assert not all(greedy)
    assert [step.head.top_k for step in plan.steps] == [1 if likeliest else told["top_k"] for likeliest in greedy]
    for likeliest, tokens, own in zip(greedy, found.tokens, logits, strict=True):
        assert not likeliest or torch.equal(tokens, own.argmax(-1))


@torch.no_grad()
def test_published_tokens_of_a_seeded_run_give_the_published_last_logits(tokenizer):
    told, labels = RUNS["seeded"], CASE.tensors["labels"]
    network, schedule = backbone(largest_side=told["max_pn"]), schedule_of("seeded")
    tokens = schedule.split(CASE.tensors["seeded_idx"])
    inputs = tokenizer.pyramid_of(schedule).teacher_inputs(tokens)
    null = torch.full_like(labels, network.config.num_classes)
    plan = plan_of(network, schedule=schedule, guidance=told["cfg"])
    logits, without = (network(each, inputs, schedule=schedule) for each in (labels, null))
    last, t = slice(schedule.offsets[-2], None), plan.steps[-1].guidance
    assert_published(((1 + t) * logits - t * without)[:, last], "seeded_logits")


def test_guidance_ramps_by_the_number_of_scales_and_is_whole_above_the_trained_side(network):
    def ramp(*sides):
        return network.guidance_ramp(Schedule(sides))

    assert ramp(1, 2, 4) == (0, 0.5, 1)
    assert ramp(*range(1, 14))[-1] == pytest.approx(12 / 9)
    assert ramp(1, 4, 16, 20) == (0, 1 / 3, 2 / 3, 1)
    assert ramp(1) == (0,)
    assert ramp(1, 20, (8, 24))[1:] == (1, 1)


@pytest.mark.parametrize(
    ("size", "maps"),
    [
        ((16, 16), "1,2,3,4,5,6,8,10,13,16"),
        ((8, 8), "1,2,3,4,5,6,8"),
        ((32, 32), "1,2,3,4,5,6,8,10,13,16,23,32"),
        ((16, 8), "1,2x1,3x2,4x2,5x2,6x3,8x4,10x5,13x6,16x8"),
        ((1, 1), "1"),
        ((48, 24), "1,2x1,3x2,4x2,5x2,6x3,8x4,10x5,13x6,16x8,23x12,33x16,48x24"),
    ],
    ids=str,
)
def test_the_schedule_of_a_size_grows_in_its_shape(size, maps, network):
    schedule = network.schedule_for(*size)
    assert str(schedule) == maps
    network.require_schedule(schedule)


def small(**changes) -> FlexVAR:
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5, "vocab_size": 16, "latent_channels": 4}
    torch.manual_seed(0)
    network = FlexVAR(FlexVARConfig(**{**sizes, "patch_nums": (1, 2, 3), **changes})).eval()
    network.init_weights(adaln_gamma=0.5)
    return network


@torch.no_grad()
@pytest.mark.parametrize("maps", ["1,2,3", "1,3,3,2", "1,2x4,3x6", "1,40"])
def test_cached_decoding_equals_the_packed_pass_at_any_schedule(maps):
    network, schedule = small(), Schedule.parse(maps)
    labels, inputs = torch.tensor([1, 5]), torch.randn(2, schedule.total - 1, 4)
    packed = network(labels, inputs, schedule=schedule)
    condition = network.condition(Condition(labels=labels))
    cache, logits = network.new_cache(2, [schedule.total] * 2), []
    for k in range(len(schedule)):
        part = inputs[:, schedule.offsets[k] - 1 : schedule.offsets[k + 1] - 1] if k else None
        hidden = network.hidden(condition, part, scales=range(k, k + 1), schedule=schedule, cache=cache)
        logits.append(network.logits(condition, hidden))
    assert_close(torch.cat(logits, dim=1), packed, atol=1e-5, rtol=1e-5)


def test_the_first_map_has_one_token():
    with pytest.raises(ValueError, match="2,4"):
        small().require_schedule(Schedule((2, 4)))
    with pytest.raises(ValueError, match="patch_nums"):
        small(patch_nums=(2, 4))
    with pytest.raises(ValueError, match="largest_side"):
        replace(small().config, largest_side=0)


def test_published_files_become_a_model_that_draws_the_published_tokens(tmp_path, capsys):
    torch.save({"model": weights("vae")}, tmp_path / "FlexVAE.pth")
    torch.save({"trainer": {"var_wo_ddp": weights("var")}, "epoch": 3}, tmp_path / "FlexVARd16.pth")
    told, found, config = RUNS["steps3"], tmp_path / "tokens.safetensors", tmp_path / "config.json"
    config.write_text(json.dumps({"backbone": {"largest_side": told["max_pn"]}}))
    files = ["--tokenizer", str(tmp_path / "FlexVAE.pth"), "--backbone", str(tmp_path / "FlexVARd16.pth")]
    given, out = ["--config", str(config)], ["--out", str(tmp_path / "model")]
    assert main(["convert", "--family", "flexvar", *files, *given, *out]) == 0
    assert f"FlexVAR with {CASE.facts['config']['var']['depth']} layers, 256 px" in capsys.readouterr().out
    labels = map(str, CASE.tensors["labels"].tolist())
    how = ["--cfg", str(told["cfg"]), "--top-k", str(told["top_k"])]
    drawing = ["sample", "--model", str(tmp_path / "model"), "--class", *labels, *how]
    sides = ",".join(map(str, told["schedule"]))
    options = ["--schedule", sides, "--save-tokens", str(found), "--out", str(tmp_path / "drawn"), "--device", "cpu"]
    assert main([*drawing, *options]) == 0
    maps = load_file(found)
    tokens = torch.cat([maps[f"scale_{k}"] for k in range(len(told["schedule"]))], dim=1)
    assert torch.equal(tokens, CASE.tensors["steps3_idx"])
