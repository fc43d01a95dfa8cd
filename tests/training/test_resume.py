"""A run that was stopped or killed ends with the same bits as one that was not."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from var_toolkit.training.loop import TrainingStoppedError, train
from var_toolkit.training.objectives import objective_class

SCRIPT = """
import pickle, sys, torch
from pathlib import Path
from var_toolkit.training.loop import train
if __name__ == "__main__":
    torch.set_num_threads(2)
    recipe = pickle.loads(Path(sys.argv[1]).read_bytes())
    train(recipe, Path(sys.argv[2]), cache_dir=Path(sys.argv[3]), device="cpu")
"""


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("objective", ["classifier", "tokenizer", "var"])
def test_a_stopped_run_ends_like_an_uninterrupted_one(tiny, cache, tmp_path, weights, monkeypatch, objective):
    recipe = tiny(objective)
    whole = train(recipe, tmp_path / "whole", cache_dir=cache, device="cpu")
    cls = objective_class(objective)
    upkeep = cls.after_step

    def stop_after_four(self, batch, draws):
        if draws.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return upkeep(self, batch, draws)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "after_step", stop_after_four)
        with pytest.raises(TrainingStoppedError, match="after step 4 of 6; the same command continues"):
            train(recipe, tmp_path / "stopped", cache_dir=cache, device="cpu")
    resumed = train(recipe, tmp_path / "stopped", cache_dir=cache, device="cpu")
    assert_same_bits(weights(whole), weights(resumed))
    steps = [json.loads(line).get("step") for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()[1:]]
    assert steps == sorted(steps)
    assert set(steps) == set(range(1, 7))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_killed_run_ends_like_an_uninterrupted_one(tiny, cache, tmp_path, weights):
    recipe = tiny("var", checkpoint_minutes=0.0, steps=60, sample_every=100, validate_every=100)
    whole = train(recipe, tmp_path / "whole", cache_dir=cache, device="cpu")
    (tmp_path / "recipe.pickle").write_bytes(pickle.dumps(recipe))
    (tmp_path / "run.py").write_text(SCRIPT)
    out = tmp_path / "killed"
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "recipe.pickle"), str(out), str(cache)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for_lines(out / "log.jsonl", 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "final").exists()
    reached = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < reached < 60
    assert_same_bits(weights(whole), weights(train(recipe, out, cache_dir=cache, device="cpu")))


def wait_for_lines(path, count, process):
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_checkpoint_of_another_recipe_is_refused_and_names_the_field(tiny, cache, tmp_path):
    recipe = tiny("classifier", steps=2)
    train(recipe, tmp_path, cache_dir=cache, device="cpu")
    other = dataclasses.replace(recipe, optimiser=dataclasses.replace(recipe.optimiser, lr=0.5))
    with pytest.raises(ValueError, match=r"optimiser\.lr = 0\.001, but the recipe says 0\.5; .* another output"):
        train(other, tmp_path, cache_dir=cache, device="cpu")


def test_a_finished_run_goes_on_when_it_is_given_more_steps(tiny, cache, tmp_path, weights):
    short, long = (tiny("classifier", steps=n, schedule={"kind": "constant"}, ema=None) for n in (3, 5))
    train(short, tmp_path / "a", cache_dir=cache, device="cpu")
    again = train(short, tmp_path / "a", cache_dir=cache, device="cpu")
    assert again == tmp_path / "a" / "final"
    continued = train(long, tmp_path / "a", cache_dir=cache, device="cpu")
    straight = train(long, tmp_path / "b", cache_dir=cache, device="cpu")
    assert torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["step"] == 5
    assert weights(continued).keys() == weights(straight).keys()
