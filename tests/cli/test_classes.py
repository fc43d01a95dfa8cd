"""`vargen classes`: what a model draws, by every kind of model."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from var_toolkit.cli import main
from var_toolkit.formats.facts import Facts
from var_toolkit.loading import load
from var_toolkit.pipeline import Pipeline


def told(capsys, *words) -> str:
    assert main(["classes", *words]) == 0
    return capsys.readouterr().out


def test_still_lifes_are_listed_with_what_their_names_are_made_of(capsys):
    lines = told(capsys).splitlines()
    assert len(lines) == 1003
    assert [len(line.split(", ")) for line in lines[:3]] == [10, 10, 10]
    assert lines[3 + 207].split() == ["207", "red", "cylinder", "on", "marble"]


def test_a_pattern_is_words_of_a_name_or_has_stars(capsys):
    assert "golden retriever" in told(capsys, "Retriever", "--model", "var-d16")
    assert len(told(capsys, "red*sand").splitlines()) == 10
    rows = json.loads(told(capsys, "hammerhead shark", "--model", "var-d16", "--json"))["classes"]
    assert rows == [{"label": 4, "name": "hammerhead", "synonyms": ["hammerhead shark"], "synset": "n01494475"}]


def test_what_matches_nothing_says_what_there_is(capsys):
    assert main(["classes", "zebra"]) == 2
    error = capsys.readouterr().err
    assert "'zebra' needs an ImageNet model, such as var-d16" in error
    assert "1000 classes" in error
    assert main(["classes", "zebar", "--model", "var-d16"]) == 2
    assert "'zebra'" in capsys.readouterr().err


def test_models_without_names_say_so(model, capsys):
    assert "no class names; labels 0 to 9" in told(capsys, "--model", model)
    facts = json.loads(told(capsys, "--model", model, "--json"))
    assert facts["named"] is False
    assert len(facts["classes"]) == 10
    assert main(["classes", "cat", "--model", model]) == 2
    assert "0 to 9" in capsys.readouterr().err


def test_a_model_trained_on_folders_before_names_were_kept_says_so(model, tmp_path, capsys):
    old = load(model, device="cpu")
    old.facts = replace(Facts(), recipe="data:\n  kind: folders\n")
    old.save_pretrained(tmp_path / "old")
    assert "without its class names; labels 0 to 9" in told(capsys, "--model", str(tmp_path / "old"))


def test_names_of_a_model_s_own_are_listed_and_drawn(model, tmp_path, capsys):
    pipe = load(model, device="cpu")
    Pipeline(pipe.tokenizer, pipe.backbone, class_names=[f"pet {i}" for i in "abcdefghij"]).save_pretrained("pets")
    assert told(capsys, "--model", "pets").splitlines()[2].split() == ["2", "pet", "c"]
    assert main(["sample", "--model", "pets", "--class", "pet-c", "--out", "c.png"]) == 0
    assert "class 2, pet c" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["stilllife-tokenizer", "var-d99"])
def test_a_model_that_draws_nothing_is_refused(model, capsys):
    assert main(["classes", "--model", model]) == 2
    assert model in capsys.readouterr().err


def test_listing_the_zoo_s_classes_needs_no_torch():
    code = "import sys; from var_toolkit.cli import main; main(['classes', 'zebra', '--model', 'var-d16']); print('torch' in sys.modules)"  # noqa: E501
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "False"
