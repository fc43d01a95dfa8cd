"""The folder of a run: one run at a time, nothing lost on a full disk, nothing left by what is refused."""

import errno
import os
import subprocess
import sys
import threading

import pytest
import torch

from var_toolkit.locks import held
from var_toolkit.training.loop import train
from var_toolkit.training.registry import objective_class

FULL = os.strerror(errno.ENOSPC)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_in_one_folder_is_refused_and_the_first_goes_on(tiny, cache, tmp_path, monkeypatch):
    cls, recipe = objective_class("classifier"), tiny("classifier", steps=2)
    upkeep, complaints = cls.after_step, []

    def start_another(self, batch, draws):
        if threading.current_thread() is threading.main_thread() and not complaints:
            with pytest.raises(ValueError, match=r"another run is training into .*run") as caught:
                train(recipe, tmp_path / "run", cache_dir=cache, device="cpu")
            complaints.append(caught)
        return upkeep(self, batch, draws)

    monkeypatch.setattr(cls, "after_step", start_another)
    final = train(recipe, tmp_path / "run", cache_dir=cache, device="cpu")
    assert complaints
    assert names(final.parent) == ["checkpoint.pt", "final", "log.jsonl"]


def test_the_lock_of_a_killed_run_does_not_block_the_next(tiny, cache, tmp_path):
    lines = f"""
import os, signal
from pathlib import Path
from var_toolkit.locks import held
with held(Path({str(tmp_path)!r}), "busy"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", lines])
    assert names(tmp_path) == [".lock"]
    train(tiny("classifier", steps=1), tmp_path, cache_dir=cache, device="cpu")
    assert ".lock" not in names(tmp_path)


@pytest.mark.parametrize("torch_hides_it", [True, False])
def test_a_full_disk_keeps_the_checkpoint_and_the_same_run_goes_on(
    tiny, cache, tmp_path, weights, monkeypatch, torch_hides_it
):
    recipe = tiny("classifier", checkpoint_minutes=0.0)
    whole = weights(train(recipe, tmp_path / "whole", cache_dir=cache, device="cpu"))
    save = torch.save

    def save_until_full(content, handle):
        if content["step"] < 4:
            save(content, handle)
        elif torch_hides_it:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1646784 vs 1646672")
        else:
            raise OSError(errno.ENOSPC, FULL)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_until_full)
        with pytest.raises(OSError, match=FULL) as caught:
            train(recipe, tmp_path / "run", cache_dir=cache, device="cpu")
    assert caught.value.filename == str(tmp_path / "run" / "checkpoint.pt")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert not [name for name in names(tmp_path / "run") if name.startswith(".")]
    resumed = weights(train(recipe, tmp_path / "run", cache_dir=cache, device="cpu"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_full_disk_is_told_with_the_name_of_the_log(tiny, cache, tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    recipe = tiny("classifier", steps=2)
    train(recipe, tmp_path / "other", cache_dir=cache, device="cpu")
    from var_toolkit.training.journal import Journal

    journal = Journal(tmp_path, active=True)
    journal.begun = True
    with pytest.raises(OSError, match=FULL) as caught:
        journal.write(1, {"loss": 0.5})
    assert caught.value.filename == str(tmp_path / "log.jsonl")


@pytest.mark.parametrize(("objective", "word"), [("classifier", "only 6 images"), ("var", "num_classes is 1000")])
def test_what_is_refused_leaves_nothing_behind(tiny, cache, tmp_path, image_folders, objective, word):
    data = {"kind": "folders", "root": image_folders("few", "ab"), "size": 64, "workers": 0}
    with pytest.raises(ValueError, match=word):
        train(tiny(objective, data=data), tmp_path / "runs" / "one", cache_dir=cache, device="cpu")
    assert names(tmp_path) == ["few"]


@pytest.mark.parametrize("name", ["final", "samples"])
def test_a_file_where_a_folder_will_be_is_refused_before_any_work(tiny, tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is a file"):
        train(tiny("classifier"), tmp_path, cache_dir=tmp_path / "cache", device="cpu")
    assert names(tmp_path) == [name]


def test_a_final_folder_of_somebody_else_is_not_replaced(tiny, tmp_path):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="final holds "):
        train(tiny("classifier"), tmp_path, cache_dir=tmp_path / "cache", device="cpu")
    assert names(tmp_path / "final") == ["thesis.tex"]


def test_a_file_as_the_folder_of_the_run_is_refused_before_any_work(tiny, tmp_path):
    (tmp_path / "run").touch()
    for out in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(ValueError, match="run is not a folder"):
            train(tiny("classifier"), out, cache_dir=tmp_path / "cache", device="cpu")
    assert names(tmp_path) == ["run"]


def test_a_folder_that_is_drawn_into_is_busy_for_training(tiny, cache, tmp_path):
    with held(tmp_path, "busy"), pytest.raises(ValueError, match="another run is training into"):
        train(tiny("classifier", steps=1), tmp_path, cache_dir=cache, device="cpu")
