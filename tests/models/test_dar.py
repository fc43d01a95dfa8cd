"""D-AR agrees with the published code: tokens one after another, and the image after each group of them."""

import json
import sys
from argparse import Namespace

import pytest
import torch
from golden.cases import load_case
from PIL import Image
from small_dar import golden_dar, tensors_of, tiny_dar, tiny_flow
from torch.testing import assert_close

from var_toolkit.cli import main
from var_toolkit.core.noise import Noise
from var_toolkit.heads import categorical
from var_toolkit.loading import load
from var_toolkit.models.dar import DAR, DARConfig
from var_toolkit.models.llamagen import PUBLISHED
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling, entry
from var_toolkit.tokenizers.pixel_flow import PixelFlowVQ

CASE = load_case("dar-generate")
TOLERANCE, SAMPLING = CASE.facts["tolerance"], CASE.facts["sampling"]
LABELS = CASE.tensors["label"]
GREEDY = {"top_k": SAMPLING["top_k"], "top_p": 0.0}


def guidance_of(kind: str) -> dict[str, float]:
    """A published cfg_scale, "a" or "a,b", as our settings."""
    *first, last = map(float, SAMPLING[kind]["cfg_scale"].split(","))
    return {"cfg": last, **({"first_cfg": first[0]} if first else {})}


@pytest.fixture(scope="module")
def golden() -> Pipeline:
    return Pipeline(*golden_dar(), Sampling(4.0, top_k=0, top_p=0.0))


@pytest.fixture
def tiny() -> Pipeline:
    return Pipeline(tiny_flow(), tiny_dar(), Sampling(2.0, top_k=0, top_p=0.0))


@pytest.fixture
def published_noise(monkeypatch):
    monkeypatch.setattr(PixelFlowVQ, "start", lambda self, noise: CASE.tensors["noise"])


@pytest.mark.parametrize("kind", ["constant", "ramp"])
@pytest.mark.usefixtures("published_noise")
def test_greedy_images_are_the_published_ones(kind, golden, monkeypatch):
    seen, filtered = [], categorical.filter_top_k_top_p
    monkeypatch.setattr(
        categorical, "filter_top_k_top_p", lambda logits, **how: (seen.append(logits), filtered(logits, **how))[1]
    )
    drawn = golden(LABELS.tolist(), seeds=[0, 1], output_type="pt", **guidance_of(kind), **GREEDY)
    assert torch.equal(drawn.tokens[0], CASE.tensors[f"tokens_{kind}"])
    logits = CASE.tensors[f"guided_logits_{kind}"]
    assert_close(torch.cat(seen, dim=1), logits, atol=TOLERANCE["guided_logits"], rtol=0)
    expected = (CASE.tensors[f"decoded_{kind}"].clamp(-1, 1) + 1) / 2
    assert_close(drawn.images, expected, atol=TOLERANCE["decoded"], rtol=0)


def test_guidance_that_grows_is_told_and_replaced_by_one_number(tiny):
    own = Pipeline(tiny.tokenizer, tiny.backbone, Sampling(8.0, top_k=0, top_p=0.0, first_cfg=1.2))
    assert "guidance 0.2 to 7, growing with the tokens" in str(own.bind(own.plan()))
    assert own.plan(cfg=4.0).steps == tiny.plan(cfg=4.0).steps
    weights = [step.guidance for step in own.plan(guided_tokens=4, cfg=3.0, first_cfg=1.0).steps]
    assert weights == pytest.approx([0, 0.25, 0.5, 0.75, 0, 0, 0, 0, 0])
    falling = own.bind(own.plan(cfg=1.5, first_cfg=3.0))
    assert "guidance 2 to 0.5, falling with the tokens" in str(falling)
    with pytest.raises(ValueError, match="cfg alone"):
        own.plan(speculate="jacobi")
    own([1], seeds=[0], cfg=4.0, speculate="jacobi")


def test_constant_guidance_is_the_same_at_all_tokens(tiny):
    own = Pipeline(tiny.tokenizer, tiny.backbone, Sampling(8.0, top_k=0, top_p=0.0, first_cfg=1.2))
    assert {step.guidance for step in own.plan(cfg_schedule="constant").steps} == {7.0}
    with pytest.raises(ValueError, match=r"first_cfg .* cfg_schedule"):
        own.plan(cfg_schedule="constant", first_cfg=1.2)


def test_key_names_are_the_published_ones(golden):
    published = CASE.facts["state_dict"]["gpt"]
    assert {name: list(tensor.shape) for name, tensor in golden.backbone.state_dict().items()} == {
        name: shape for name, (shape, _) in published.items()
    }


def test_rope_turns_by_the_place_in_the_sequence():
    cos, sin = tiny_dar(side=4).rotation()
    assert cos.shape == sin.shape == (17, 8)
    assert cos[0].eq(1).all()  # the class is at the beginning
    for distance in (1, 5):  # the relative rotation of two tokens is that of their distance, in all channels
        turned = torch.complex(cos[distance:], sin[distance:]) / torch.complex(cos[:-distance], sin[:-distance])
        assert_close(turned, turned[:1].expand_as(turned))


