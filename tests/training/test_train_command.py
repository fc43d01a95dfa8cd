"""`vargen train`, as a user runs it: from a recipe to images."""

import json
from pathlib import Path

import pytest
import yaml

from var_toolkit.cli import main


@pytest.fixture
def command(settings, cache, tmp_path):
    """Runs `vargen train` on settings, or on a path; returns the exit status."""

    def run(recipe):
        path = recipe
        if isinstance(recipe, dict):
            path = tmp_path / "recipe.yaml"
            path.write_text(yaml.safe_dump(recipe))
        return main(["train", str(path), "--out", str(tmp_path / "run"), "--cache", str(cache), "--device", "cpu"])

    return run


def test_a_run_is_trained_and_then_drawn_from(settings, command, tmp_path, capsys):
    for _ in range(2):  # the second time it is finished
        assert command(settings("var", steps=2)) == 0
    final = tmp_path / "run" / "final"
    assert str(final) in capsys.readouterr().out
    drawing = ["sample", "--model", str(final), "--class", "red sphere on sand", "3", "--seed", "5"]
    assert main([*drawing, "--device", "cpu", "--out", str(tmp_path / "drawn"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["files"]) == len(list((tmp_path / "drawn").glob("*.png"))) == 2
    assert facts["classes"][1] == 3


def test_an_unknown_key_is_one_line_with_the_nearest(settings, command, tmp_path, capsys):
    assert command(settings("var") | {"batchsize": 8}) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'batchsize'" in error
    assert "'batch_size'" in error
    assert not (tmp_path / "run").exists()


def test_a_recipe_of_the_package_is_found_by_its_name(tmp_path, monkeypatch, capsys):
    read = {}

    def train(recipe, out, **options):
        read.update(recipe=recipe, out=out)
        return out / "final"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("var_toolkit.training.loop.train", train)
    assert main(["train", "stilllife-var"]) == 0
    assert read["out"] == Path("runs/stilllife-var")
    assert read["recipe"].tokenizer == "stilllife-tokenizer"
    assert main(["train", "stillife-var"]) == 2
    assert "stilllife-var" in capsys.readouterr().err


def test_a_missing_recipe_is_one_line_with_its_path(command, tmp_path, capsys):
    assert command(tmp_path / "none.yaml") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none.yaml" in error
