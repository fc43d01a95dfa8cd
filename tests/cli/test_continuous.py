"""Models of continuous tokens on the command line."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_flowar import tiny_flowar, tiny_kl

from var_toolkit.cli import main
from var_toolkit.formats.directory import save_network
from var_toolkit.loading import load
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling


@pytest.fixture(scope="module")
def flowar(tmp_path_factory) -> str:
    """A model directory: 6 px, 5 classes."""
    folder = tmp_path_factory.mktemp("models") / "flowar"
    Pipeline(tiny_kl(), tiny_flowar(), Sampling(steps=3)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def coarser(tmp_path_factory) -> str:
    """An autoencoder with twice as many pixels per latent position."""
    folder = tmp_path_factory.mktemp("models") / "vae"
    save_network(tiny_kl(block_out_channels=(8, 8, 8), sample_size=12).autoencoder, folder)
    return str(folder)


def sample(model, *options) -> int:
    return main(["sample", "--class", "3", "1", "--device", "cpu", "--model", model, *options])


def test_images_tokens_and_the_work_are_told(flowar, capsys):
    assert sample(flowar, "--json", "--trace", "trace.gif", "--save-tokens", "tokens.safetensors") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [Image.open(file).size for file in facts["files"]] == [(6, 6), (6, 6)]
    assert (facts["forward_passes"], facts["velocity_evaluations"], facts["tokenizer"]) == (3, 3 * 2, None)
    assert Image.open("trace.gif").n_frames == 3
    saved, expected = load_file("tokens.safetensors"), load(flowar, device="cpu").pack()([3, 1], seeds=[0, 0])
    for k, tokens in enumerate(expected.tokens):
        assert torch.equal(saved[f"scale_{k}"], tokens)
    assert torch.equal(saved["latent"], expected.latents)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "evaluations", "words"),
    [
        (["--solver", "heun", "--steps", "3"], 5, "3 steps (heun), guided from 0.9 to 0"),
        (["--solver", "midpoint", "--steps", "2", "--guidance-interval", "0.25", "0.5"], 4, "guided from 0.5 to 0.25"),
        (["--steps", "4"], 4, "guidance 0 to 1.5, 4 steps (published)"),
        (["--cfg", "1"], 2, "guidance 0, 3 steps (published)"),
    ],
)
def test_settings_of_the_solver_reach_the_plan(flowar, options, evaluations, words, capsys):
    assert sample(flowar, *options, "--dry-run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert words in facts["plan_in_words"]
    assert sample(flowar, *options, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["velocity_evaluations"] == facts["velocity_evaluations_per_batch"] == 3 * evaluations


def test_without_guidance_half_the_memory_is_held(flowar, capsys):
    held = []
    for options in ([], ["--cfg", "1"]):
        assert sample(flowar, "--json", *options) == 0
        held.append(json.loads(capsys.readouterr().out)["cache_bytes"])
    assert held[0] == 2 * held[1] > 0


def test_another_autoencoder_draws_larger_images(flowar, coarser, capsys):
    assert sample(flowar, "--tokenizer", coarser, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert Image.open(facts["files"][0]).size == (12, 12)
    assert facts["tokenizer"] == coarser
    assert sample(flowar, "--tokenizer", coarser, "--dry-run") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "at least 1"),
        (["--steps", "1"], "--steps is 1; it must be a whole number from 2"),
        (["--solver", "leapfrog"], "it must be one of published, euler, midpoint, heun"),
        (["--guidance-interval", "0.5"], "--guidance-interval"),
        (["--guidance-interval", "0.9", "0.1"], "--guidance-interval is (0.9, 0.1)"),
        (["--guidance-interval", "0", "1.5"], "--guidance-interval is (0.0, 1.5)"),
        (["--guidance-interval", "nan", "1"], "--guidance-interval is (nan, 1.0)"),
        (["--top-k", "5"], "--top-k is for discrete tokens"),
        (["--smooth"], "smooth is for discrete tokens"),
        (["--refine", "published"], "refine needs a backbone with masked passes"),
        (["--subnet", "2", "--full-scales", "2"], "FlowAR has no subnets; VARiant needs VAR"),
        (["--subnet", "9", "--full-scales", "9"], "--full-scales is 9"),
        (["--model", "DISCRETE", "--steps", "5"], "steps is for continuous tokens"),
        (["--model", "DISCRETE", "--tokenizer", "OTHER"], "draws discrete tokens and needs a MultiScaleVQ"),
        (["--tokenizer", "EIGHT"], "expects 4 latent channels"),
        (["--tokenizer", "EIGHT"], "has 8"),
        (["--tokenizer", "./nowhere"], "./nowhere: "),
        (["--drafter", "FLOWAR", "--refiner", "DISCRETE", "--draft-scales", "2"], "an image needs one for both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(flowar, model, coarser, options, words, tmp_path, capsys):
    save_network(tiny_kl(latent_channels=8).autoencoder, tmp_path / "eight")
    places = {"DISCRETE": model, "FLOWAR": flowar, "OTHER": coarser, "EIGHT": "eight"}
    options = [places.get(option, option) for option in options]
    named = "--model" in options or "--drafter" in options
    try:
        status = main(["sample", "--class", "3", *([] if named else ["--model", flowar]), *options])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert words in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["eight"]


def test_latents_that_are_not_finite_end_in_one_line(tmp_path, capsys):
    network = tiny_flowar()
    network.flownet.final_layer.linear.bias.data.fill_(3e38)
    Pipeline(tiny_kl(), network, Sampling(cfg=10.0, steps=3)).save_pretrained(tmp_path / "broken")
    assert sample("broken") == 1
    error = capsys.readouterr().err
    assert error.startswith("vargen sample: the latents of scale ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("place", ["model", "tokenizer", "pipeline"])
def test_an_image_of_any_size_is_reconstructed(flowar, place, tmp_path, capsys):
    save_network(tiny_kl().autoencoder, tmp_path / "pipeline" / "vae")
    source = {"model": flowar, "tokenizer": f"{flowar}/tokenizer", "pipeline": "pipeline"}[place]
    Image.new("RGB", (90, 70), "teal").save("image.png")
    assert main(["reconstruct", "image.png", "--model", source]) == 0
    assert "its reconstruction from 9 latent positions of 4 channels (right); PSNR" in capsys.readouterr().out
    assert Image.open("image_reconstruction.png").size == (504, 216)  # magnified by 36
    assert main(["reconstruct", "image.png", "--model", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 9


def test_a_set_keeps_the_tokenizer_it_was_begun_with(flowar, coarser, capsys):
    command = ["evaluate", "sample", "--model", flowar, "--per-class", "1", "--device", "cpu", "--out", "set"]
    assert main([*command, "--tokenizer", coarser]) == 0
    assert Image.open(next(Path("set").glob("*.png"))).size == (12, 12)
    noted = json.loads(Path("set/settings.json").read_text())
    assert noted["tokenizer"] == coarser
    capsys.readouterr()
    assert main([*command, "--tokenizer", coarser]) == 0
    assert main([*command, "--tokenizer", flowar]) == 2
    assert f'was started with tokenizer "{coarser}", not "{flowar}"' in capsys.readouterr().err
    assert main(command) == 2
    assert 'not "own"' in capsys.readouterr().err


def test_the_published_models_are_listed_with_their_figures(capsys):
    assert main(["models", "flowar*", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert {name: row["published_fid"] for name, row in rows.items()} == {
        "flowar-s": 3.61, "flowar-l": 1.90, "flowar-h": 1.65,
    }  # fmt: skip
    assert rows["flowar-l"]["parameters"] == 587_000_000


def test_the_plan_of_a_published_model_needs_no_download(capsys, monkeypatch):
    monkeypatch.setattr("var_toolkit.formats.hub.download", None)
    assert main(["sample", "--class", "207", "--model", "flowar-l", "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "FlowAR 16 x 1024, guidance 0 to 1.4, 25 steps (published), guided from 0.9 to 0" in facts["plan_in_words"]
    assert facts["velocity_evaluations_per_batch"] == 5 * 24
