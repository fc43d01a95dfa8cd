"""`vargen evaluate sample` as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest

from var_toolkit.cli import main


def evaluate(model, *options) -> int:
    return main(["evaluate", "sample", "--model", model, "--device", "cpu", *options])


def test_a_set_is_drawn_told_and_continued(model, capsys):
    command = [model, "--classes", "0-3,7", "--per-class", "2", "--out", "set", "--npz", "set.npz"]
    assert evaluate(*command) == 0
    assert len(list(Path("set").glob("*.png"))) == 10
    assert np.load("set.npz")["arr_0"].shape == (10, 64, 64, 3)
    told = capsys.readouterr()
    assert told.out.startswith("set: 10 images, 10 of them drawn now at ")
    assert told.err == "set: 10 images to draw\n"
    assert evaluate(*command) == 0
    assert capsys.readouterr().out == "set: 10 images; packed in set.npz\n"


def test_shards_are_drawn_packed_continued_and_measured(model, capsys):
    command = [model, "--classes", "0-3", "--per-class", "6", "--out", "set", "--shards", "3", "--npz", "set.npz"]
    assert evaluate(*command) == 0
    assert sorted(path.name for path in Path("set").glob("*.*")) == [
        "settings.json", "shard-00000.tar", "shard-00001.tar", "shard-00002.tar",
    ]  # fmt: skip
    assert np.load("set.npz")["arr_0"].shape == (24, 64, 64, 3)
    Path("set/shard-00001.tar").unlink()
    capsys.readouterr()
    assert evaluate(*command) == 0
    assert "set: 16 of 24 images exist already; 8 to draw" in capsys.readouterr().err
    assert main(["evaluate", "score", "--images", "set", "--reference", "set.npz", "--features", "stilllife"]) == 0
    assert "set (24 images of 64x64)" in capsys.readouterr().out
    assert evaluate(*command[:-4]) == 2
    assert 'was started with files "3 shards", not "one an image"' in capsys.readouterr().err


def test_the_folder_of_a_packed_set_is_made(model):
    command = [model, "--classes", "0", "--per-class", "1", "--out", "set", "--npz", "new/folder/set.npz"]
    assert evaluate(*command) == 0
    assert np.load("new/folder/set.npz")["arr_0"].shape == (1, 64, 64, 3)


def test_more_images_than_can_be_listed_are_refused_by_name(model, capsys):
    assert evaluate(model, "--classes", "0", "--per-class", "9" * 20, "--out", "set") == 2
    assert "per" in (error := capsys.readouterr().err)
    assert "9" * 20 in error
    assert not Path("set").exists()


def test_json_is_one_object(model, capsys):
    assert evaluate(model, "--classes", "3", "--per-class", "2", "--out", "set", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["folder"], facts["images"], facts["added"], facts["npz"]) == ("set", 2, 2, None)
    assert facts["images_per_second"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--classes", "5-12"], "classes are 0 to 9"),
        (["--classes", "-1"], "classes are 0 to 9"),
        (["--per-class", "0"], "at least 1"),
        (["--npz", "set.zip"], "must end in .npz"),
        (["--shards", "0"], "at least 1"),
        (["--shards", "64"], "shards is 64; it must be from 1 to 63, the number of batches"),
        (["--top-k", "-1"], "--top-k"),
        (["--out", "/proc/nowhere"], "cannot write"),
    ],
)
def test_bad_input_is_one_line(model, options, words, capsys):
    try:
        status = evaluate(model, "--out", "set", *options)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert words in error
    assert error.count("\n") == 1
    assert not list(Path().glob("set/*.png"))


def test_another_guidance_in_the_same_folder_is_refused(model, capsys):
    assert evaluate(model, "--classes", "3", "--per-class", "1", "--out", "set") == 0
    assert evaluate(model, "--classes", "3", "--per-class", "1", "--out", "set", "--cfg", "3") == 2
    assert "cfg 1.5, not 3.0" in capsys.readouterr().err
