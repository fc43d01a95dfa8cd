"""Models of continuous tokens by directory and name, and other autoencoders in place of their own."""

import io
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_flowar import tiny_flowar, tiny_kl
from torch.testing import assert_close

from var_toolkit import registry
from var_toolkit.formats.directory import save_network
from var_toolkit.loading import Pair, code, load, load_tokenizer, skeleton
from var_toolkit.methods.collaborative import collaborative
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import WEIGHTS, Embedded, Entry, Sampling
from var_toolkit.tokenizers.kl import KLTokenizer

SETTINGS = Sampling(cfg=3.0, steps=3, solver="heun")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, and autoencoders of several strides and channels."""
    folder = tmp_path_factory.mktemp("models")
    Pipeline(tiny_kl(), tiny_flowar(input_side=5), SETTINGS).save_pretrained(folder / "flowar")
    Pipeline(tiny_kl(), tiny_flowar(decoder_depth=1, input_side=5), SETTINGS).save_pretrained(folder / "refiner")
    other = tiny_kl(block_out_channels=(8, 8, 8), sample_size=12).autoencoder
    other.register_to_config(scaling_factor=0.25, shift_factor=0.5)
    save_network(other, folder / "other")
    save_network(other, folder / "diffusion" / "vae")
    (folder / "diffusion" / "tokenizer").mkdir()  # of text, in most pipelines of diffusers
    save_network(tiny_kl(latent_channels=8).autoencoder, folder / "eight")
    return folder


@pytest.fixture(scope="module")
def discrete(folder, small_tokenizer, small_var) -> str:
    """A model of discrete tokens."""
    Pipeline(small_tokenizer, small_var).save_pretrained(folder / "var")
    return str(folder / "var")


def test_a_saved_model_draws_the_same_again(folder):
    pipe, again = Pipeline(tiny_kl(), tiny_flowar(input_side=5), SETTINGS), load(folder / "flowar", device="cpu")
    pipe.tokenizer.pyramid.side = 5
    assert (again.sampling, again.tokenizer.pyramid.side) == (SETTINGS, 5)
    ours, theirs = (p([3, 1], seeds=[0, 1], output_type="pt") for p in (pipe, again))
    assert torch.equal(ours.latents, theirs.latents)
    assert_close(ours.images, theirs.images)
    assert skeleton(folder / "flowar").plan() == pipe.plan()
    assert {p.device.type for p in skeleton(folder / "flowar").tokenizer.parameters()} == {"meta"}


def test_diffusers_reads_the_tokenizer_of_a_saved_model(folder):
    from diffusers import AutoencoderKL

    found = AutoencoderKL.from_pretrained(folder / "flowar" / "tokenizer")
    assert found.config.scaling_factor == 0.5
    ours = tiny_kl().autoencoder.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("place", ["other", "diffusion"])
def test_another_autoencoder_decodes_with_its_own_stride_and_scaling(folder, place):
    pipe = load(folder / "flowar", tokenizer=folder / place, device="cpu")
    assert pipe.tokenizer.image_side == skeleton(folder / "flowar", tokenizer=folder / place).tokenizer.image_side
    drawn = pipe(3, seeds=0, output_type="pt")
    assert torch.equal(drawn.latents, load(folder / "flowar", device="cpu")(3, seeds=0, output_type="latent").latents)
    with torch.no_grad():
        expected = pipe.tokenizer.autoencoder.decode(drawn.latents / 0.25 + 0.5).sample.clamp(-1, 1)
    assert drawn.images.shape == (1, 3, 12, 12)
    assert_close(drawn.images, (expected + 1) / 2, atol=1e-5, rtol=0)


def test_the_tokenizer_of_another_model_may_be_taken(folder):
    assert load(folder / "flowar", tokenizer=folder / "refiner", device="cpu").tokenizer.image_side == 6


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    ("model", "tokenizer", "words"),
    [
        ("flowar", "eight", r"backbone expects 4 latent channels, \S*eight has 8"),
        ("var", "other", r"backbone draws discrete tokens and needs a MultiScaleVQ; \S*other holds an AutoencoderKL"),
        ("flowar", "var", r"var holds a MultiScaleVQ; give an AutoencoderKL of diffusers"),
        ("flowar", "flowar/backbone", "holds a FlowAR"),
        ("flowar", ".", "has no tokenizer: config.json"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_without_reading_weights(
    folder, discrete, model, tokenizer, words, weights, monkeypatch
):
    monkeypatch.setattr("var_toolkit.formats.directory.read_safetensors", None)
    monkeypatch.setattr("var_toolkit.formats.directory.pretrained", None)
    with pytest.raises(ValueError, match=words):
        (load if weights else skeleton)(folder / model, tokenizer=folder / tokenizer)


@pytest.mark.parametrize("name", ["nowhere", "flowar-s", "stilllife-classifier"])
def test_a_name_that_is_no_tokenizer_is_refused(folder, name):
    with pytest.raises(ValueError, match=rf"{name}'.*hub id user/name"):
        skeleton(folder / "flowar", tokenizer=name)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [("flowar", "draws continuous tokens and needs an AutoencoderKL"), ("var", "discrete tokens and needs a Multi")],
)
def test_a_directory_whose_parts_are_of_two_kinds_is_refused(folder, discrete, backbone, words, tmp_path):
    shutil.copytree(folder / backbone, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    other = {"flowar": "var", "var": "flowar"}[backbone]
    shutil.copytree(folder / other / "tokenizer", tmp_path / "model" / "tokenizer")
    for opened in (skeleton, load):
        with pytest.raises(ValueError, match=words):
            opened(tmp_path / "model")


def test_a_directory_whose_parts_have_other_channels_is_refused(folder, tmp_path):
    shutil.copytree(folder / "flowar", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    shutil.copytree(folder / "eight", tmp_path / "model" / "tokenizer")
    with pytest.raises(ValueError, match=r"expects 4 latent channels, .* has 8"):
        load(tmp_path / "model")


@pytest.mark.parametrize("change", [{"latent_channels": "many"}, {"down_block_types": ["Spiral"]}])
def test_a_damaged_autoencoder_is_refused_in_one_line(folder, tmp_path, change):
    shutil.copytree(folder / "flowar", tmp_path / "model")
    config = tmp_path / "model" / "tokenizer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    for opened in (skeleton, load):
        with pytest.raises(ValueError, match=r"tokenizer.* AutoencoderKL: [^\n]*$"):
            opened(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quant_conv.bias": None}, "missing or unexpected weights, such as 'quant_conv.bias'"),
        ({"other": torch.zeros(1)}, "missing or unexpected weights, such as 'other'"),
        ({"quant_conv.bias": torch.zeros(3)}, r"size mismatch for quant_conv\.bias"),
        ({"quant_conv.bias": torch.full((8,), torch.nan)}, r"quant_conv\.bias holds values that are not finite"),
        (None, "cannot be read as AutoencoderKL: Error no file named"),
    ],
)
def test_damaged_weights_of_an_autoencoder_are_refused_in_our_words_alone(folder, tmp_path, change, words):
    shutil.copytree(folder / "flowar", tmp_path / "model")
    weights = tmp_path / "model" / "tokenizer" / WEIGHTS
    tensors = load_file(weights)
    weights.unlink()
    if change is not None:
        kept = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(kept, weights, metadata={"format": "pt"})
    told = io.StringIO()
    handler, logger = logging.StreamHandler(told), logging.getLogger("diffusers")
    logger.addHandler(handler)
    before = logger.level
    with pytest.raises(ValueError, match=rf"tokenizer.*{words}[^\n]*$"):
        load(tmp_path / "model")
    logger.removeHandler(handler)
    assert told.getvalue() == ""
    assert logger.level == before


def test_two_models_on_one_autoencoder_draw_together(folder):
    source = Pair(str(folder / "flowar"), str(folder / "refiner"), 2)
    pipe = load(source, device="cpu")
    halves = [load(half, device="cpu") for half in (source.drafter, source.refiner)]
    draft_scales = source.draft_scales
    plan = collaborative(*(half.plan() for half in halves), draft_scales=draft_scales)
    whole = code(*halves, draft_scales)
    assert whole.plan() == plan
    expected = whole(3, seeds=0, plan=plan, output_type="latent").latents
    assert torch.equal(pipe(3, seeds=0, output_type="latent").latents, expected)
    assert skeleton(source).plan() == pipe.plan()
    assert load(source, tokenizer=folder / "other", device="cpu").tokenizer.image_side == 12


def test_a_pair_of_continuous_models_is_saved_and_loaded_as_one(folder, tmp_path):
    source = Pair(str(folder / "flowar"), str(folder / "refiner"), 2)
    pipe = load(source, device="cpu")
    pipe.save_pretrained(tmp_path / "pair")
    again = load(tmp_path / "pair", device="cpu")
    assert again.plan() == pipe.plan() == skeleton(tmp_path / "pair").plan()
    assert torch.equal(again(3, seeds=0).latents, pipe(3, seeds=0).latents)


def test_models_of_two_kinds_are_no_pair(folder, discrete):
    for halves in ((str(folder / "flowar"), discrete), (discrete, str(folder / "flowar"))):
        with pytest.raises(ValueError, match="an image needs one for both"):
            skeleton(Pair(*halves, 2))


@pytest.mark.parametrize(("place", "side"), [("other", 12), ("diffusion", 12), ("flowar", 6), ("flowar/tokenizer", 6)])
def test_a_continuous_tokenizer_is_loaded_alone(folder, place, side):
    tokenizer = load_tokenizer(folder / place, device="cpu")
    assert isinstance(tokenizer, KLTokenizer)
    assert tokenizer.image_side == side
    assert tokenizer.reconstruct(torch.zeros(1, 3, side, side)).shape == (1, 3, side, side)


def test_embedded_models_of_continuous_tokens_are_known_by_name(folder, monkeypatch):
    monkeypatch.setattr(Embedded, "folder", staticmethod(lambda part: folder / part))
    whole = Entry("ours", "", 6, Embedded("other", "flowar/backbone"), "none", SETTINGS)
    alone = replace(whole, name="ours-kl", source=Embedded("other"))
    monkeypatch.setattr(registry, "ENTRIES", {**registry.ENTRIES, "ours": whole, "ours-kl": alone})
    assert load("ours", device="cpu")(3, seeds=0, output_type="pt").images.shape == (1, 3, 12, 12)
    assert skeleton("ours").plan() == load("ours", device="cpu").plan()
    assert load_tokenizer("ours-kl", device="cpu").image_side == 12
    assert load(folder / "flowar", tokenizer="ours-kl", device="cpu").tokenizer.image_side == 12


def test_models_of_discrete_tokens_do_not_wait_for_diffusers(discrete):
    code = (
        "import sys; from var_toolkit.loading import load, skeleton; skeleton('var-d16'); "
        f"load({discrete!r}, device='cpu')(3, seeds=0); print('diffusers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
