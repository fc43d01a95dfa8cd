"""Several processes see the same images as one, and reach the same weights."""

import dataclasses
import json

import pytest
import torch

from var_toolkit.locks import held
from var_toolkit.processes import Team, team_of_this_process
from var_toolkit.training.batches import stream
from var_toolkit.training.loop import train


@pytest.mark.parametrize(
    "objective",
    [
        "var",
        "tokenizer",
        "refiner",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("drafter", "cca", "variant", "hmar-mask")),
    ],
)
def test_two_processes_reach_the_weights_of_one(tiny, cache, tmp_path, weights, train_in_two, objective):
    changes = {"adversarial": 0.1, "discriminator_width": 8, "revive_every": 0}
    options = {"objective_options": changes} if objective == "tokenizer" else {}
    # A large epsilon: Adam's first steps otherwise blow rounding differences up to whole steps.
    optimiser = {"lr": 1e-3, "eps": 1e-3}
    recipe = tiny(objective, precision="fp32", steps=4, optimiser=optimiser, **options)
    alone = train(recipe, tmp_path / "alone", cache_dir=cache, device="cpu")
    # One of the objectives also saves memory, which changes no result.
    saving = {"accumulate": 2, "checkpoint_activations": True} if objective == "var" else {}
    together = train_in_two(dataclasses.replace(recipe, **saving), tmp_path / "two")
    expected, got = weights(alone), weights(together)
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=2e-5)


def test_flowar_learns_in_two_processes(tiny, tmp_path, train_in_two):
    """Its noise is each process's own, so the weights are not those of one process; the losses must still agree."""
    recipe = tiny("flowar", steps=3, log_every=1)
    final = train_in_two(recipe, tmp_path / "two")
    assert (final / "backbone" / "config.json").is_file()
    rows = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()[1:]]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)


@pytest.mark.parametrize(
    ("sample_every", "validate_every", "held_out", "ema"),
    [(1, 2, 8, 0.9), (1, 2, 8, None), (2, 1, 0, 0.9)],
)
@pytest.mark.slow
def test_shards_are_gathered_whenever_images_are_drawn(
    tiny, tmp_path, train_in_two, sample_every, validate_every, held_out, ema
):
    data = {"kind": "still-lifes", "count": 24, "validation_count": held_out}
    recipe = tiny("var", parallel="fsdp", data=data, ema=ema, steps=4, sample_every=sample_every,
                  validate_every=validate_every)  # fmt: skip
    train_in_two(recipe, tmp_path / "run")
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 4 // sample_every


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_that_go_on_end_with_the_bits_of_an_uninterrupted_run(
    tiny, tmp_path, weights, train_in_two, parallel
):
    recipe = tiny("var", parallel=parallel, precision="fp32", steps=4, schedule={"kind": "constant", "warmup": 0.0})
    whole = weights(train_in_two(recipe, tmp_path / "whole"))
    train_in_two(dataclasses.replace(recipe, steps=2), tmp_path / "parts")
    half = weights(tmp_path / "parts" / "final")
    resumed = weights(train_in_two(recipe, tmp_path / "parts"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole["head.weight"], half["head.weight"])


def test_the_batch_is_the_same_for_any_number_of_processes(tiny):
    class Numbers:
        def __len__(self):
            return 24

        def batches(self, rows, epoch):
            return rows

    recipe = tiny("classifier")

    def seen(size):
        teams = [Team(rank, size, torch.device("cpu")) for rank in range(size)]
        streams = [list(stream(Numbers(), recipe, team, range(7))) for team in teams]
        rows = [torch.cat([part[step][1] for part in streams]) for step in range(7)]
        chances = [torch.cat([part[step][0].per_image("x") for part in streams]) for step in range(7)]
        return rows, chances

    torch.testing.assert_close(seen(1), seen(4))


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(tiny):
    class Numbers:
        def __len__(self):
            return 24

        def batches(self, rows, epoch):
            return rows

    team = Team(0, 1, torch.device("cpu"))
    rows = torch.stack([batch for _, batch in stream(Numbers(), tiny("classifier"), team, range(6))])
    first, second = rows[:3].flatten(), rows[3:].flatten()
    assert sorted(first.tolist()) == list(range(24)) == sorted(second.tolist())
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1"}, "MASTER_PORT is not set"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "1"}, "RANK is 'x'"),
    ],
)
def test_what_a_scheduler_left_in_the_environment_is_told_in_one_line(
    tiny, cache, tmp_path, monkeypatch, variables, word
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{word}.*torchrun.*unset RANK and WORLD_SIZE") as caught:
        train(tiny("classifier"), tmp_path / "run", cache_dir=cache, device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_other_variables_of_a_scheduler_change_nothing(monkeypatch):
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "LOCAL_RANK"):
        monkeypatch.setenv(name, "3")
    with team_of_this_process("cpu") as team:
        assert (team.rank, team.size) == (0, 1)


def test_two_processes_share_one_lock_and_end_together_if_another_run_has_it(tiny, tmp_path, train_in_two):
    out = tmp_path / "busy"
    out.mkdir()
    with held(out, "busy"), pytest.raises(AssertionError, match="another run is training into"):
        train_in_two(tiny("classifier", steps=1), out)


def test_a_batch_larger_than_the_data_is_refused(tiny):
    with pytest.raises(ValueError, match="batch_size is 32, but there are only 24 images"):
        tiny("classifier", batch_size=32)
