"""`--method` as a user types it."""

import json
import sys
from pathlib import Path

import pytest

from var_toolkit.cli import main

METHOD = """
from dataclasses import replace

def warmer(plan, *, temperature: float = 2.0):
    return replace(plan, steps=tuple(step.with_head(temperature=temperature) for step in plan.steps))
"""


@pytest.fixture(autouse=True)
def _a_method_here(monkeypatch):
    Path("warmer_method.py").write_text(METHOD)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    sys.modules.pop("warmer_method", None)


@pytest.mark.parametrize(("given", "temperature"), [([], "temperature 2"), (["temperature=5e-1"], "temperature 0.5")])
def test_a_dry_run_shows_what_a_method_does(given, temperature, model, capsys):
    assert (
        main(["sample", "--class", "3", "--model", model, "--dry-run", "--method", "warmer_method:warmer", *given]) == 0
    )
    assert temperature in capsys.readouterr().out


def test_what_was_drawn_is_told_with_its_plan(model, capsys):
    command = ["sample", "--class", "3", "--model", model, "--json", "--method", "warmer_method:warmer"]
    assert main([*command, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == planned["plan"]
    assert "temperature 2" in planned["plan_in_words"]


def test_a_set_of_samples_has_a_method_and_goes_on_only_with_the_same(model, capsys):
    command = ["evaluate", "sample", "--model", model, "--classes", "0-1", "--per-class", "1", "--out", "set"]
    assert main([*command, "--method", "warmer_method:warmer", "temperature=3"]) == 0
    assert json.loads(Path("set/settings.json").read_text())["plan"]["steps"][0]["head"]["temperature"] == 3
    assert main([*command, "--method", "warmer_method:warmer", "temperature=3"]) == 0
    assert main([*command, "--method", "warmer_method:warmer"]) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["warmer_method:warmer", "temperature"], "'temperature' must be written option=value"),
        (["warmer_method:warmer", "temperature=["], "the value is not YAML"),
        (["warmer_method:warmer", "temperature=-1"], "temperature is -1.0"),
        (["warmer_method:warmer", "temperature=1", "temperature=2"], "temperature is given twice"),
        (["warmer_method:colder"], "warmer_method.py has no function 'colder'"),
        (["warmer_method"], "did you mean warmer_method:FUNCTION?"),
        (["colder"], "is not installed; give module:function\n"),
    ],
)
def test_a_method_that_does_not_fit_is_one_line(given, words, model, capsys):
    assert main(["sample", "--class", "3", "--model", model, "--method", *given]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