@pytest.mark.parametrize("settings", [{}, {"guided_tokens": 4}], ids=["guided", "guided-at-first"])
def test_a_callback_sees_the_image_after_every_group(tiny, settings):
    seen = []
    drawn = tiny([1, 3], seeds=[5, 6], output_type="pt", callback_on_scale_end=seen.append, **settings)
    assert [event.scale for event in seen] == [0, 1, 2]
    assert [event.tokens.shape[1] for event in seen] == [3, 6, 9]
    for event in seen:
        tokens = drawn.tokens[0][:, : event.tokens.shape[1]]
        assert torch.equal(event.tokens, tokens)
        latent, start = tiny.tokenizer.latents([tokens])[0], tiny.tokenizer.start(Noise([5, 6]))
        assert torch.equal(event.preview(), tiny.tokenizer.decode(latent, start))
        assert_close(event.of([1]).preview(), event.preview()[1:], atol=1e-5, rtol=0)
    assert_close(seen[-1].preview(), drawn.images * 2 - 1, atol=1e-6, rtol=0)


def test_looking_changes_nothing(tiny):
    looked = tiny([1, 3], seeds=[5, 6], output_type="pt", callback_on_scale_end=lambda event: event.preview())
    assert torch.equal(looked.images, tiny([1, 3], seeds=[5, 6], output_type="pt").images)


def test_an_image_depends_on_its_own_seed_alone(tiny):
    both = tiny([1, 1], seeds=[5, 6], output_type="pt")
    assert_close(tiny([1], seeds=[6], output_type="pt").images, both.images[1:], atol=1e-5, rtol=0)
    assert (both.images[0] - both.images[1]).abs().max() > 0.01
    latents = tiny([1, 1], seeds=[5, 6], output_type="latent").latents
    assert_close((tiny.decode(latents, Noise([5, 6])) + 1) / 2, both.images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("speculate", ["auto", "jacobi"])
def test_drafts_that_are_verified_give_the_plain_tokens(tiny, speculate):
    greedy, seen = {"seeds": [0, 1], "top_k": 1}, []
    drawn = tiny([1, 3], speculate=speculate, callback_on_scale_end=seen.append, **greedy)
    assert torch.equal(drawn.tokens[0], tiny([1, 3], **greedy).tokens[0])
    assert [event.scale for event in seen] == [2]  # all groups at once


def test_parts_of_an_image_cannot_be_redrawn(tiny):
    with pytest.raises(ValueError, match="PixelFlowVQ"):
        tiny.edit(Image.new("RGB", (6, 6)), (0, 0, 3, 3), class_labels=[1])


@pytest.mark.parametrize("name", ["dar-l", "dar-xl"])
def test_published_sizes_have_the_published_number_of_parameters(name):
    depth, heads, width = PUBLISHED[name.removeprefix("dar-")]
    known = entry(name).source
    assert known.configs["backbone"] == {"depth": depth, "num_heads": heads, "embed_dim": width, "side": 16}
    with torch.device("meta"):
        network = DAR(DARConfig(**known.configs["backbone"]))
    assert known.parameters == pytest.approx(sum(p.numel() for p in network.parameters()), abs=5e5)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Files as the training scripts write them: averaged weights beside others, settings, statistics of codes."""
    tensors = {part: tensors_of(CASE, name) for part, name in {"tokenizer": "vq", "backbone": "gpt"}.items()}
    others = {part: {name: 2 * t for name, t in found.items()} for part, found in tensors.items()}
    told = type("Config", (), {"__module__": "config_util"})()
    told._data = {"model": {"vq_dim": 4}}
    more = {"optimizer": {"state": {}}, "steps": 3, "args": Namespace(gpt_model="GPT-L"), "config": told}
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "config_util", Namespace(Config=type(told)))
        for part, found in tensors.items():
            torch.save({"model": others[part], "ema": found, **more}, tmp_path / f"{part}.pt")
    config = {"tokenizer": CASE.facts["tokenizer"], "backbone": CASE.facts["config"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.usefixtures("published_noise")
def test_converted_files_draw_the_published_images(published, capsys):
    files = ["--tokenizer", str(published / "tokenizer.pt"), "--backbone", str(published / "backbone.pt")]
    told = ["--config", str(published / "config.json"), "--out", str(published / "model")]
    assert main(["convert", "--family", "dar", *files, *told]) == 0
    assert "DAR with" in capsys.readouterr().out
    pipe = load(published / "model", device="cpu")
    assert pipe.sampling == entry("dar-l").sampling
    drawn = pipe(LABELS.tolist(), seeds=[0, 1], output_type="pt", **guidance_of("ramp"), **GREEDY)
    assert torch.equal(drawn.tokens[0], CASE.tensors["tokens_ramp"])
    expected = (CASE.tensors["decoded_ramp"].clamp(-1, 1) + 1) / 2
    assert_close(drawn.images, expected, atol=TOLERANCE["decoded"], rtol=0)
