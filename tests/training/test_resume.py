"""A run that was stopped or killed ends with the same bits as one that was not."""

import dataclasses
import json
import os
import shutil
import signal
import time

import pytest
import torch
from forked import start

from var_toolkit.training.journal import Journal
from var_toolkit.training.loop import TrainingStoppedError, train
from var_toolkit.training.objectives import Loss
from var_toolkit.training.registry import objective_class, objective_names


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True)


# The loop is the same; `tokenizer` and `var` stay among the quick ones.
LONG = ("kl", "raster-tokenizer", "bits-tokenizer", "infinity", "flowar", "mar", "himar", "acdit", "xar", "ecar")
RUNS = [
    *(pytest.param(name, "adamw", marks=[pytest.mark.slow] * (name in LONG)) for name in objective_names()),
    ("var", "muon"),
]


@pytest.mark.parametrize(("objective", "optimiser"), RUNS)
def test_a_stopped_run_ends_like_an_uninterrupted_one(
    tiny, cache, noisy_cache, tmp_path, weights, monkeypatch, objective, optimiser
):
    cache = noisy_cache if objective == "varedit" else cache
    recipe = tiny(objective, optimiser={"lr": 1e-3, "kind": optimiser})
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
    # A line of the log is the mean of four steps; the checkpoint is of any of them.
    recipe = tiny("var", checkpoint_minutes=0.0, steps=30, log_every=4, sample_every=100, validate_every=100)
    whole = train(recipe, tmp_path / "whole", cache_dir=cache, device="cpu")
    out = tmp_path / "killed"
    process = start(train, recipe, out, cache_dir=cache, device="cpu")
    wait_for_lines(out / "log.jsonl", 3, process)
    process.kill()
    process.join()
    assert not (out / "final").exists()
    reached = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < reached < 30
    assert_same_bits(weights(whole), weights(train(recipe, out, cache_dir=cache, device="cpu")))
    assert without_times(out / "log.jsonl") == without_times(tmp_path / "whole" / "log.jsonl")
    assert (out / "final" / "facts.json").read_bytes() == (tmp_path / "whole" / "final" / "facts.json").read_bytes()
    assert not [path.name for path in out.rglob(".*")]


def without_times(path):
    """The lines of a log without the one number in them that a clock decides."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [json.dumps({key: value for key, value in line.items() if key != "images_per_second"}) for line in lines]


def wait_for_lines(path, count, process):
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert process.exitcode is None, "the run ended by itself"
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
    assert_same_bits(weights(continued), weights(straight))


def test_a_finished_run_says_so_and_delivers_again(tiny, cache, tmp_path, weights, capsys):
    recipe = tiny("var", steps=2)
    before = weights(train(recipe, tmp_path, cache_dir=cache, device="cpu"))
    assert "finished already" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "final" / "tokenizer")
    final = train(recipe, tmp_path, cache_dir=cache, device="cpu")
    assert f"{tmp_path}: finished already, after step 2" in capsys.readouterr().out
    assert_same_bits(before, weights(final))
    assert (final / "tokenizer").is_dir()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_another_length_is_noted_once_and_the_log_before_stays(tiny, cache, tmp_path):
    short, long = (tiny("classifier", steps=n) for n in (2, 3))
    train(short, tmp_path, cache_dir=cache, device="cpu")
    before = (tmp_path / "log.jsonl").read_text()
    for _ in range(2):
        train(long, tmp_path, cache_dir=cache, device="cpu")
    after = (tmp_path / "log.jsonl").read_text()
    assert after.startswith(before)
    notes = [json.loads(line) for line in after.splitlines() if "steps changed" in line]
    assert notes == [{"step": 2, "note": "steps changed from 2 to 3; the schedule follows the new length from here"}]


@pytest.mark.parametrize(
    ("objective", "part", "name", "other", "told"),
    [
        ("var", "optimiser", "kind", {"lr": 1e-3, "kind": "muon"}, r"optimiser.kind = 'adamw'.*'muon'"),
        ("tokenizer", "objective_options", "edges", {"edges": 1.0}, r"objective_options.edges = 0.0.*1.0"),
    ],
    ids=["kind of optimiser", "option of objective"],
)
def test_what_a_checkpoint_is_too_old_to_know_has_its_default(
    objective, part, name, other, told, tiny, cache, tmp_path
):
    short, long = (tiny(objective, steps=n) for n in (2, 3))
    train(short, tmp_path, cache_dir=cache, device="cpu")
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    recipe = json.loads(content["recipe"])
    del recipe[part][name]
    torch.save(content | {"recipe": json.dumps(recipe)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=told):
        train(tiny(objective, **{part: other}), tmp_path, cache_dir=cache, device="cpu")
    train(long, tmp_path, cache_dir=cache, device="cpu")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"pickle"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tiny, cache, tmp_path, damage):
    recipe = tiny("classifier", steps=1)
    train(recipe, tmp_path, cache_dir=cache, device="cpu")
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged") as caught:
        train(recipe, tmp_path, cache_dir=cache, device="cpu")
    assert "\n" not in str(caught.value)


def test_broken_weights_are_never_written(tiny, cache, tmp_path, monkeypatch):
    cls = objective_class("classifier")
    loss = cls._loss

    def breaks_at_the_third_step(self, batch, draws):
        total, terms = loss(self, batch, draws)
        factor = float("nan") if draws.step == 2 else 1.0
        return Loss(total * factor, {**terms, "loss": terms["loss"] * factor})

    monkeypatch.setattr(cls, "_loss", breaks_at_the_third_step)
    recipe = tiny("classifier", checkpoint_minutes=0.0, log_every=6)
    with pytest.raises(FloatingPointError, match="loss is nan near step 3"):
        train(recipe, tmp_path, cache_dir=cache, device="cpu")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 2
    assert all(bool(tensor.isfinite().all()) for tensor in saved["networks"]["classifier"].values())


def test_the_log_has_null_where_json_has_no_number(tmp_path):
    journal = Journal(tmp_path, active=True)
    journal.begin({"recipe": "{}"})
    journal.write(1, {"loss": 0.5, "norm": float("inf"), "psnr": float("nan")})
    journal.close()
    line = (tmp_path / "log.jsonl").read_text().splitlines()[1]
    assert line == '{"step": 1, "loss": 0.5, "norm": null, "psnr": null}'
