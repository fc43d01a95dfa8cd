"""Models that draw token by token on the command line."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_dar import tiny_dar, tiny_flow
from small_llamagen import tiny_gpt, tiny_vq

from var_toolkit.cli import main
from var_toolkit.loading import load
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling


@pytest.fixture(scope="module")
def llamagen(tmp_path_factory) -> str:
    """A model directory: 6 px, 5 classes, 9 tokens."""
    folder = tmp_path_factory.mktemp("models") / "llamagen"
    Pipeline(tiny_vq(), tiny_gpt(), Sampling(2.0, top_k=0, top_p=0.0)).save_pretrained(folder)
    return str(folder)


def sample(model, *options) -> int:
    return main(["sample", "--class", "3", "1", "--device", "cpu", "--model", model, *options])


def test_images_tokens_and_the_work_are_told(llamagen, capsys):
    assert sample(llamagen, "--json", "--batch-size", "1", "--save-tokens", "tokens.safetensors") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [Image.open(file).size for file in facts["files"]] == [(6, 6), (6, 6)]
    assert (facts["forward_passes"], facts["velocity_evaluations"]) == (2 * 9, 0)
    saved, expected = load_file("tokens.safetensors"), load(llamagen, device="cpu").pack()([3, 1], seeds=[0, 0])
    assert saved.keys() == {"tokens", "latent"}
    assert saved["tokens"].dtype == torch.int64
    assert torch.equal(saved["tokens"], expected.tokens[0])
    assert torch.equal(saved["latent"], expected.latents)


def test_the_grid_and_the_trace_show_the_finished_images(llamagen, capsys):
    assert sample(llamagen, "-n", "2", "--grid", "--trace", "trace.gif", "--out", "grid.png") == 0
    assert Image.open("grid.png").size == (14, 14)
    assert Image.open("trace.gif").n_frames == 1
    assert "class 3" in capsys.readouterr().out


def test_the_trace_of_a_flow_shows_the_image_after_every_group_of_tokens(tmp_path, capsys):
    folder = tmp_path / "dar"
    Pipeline(tiny_flow(), tiny_dar(), Sampling(8.0, top_k=0, top_p=0.0, first_cfg=1.2)).save_pretrained(folder)
    assert sample(str(folder), "--trace", "trace.gif", "--first-cfg", "2", "--cfg", "3") == 0
    assert Image.open("trace.gif").n_frames == 3
    assert sample(str(folder), "--dry-run") == 0
    assert "guidance 0.2 to 7" in capsys.readouterr().out


def test_guided_tokens_reach_the_plan_and_the_images(llamagen, capsys):
    assert sample(llamagen, "--guided-tokens", "4", "--dry-run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert "guidance 1, top-k 0, top-p 0, temperature 1, 4 tokens guided" in facts["plan_in_words"]
    assert facts["forward_passes_per_batch"] == 9
    tokens = {}
    for name, options in {"none": ["--guided-tokens", "0"], "off": ["--cfg", "1"], "all": []}.items():
        assert sample(llamagen, "--save-tokens", f"{name}.safetensors", *options) == 0
        tokens[name] = load_file(f"{name}.safetensors")["tokens"]
    assert torch.equal(tokens["none"], tokens["off"])
    assert not torch.equal(tokens["none"], tokens["all"])


def test_without_guidance_half_the_memory_is_held(llamagen, capsys):
    held = []
    for options in ([], ["--guidance-scale", "1"]):
        assert sample(llamagen, "--json", *options) == 0
        held.append(json.loads(capsys.readouterr().out)["cache_bytes"])
    assert held[0] == 2 * held[1] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--smooth"], "smooth mixes the codes of whole maps"),
        (["--refine", "published"], "refine needs a backbone with masked passes"),
        (["--refine-clean"], "--refine-clean changes masked passes"),
        (["--steps", "5"], "steps is for continuous tokens"),
        (["--subnet", "2", "--full-scales", "1"], "RasterGPT has no subnets; VARiant needs VAR"),
        (["--guided-tokens", "-1"], "'-1' must be an integer of at least 0"),
        (["--model", "VAR", "--first-cfg", "3"], "--first-cfg is for next-token models, not VAR"),
        (["--model", "VAR", "--guided-tokens", "3"], "--guided-tokens is for next-token models, not VAR"),
        (["--tokenizer", "./nowhere"], "./nowhere: "),
        (
            ["--drafter", "LLAMAGEN", "--refiner", "LLAMAGEN", "--draft-scales", "1"],
            "has one model",
        ),
        (["--drafter", "VAR", "--refiner", "LLAMAGEN", "--draft-scales", "1"], "an image needs one for both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_status_2(llamagen, model, options, words, tmp_path, capsys):
    options = [{"VAR": model, "LLAMAGEN": llamagen}.get(option, option) for option in options]
    named = "--model" in options or "--drafter" in options
    try:
        status = main(["sample", "--class", "3", *([] if named else ["--model", llamagen]), *options])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["", "/tokenizer"])
def test_an_image_of_any_size_is_reconstructed(llamagen, place, capsys):
    Image.new("RGB", (90, 70), "teal").save("image.png")
    assert main(["reconstruct", "image.png", "--model", llamagen + place]) == 0
    assert "its reconstruction from 9 tokens (right); PSNR" in capsys.readouterr().out
    assert main(["reconstruct", "image.png", "--model", llamagen + place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 9


def test_the_plan_of_a_published_model_needs_no_download(capsys, monkeypatch):
    monkeypatch.setattr("var_toolkit.formats.hub.download", None)
    assert main(["sample", "--class", "207", "--model", "llamagen-xl", "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "RasterGPT 36 x 1280, guidance 0.75, top-k 0, top-p 0, temperature 1" in facts["plan_in_words"]
    assert facts["forward_passes_per_batch"] == 576
    assert "seconds_on_this_cpu_about" not in facts  # which multiply-adds do not tell


def test_the_published_models_are_listed_with_their_figures(capsys):
    assert main(["models", "llamagen*", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert {name: (row["resolution"], row["published_fid"]) for name, row in rows.items()} == {
        "llamagen-b": (256, 5.46), "llamagen-l": (256, 3.80), "llamagen-b-384": (384, 6.09),
        "llamagen-l-384": (384, 3.07), "llamagen-xl": (384, 2.62), "llamagen-xxl": (384, 2.34),
        "llamagen-3b": (384, 2.18),
        "llamagen-t2i-xl-256": (256, None), "llamagen-t2i-xl-512": (512, None),
    }  # fmt: skip
