"""Trackers show what is in the log and in `samples/`; a run that goes on continues in the same tracked run."""

import json
import sys
from dataclasses import replace

import pytest

from var_toolkit.training.loop import train
from var_toolkit.training.trackers import TRACKERS, open_tracker, require_tracker

# What Weights & Biases and trackio have in common, and writes down how it is called.
FAKE = """
import json
from pathlib import Path

class Run:
    def log(self, values, step=None):
        told("log", {"values": {k: str(v) for k, v in values.items()}, "step": step})
    def define_metric(self, name, step_metric):
        told("define_metric", {"name": name, "step_metric": step_metric})
    def finish(self):
        told("finish", {})

def told(call, given):
    with open(Path(__file__).with_suffix(".calls"), "a") as file:
        file.write(json.dumps([call, given]) + "\\n")

def init(**given):
    told("init", given)
    return Run()

def Image(path):
    assert Path(path).is_file()
    return Path(path).name
"""

FAILING = """
tell = told

def told(call, given):
    tell(call, given)
    if call == "log" and given["step"] != 1:
        raise OSError("no\\nroute")
"""


def rows(out):
    """The numbers in the log, by step and name; several lines may be of one step."""
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[1:]]
    return {(row["step"], name): value for row in found for name, value in row.items() if isinstance(value, float)}


@pytest.fixture
def trained(tiny, cache, tmp_path):
    """Trains in two parts; returns the folder of the run."""

    def run(kind):
        recipe = tiny("var", steps=4, sample_every=2, validate_every=2, ema=None, schedule={"kind": "constant"})
        for steps in (2, 4, 4):  # the third time it is finished
            train(replace(recipe, steps=steps), tmp_path / "run", cache_dir=cache, device="cpu", track=kind)
        return tmp_path / "run"

    return run


def test_tensorboard_has_the_numbers_of_the_log_and_the_images(trained):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = trained("tensorboard")
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    shown = {
        (one.step, name): pytest.approx(one.value, rel=1e-4)
        for name in events.Tags()["scalars"]
        for one in events.Scalars(name)
    }
    assert shown == rows(out)
    assert {name for _, name in shown} >= {"loss", "validation_loss", "lr"}
    assert [one.step for one in events.Images("samples")] == [2, 4]


@pytest.mark.parametrize("first", [0, 2], ids="from step {}".format)
def test_tensorboard_shows_no_step_twice_that_a_run_repeats(first, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begun, value in ((0, 1.0), (first, 2.0)):
        tracker = open_tracker("tensorboard", tmp_path, {}, begun)
        for step in range(begun + 1, 4):
            tracker.scalars(step, {"loss": value})
        tracker.close()
    shown = [(one.step, one.value) for one in EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")]
    assert shown == [(step, 1.0 if step <= first else 2.0) for step in (1, 2, 3)]


@pytest.mark.parametrize("kind", [kind for kind in TRACKERS if kind != "tensorboard"])
def test_a_service_has_the_numbers_of_the_log_and_the_images_in_one_run(kind, trained, tmp_path, monkeypatch):
    (tmp_path / f"{kind}.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(f"{kind.upper()}_PROJECT", "mine")
    monkeypatch.delitem(sys.modules, kind, raising=False)
    out = trained(kind)
    calls = [json.loads(line) for line in (tmp_path / f"{kind}.calls").read_text().splitlines()]
    begun = [given for call, given in calls if call == "init"]
    assert len(begun) == 2
    assert begun[0]["name"] == begun[1]["name"] == (out / "tracked.txt").read_text().strip()
    assert {one["project"] for one in begun} == {"mine"}
    assert {one["resume"] for one in begun} == {"allow"}
    assert begun[0]["config"]["batch_size"] == 8
    assert [call for call, _ in calls].count("finish") == 2
    shown, images = {}, []
    for call, given in calls:
        if call == "log":
            values = given["values"]
            step = int(values.pop("step")) if kind == "wandb" else given["step"]
            images += [(step, values.pop("samples"))] if "samples" in values else []
            shown |= {(step, name): float(value) for name, value in values.items()}
    assert shown == rows(out)
    assert images == [(2, "0000002.png"), (4, "0000004.png")]


def test_a_service_that_cannot_begin_is_one_line_and_leaves_nothing(tiny, cache, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("def init(**given):\n    raise RuntimeError('no API key\\nconfigured')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match="track is wandb, which cannot begin: no API key configured"):
        train(tiny("classifier", steps=1), tmp_path / "run", cache_dir=cache, device="cpu", track="wandb")
    assert not (tmp_path / "run").exists()


def test_a_service_that_fails_later_is_told_once_and_ends_no_run(tiny, cache, tmp_path, monkeypatch, capsys):
    (tmp_path / "trackio.py").write_text(FAKE + FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    recipe = tiny("classifier", steps=4, log_every=1)
    final = train(recipe, tmp_path / "run", cache_dir=cache, device="cpu", track="trackio")
    assert final.is_dir()
    assert {step for step, _ in rows(tmp_path / "run")} == {1, 2, 3, 4}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "tracking ends" in line]
    assert "no route" in line
    assert str(tmp_path / "run" / "log.jsonl") in line
    assert '"finish"' in (tmp_path / "trackio.calls").read_text()


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_tracker_that_is_not_installed_says_how_to_install_it(kind, monkeypatch):
    monkeypatch.setattr("var_toolkit.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"track is {kind}, which is not installed: pip install .*") as caught:
        require_tracker(kind)
    assert "\n" not in str(caught.value)


def test_an_unknown_tracker_is_named():
    with pytest.raises(ValueError, match="track is 'mlflow'; allowed: tensorboard, wandb, trackio"):
        require_tracker("mlflow")
