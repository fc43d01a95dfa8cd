"""Several processes see the same pictures as one, and reach the same weights."""

import os
import pickle
import subprocess
import sys

import pytest
import torch

from var_toolkit.training.batches import stream
from var_toolkit.training.loop import train
from var_toolkit.training.processes import Team

SCRIPT = """
import pickle, sys, torch
from pathlib import Path
from var_toolkit.training.loop import train
if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe = pickle.loads(Path(sys.argv[1]).read_bytes())
    train(recipe, Path(sys.argv[2]), cache_dir=Path(sys.argv[3]), device="cpu")
"""


@pytest.mark.parametrize(("objective", "parallel"), [("var", "ddp"), ("var", "fsdp"), ("tokenizer", "ddp")])
def test_two_processes_reach_the_weights_of_one(tiny, cache, tmp_path, weights, objective, parallel):
    changes = {"adversarial": 0.1, "discriminator_width": 8, "revive_every": 0}
    options = {"objective_options": changes} if objective == "tokenizer" else {}
    # A large epsilon: Adam's first steps otherwise blow rounding differences up to whole steps.
    optimiser = {"lr": 1e-3, "eps": 1e-3}
    recipe = tiny(objective, parallel=parallel, precision="fp32", steps=4, optimiser=optimiser, **options)
    alone = train(recipe, tmp_path / "alone", cache_dir=cache, device="cpu")
    (tmp_path / "recipe.pickle").write_bytes(pickle.dumps(recipe))
    (tmp_path / "run.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [tmp_path / "run.py", tmp_path / "recipe.pickle", tmp_path / "two", cache]
    done = subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, got = weights(alone), weights(tmp_path / "two" / "final")
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=2e-5)


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
        chances = [torch.cat([part[step][0].per_picture("x") for part in streams]) for step in range(7)]
        return rows, chances

    torch.testing.assert_close(seen(1), seen(4))


def test_an_epoch_shows_every_picture_once_and_the_next_in_another_order(tiny):
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


def test_a_batch_larger_than_the_data_is_refused(tiny, cache, tmp_path):
    with pytest.raises(ValueError, match="batch_size is 32, but there are only 24 pictures"):
        train(tiny("classifier", batch_size=32), tmp_path, cache_dir=cache, device="cpu")
