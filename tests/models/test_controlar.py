"""ControlAR agrees with the published control features, logits and sampler; without a control image it is LlamaGen."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.cases import fill, load_case
from PIL import Image
from safetensors.torch import save_file
from small_infinity import published_tensors
from small_llamagen import tiny_gpt_config, tiny_vq, vq_tensors
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.cli import main
from var_toolkit.conditions.condition import Condition
from var_toolkit.conditions.images import WithImage
from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.conditions.text import Prompts
from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.published import networks_from_tensors
from var_toolkit.heads.categorical import Categorical
from var_toolkit.loading import load, skeleton
from var_toolkit.models.controlar import ControlAR, ControlARConfig
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import entry

CASE = load_case("controlar")
FACTS, GIVEN = CASE.facts, CASE.tensors
SIZE = tuple(side // 16 for side in FACTS["config"]["control_size"])
SCHEDULE = Schedule((SIZE,))


def backbone_file():
    """The published tensors; the null control is a buffer of zeros."""
    found = published_tensors(CASE, "controlar")
    return found | {name: torch.zeros_like(t) for name, t in found.items() if name.startswith("condition_mlp.uncond")}


def told():
    """What the tensors do not determine, and more, under the published names."""
    gpt, encoder = FACTS["config"]["gpt"], FACTS["config"]["dinov2"]
    known = {name: gpt[name] for name in ("n_head", "condition_type", "model_type", "block_size")}
    return known | {"encoder_heads": encoder["num_attention_heads"]}


@pytest.fixture(scope="module")
def network():
    return networks_from_tensors(
        "controlar", {"backbone": backbone_file()}, {"backbone": told()}, {"backbone": "case"}
    )["backbone"]


def control():
    return GIVEN["control"].expand(-1, 3, -1, -1)


def asked_of(network):
    """The captions of the case, whose padding moves behind the text, as prompts have it."""
    mask, features = GIVEN["caption_mask"].bool(), GIVEN["caption"]
    rows = [PromptEmbeds(row[seen][None], seen[seen][None]) for row, seen in zip(features, mask, strict=True)]
    return Prompts(PromptEmbeds.join(rows))


@torch.no_grad()
def test_control_features_are_the_published_ones(network):
    patched, bounds = network.patched(control(), SIZE), FACTS["tolerance"]
    assert_close(patched[:, :1], GIVEN["patch14"], atol=bounds["patch14"], rtol=0)
    features = network.adapter(patched)
    assert_close(features, GIVEN["features"], atol=bounds["features"], rtol=0)
    mlp = network.adapter_mlp(features)
    found = {"adapter_mlp": mlp, "condition_mlp": network.condition_mlp.cap_proj(mlp)}
    found |= {f"control_{k}": added for k, added in enumerate(network.control(control(), SIZE).values())}
    for name, value in found.items():
        assert_close(value, GIVEN[name], atol=bounds["adapter_mlp, condition_mlp, control_*"], rtol=0)


@torch.no_grad()
def test_teacher_forced_logits_are_the_published_ones(network):
    ids = GIVEN["train_ids"]
    given = Condition(prefix=GIVEN["caption"], prefix_mask=GIVEN["caption_mask"].bool())
    given = given.joined(network.image_request(control(), None, SCHEDULE).condition)
    found = network(given, ids[:, :-1])
    assert_close(found, GIVEN["train_logits"], atol=FACTS["tolerance"]["train_logits"], rtol=0)
    assert_close(F.cross_entropy(found.flatten(0, 1), ids.flatten()), GIVEN["train_loss"][0])


@pytest.mark.parametrize("run", FACTS["runs"])
def test_tokens_are_those_of_the_published_sampler(run, network, monkeypatch):
    told, found, logits = FACTS["runs"][run], [], ControlAR.logits
    monkeypatch.setattr(ControlAR, "logits", lambda *given: found.append(logits(*given)) or found[-1])
    # The published sampler passes the strength on under guidance alone.
    strength = told["control_strength"] if told["cfg_scale"] > 1 else 1
    image = network.image_request(control(), None, SCHEDULE).weighed(strength)
    settings = {"guidance": told["cfg_scale"] - 1, "head": Categorical(top_k=told["top_k"], temperature_first=True)}
    codes = FACTS["config"]["gpt"]["vocab_size"]
    plan = run_of(tiny_vq(vocab_size=codes), network, schedule=SCHEDULE, **settings)
    drawn = decode(plan, WithImage(asked_of(network), image), Noise([0] * len(GIVEN["control"])))
    assert torch.equal(drawn.tokens[0], GIVEN[f"{run}_idx"])
    guided = torch.cat(found, dim=1)
    if told["cfg_scale"] > 1:
        own, null = guided.chunk(2)
        guided = null + told["cfg_scale"] * (own - null)
    assert_close(guided, GIVEN[f"{run}_logits"], atol=FACTS["tolerance"]["*_logits"], rtol=0)


def class_file():
    """The published tensors with classes in place of text."""
    rest = {name: tensor for name, tensor in backbone_file().items() if not name.startswith("cls_embedding.")}
    table = torch.randn(11, len(rest["norm.weight"]), generator=torch.Generator().manual_seed(2))
    return rest | {"cls_embedding.embedding_table.weight": table}


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """Converts files under their published names to a model directory; its name."""
    monkeypatch.chdir(tmp_path)

    def of(tensors, **changes):
        torch.save({"model": vq_tensors()}, "vq.pt")
        save_file(tensors, "canny_MR.safetensors")
        Path("told.json").write_text(json.dumps({"backbone": told() | changes}))
        words = ["--tokenizer", "vq.pt", "--backbone", "canny_MR.safetensors", "--config", "told.json"]
        assert main(["convert", "--family", "controlar", *words, "--out", "model"]) == 0
        return "model"

    return of


def test_a_published_file_becomes_a_model_that_draws_by_a_control_image(converted, network):
    pipe, embeds = load(converted(backbone_file()), device="cpu"), asked_of(network).prompt
    assert_close(pipe.backbone.state_dict(), network.state_dict())
    settings = {"prompt_embeds": embeds, "seeds": [0, 1], "top_k": 1, "output_type": "latent"}
    shown = [{}, {"control_image": edges()}, {"control_image": edges(), "control_strength": 0.5}]
    drawn = [pipe(**settings, **more).tokens[0] for more in shown]
    assert not any(torch.equal(one, other) for one, other in pairwise(drawn))
    wide = pipe(**settings, size=(64, 32), control_image=edges())
    assert wide.tokens[0].shape == (2, 8)
    assert wide.latents.shape[-2:] == (2, 4)


def test_the_encoder_has_the_published_names_and_reads_those_of_any_transformers(network):
    tensors, unused = backbone_file(), ("condition_embeddings.weight", "condition_mlp.uncond_embedding")
    assert network.state_dict().keys() == tensors.keys() - {*unused}
    names = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj"}
    names |= {"attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}
    for published, newer in names.items():
        tensors = {name.replace(published, newer): tensor for name, tensor in tensors.items()}
    assert not tensors.keys() >= network.state_dict().keys()
    found = networks_from_tensors("controlar", {"backbone": tensors}, {"backbone": told()}, {"backbone": "case"})
    assert_close(found["backbone"].state_dict(), network.state_dict())


def test_classes_are_drawn_by_a_control_image_from_the_command_line(converted, capsys):
    model = converted(class_file(), model_type="c2i", cls_token_num=1)
    edges().save("edges.png")
    words = ["sample", "--class", "3", "--model", model, "--size", "32x64", "--json"]
    capsys.readouterr()
    assert main([*words, "--control", "edges.png", "--control-strength", "0.5"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["control"] == "edges.png"
    assert facts["plan"]["control_strength"] == 0.5
    assert "strength 0.5" in facts["plan_in_words"]
    assert Image.open(facts["files"][0]).size == (32, 64)
    for more, named in ((["--control-strength", "0.5"], "--control-strength"), (["--size", "80x80"], "schedule is 5")):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1


def edges():
    """A control image."""
    return Image.linear_gradient("L").resize((90, 60))


def small(**changes):
    """A pipeline of 6 px that draws classes by a control image."""
    sizes = {"depth": 3, "embed_dim": 32, "num_heads": 2, "mlp_hidden": 48, "vocab_size": 16, "side": 3}
    encoder = {"encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2, "encoder_side": 2}
    return Pipeline(tiny_vq(), fill(ControlAR(ControlARConfig(**{**sizes, **encoder, "num_classes": 5, **changes}))))


@torch.no_grad()
def test_a_class_without_a_control_image_is_drawn_as_by_llamagen():
    ours, tokens = small().backbone, torch.arange(8).repeat(2, 1)
    theirs = RasterGPT(tiny_gpt_config(depth=3))
    theirs.load_state_dict({name: ours.state_dict()[name] for name in theirs.state_dict()})
    labels = torch.tensor([4, 5])
    assert_close(ours(Condition(labels=labels), tokens), theirs.eval()(labels, tokens), atol=1e-5, rtol=1e-5)


def test_the_control_image_is_read_once_for_all_batches(monkeypatch):
    pipe, seen, control = small(), [], ControlAR.control
    monkeypatch.setattr(ControlAR, "control", lambda *given: seen.append(given[2]) or control(*given))
    pipe([1, 2, 3], seeds=range(3), batch_size=1, control_image=np.zeros((9, 6, 3), np.uint8))
    assert seen == [(3, 3)]


@pytest.mark.parametrize("more", [{}, {"guided_tokens": 4}], ids=["guided", "guided-at-first"])
def test_an_image_does_not_depend_on_the_batch_nor_on_drafts(more):
    pipe = small()
    settings = {
        "control_image": edges(),
        "output_type": "latent",
        "top_k": 1,
        "cfg": 2.0,
        "control_strength": 2.0,
        **more,
    }
    several, alone = pipe([1, 2], seeds=[0, 1], **settings), pipe(2, seeds=1, **settings)
    assert torch.equal(several.tokens[0][1:], alone.tokens[0])
    drafted = pipe([1, 2], seeds=[0, 1], speculate="jacobi", draft_length=4, **settings)
    assert torch.equal(drafted.tokens[0], several.tokens[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "ragged"])
def test_tokens_one_by_one_with_a_cache_have_the_logits_of_one_pass(kind):
    pipe, tokens = small(), torch.arange(9).repeat(2, 1)
    network, image = pipe.backbone, pipe.backbone.image_request(torch.rand(1, 3, 6, 6), None, Schedule((3,)))
    given = Condition(labels=torch.tensor([1, 2])).joined(image.condition)
    prefix = network.condition(given)
    cache = network.new_cache(2, [10] * 3) if kind == "plain" else network.new_ragged_cache(2, 10)
    parts = [network.next_hidden(prefix.tokens, tokens[:, :2], cache=cache)]
    parts += [network.next_hidden(None, tokens[:, i : i + 1], cache=cache) for i in range(2, 8)]
    assert_close(network.next_logits(torch.cat(parts, dim=1)), network(given, tokens[:, :8]), atol=1e-5, rtol=1e-5)


def test_all_weights_learn():
    network = small().backbone.train()
    added = Condition(additions=network.control(torch.randn(2, 3, 6, 6), (3, 3)))
    network(Condition(labels=torch.tensor([1, 5])).joined(added), torch.randint(0, 16, (2, 8))).sum().backward()
    still = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert still == ["adapter.model.embeddings.mask_token"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"depth": 4}, "depth is 4"),
        ({"encoder_heads": 5}, "encoder_width is 384"),
        ({"encoder_side": 0}, "encoder_side is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"control_resize": "area"}, "control_resize is 'area'"),
    ],
    ids=["depth", "heads", "positions", "classes", "resize"],
)
def test_impossible_sizes_are_refused_by_name(setting, named):
    with pytest.raises(ValueError, match=named):
        ControlARConfig(**{"depth": 3, **setting})


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("var_toolkit.models.controlar.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="transformers"):
        ControlAR(ControlARConfig(depth=3))


def test_a_strength_is_refused_where_nothing_is_weighed():
    with pytest.raises(ValueError, match="control_strength"):
        skeleton("car-canny-d16").plan(control_strength=0.5)
    with pytest.raises(ValueError, match="control_strength"):
        small()(1, seeds=0, control_strength=0.5)


@pytest.mark.parametrize("name", ["controlar-canny", "controlar-edge-base"])
def test_a_named_model_has_as_many_weights_as_are_told(name):
    weights = skeleton(name).backbone.parameters()
    assert sum(weight.numel() for weight in weights) == pytest.approx(entry(name).source.parameters, rel=0.005)
