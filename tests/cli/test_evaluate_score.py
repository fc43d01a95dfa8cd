"""`vargen evaluate score`, as a module: what it prints, and its complaints."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from var_toolkit.cli import evaluate_score, main
from var_toolkit.evaluation.scores import NAMES
from var_toolkit.still_life.data_set import render


@pytest.fixture
def parsed():
    """Parse the options of the step and run it."""
    parser = argparse.ArgumentParser()
    evaluate_score.add_arguments(parser)

    def run(*options: str) -> None:
        evaluate_score.run(parser.parse_args(options))

    return run


@pytest.fixture
def sets() -> None:
    """Two small sets of still lifes in the current folder, as an evaluator's files."""
    for name, first in (("a", 0), ("b", 100)):
        images = render(range(first, first + 40), range(40)).permute(0, 2, 3, 1)
        np.savez(f"{name}.npz", arr_0=images.numpy())


def test_the_table_names_figures_settings_and_doubts(parsed, sets, capsys):
    parsed("--images", "a.npz", "--reference", "b.npz", "--features", "stilllife", "-n", "30")
    told = capsys.readouterr()
    assert "a.npz (30 images of 64x64)" in told.out
    names = ("distance", "spatial distance", "classifier score", "kernel distance", "precision", "recall")
    for name in names:
        assert f"\n{name} " in told.out
    assert not re.search("FID|KID|Inception", told.out + told.err)  # figures of this extractor are not those
    assert "torch_fidelity 0.4" in told.out
    assert told.err.startswith("note: distance, spatial distance: 30 images of a.npz are too few for 128 pooled")


def test_json_is_one_object(parsed, sets, capsys):
    parsed("--images", "a.npz", "--reference", "b.npz", "--features", "stilllife", "--json")
    report = json.loads(capsys.readouterr().out)
    assert list(report)[:6] == ["fid", "sfid", "isc", "kid", "precision", "recall"]
    assert report["features"] == "stilllife"
    assert report["reference"] == {"source": "b.npz", "kind": "images", "count": 40, "pixels": "64x64"}


def test_missing_figures_are_dashes(parsed, sets, capsys):
    np.savez("statistics.npz", mu=np.zeros(128), sigma=np.eye(128))
    parsed("--images", "a.npz", "--reference", "statistics.npz", "--features", "stilllife")
    told = capsys.readouterr()
    assert "(statistics)" in told.out
    assert told.out.count(" -\n") == 4
    assert "note: kernel distance, precision, recall:" in told.err


def test_a_folder_that_says_how_it_was_sampled_is_quoted(parsed, sets, capsys):
    folder = Path("images")
    folder.mkdir()
    for i, image in enumerate(torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
    (folder / "settings.json").write_text('{"model": "x", "per_class": 2, "plan": {"steps": [{"guidance": 1.5}]}}')
    parsed("--images", "images", "--reference", "a.npz", "--features", "stilllife")
    out = capsys.readouterr().out
    assert "model        x\n" in out
    assert "per class    2\n" in out
    assert "guidance" not in out  # --json has it all


def png(path: str, content: bytes | None = None) -> None:
    """An image of noise, or a file that says it is one."""
    Path(path).parent.mkdir(exist_ok=True)
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    if content is not None:
        Path(path).write_bytes(content)


@pytest.fixture
def wrong() -> None:
    """What people give by mistake, in the current folder."""
    Path("empty").mkdir()
    png("mixed/a.png")
    Path("mixed/notes.txt").write_text("text")
    png("corrupt/a.png")
    png("corrupt/b.png", Path("corrupt/a.png").read_bytes()[:900])
    png("shards/a.png")
    Path("shards/shard-00000.tar").write_bytes(b"no tar file" * 100)
    np.savez("keys.npz", images=np.zeros(3))
    Path("weights.pth").write_bytes(b"no weights")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", "nowhere"], "nowhere"),
        (["--images", ""], "'' is an empty path"),
        (["--images", "empty"], "empty contains no images"),
        (["--images", "mixed"], "mixed holds 1 image"),
        (["--images", "corrupt"], "corrupt/b.png"),
        (["--images", "shards"], "shards/shard-00000.tar"),
        (["--images", "keys.npz"], "keys.npz"),
        (["--images", "a.npz", "-n", "41"], "a.npz has 40 images, not 41"),
        (["--images", "a.npz", "--reference", "empty"], "empty contains no images"),
        (["--images", "a.npz", "--features", "inception", "--inception-weights", "weights.pth"], "weights.pth"),
        (["--images", "a.npz", "--features", "inception", "--inception-weights", "nowhere.pth"], "nowhere.pth"),
        (["--images", "a.npz", "--inception-weights", "weights.pth"], "the features are 'stilllife'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_before_the_long_work(options, words, sets, wrong, monkeypatch, capsys):
    monkeypatch.setattr("var_toolkit.evaluation.scores._extracted", None)
    assert main(["evaluate", "score", "--reference", "stilllife", *options]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(told) == 1
    assert words in told[0]


def test_equal_sets_print_a_kernel_distance_of_zero_and_say_why(parsed, sets, capsys):
    parsed("--images", "a.npz", "--reference", "a.npz", "--features", "stilllife")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("kernel distance"))
    assert line.split()[2] == "0.00000"
    assert float(line.split()[4].rstrip(":")) < 0
    assert "unbiased" in line


def test_inceptions_figures_keep_their_names_and_the_scale_of_kid_is_printed():
    assert list(NAMES["inception"].values())[:4] == ["FID", "spatial FID", "Inception Score", "KID"]
    assert "12.5" in evaluate_score._about_kernel(0.0125)
