"""An image that cannot be read: the run ends with a checkpoint and one line, or goes on with another of its class."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from var_toolkit.cli import main
from var_toolkit.images import ImageFileError
from var_toolkit.training.loop import train
from var_toolkit.training.recipe import recipe_from

KINDS = {"cut": lambda whole: whole[:2000], "empty": lambda whole: b"", "page": lambda whole: b"<html>404</html>"}


@pytest.fixture
def recipe_for(settings):
    """A recipe for a tokenizer on the folder, without its discriminator."""

    def make(root, workers=0, **changes):
        data = {"kind": "folders", "root": root, "size": 64, "workers": workers}
        values = settings("tokenizer", data=data, batch_size=2, objective_options={}, precision="fp32", steps=9)
        model = values["model"] | {"ch_mult": [1, 1, 1, 1]}
        return values | {"model": model, "log_every": 1} | changes

    return make


@pytest.fixture
def damaged(image_folders):
    """A root of two classes; one image of the second is damaged."""
    root = image_folders("train", "ab", 4)
    path = Path(root) / "b" / "1.png"
    whole = path.read_bytes()

    def make(kind="cut"):
        path.write_bytes(KINDS[kind](whole))
        return root, path, lambda: path.write_bytes(whole)

    return make


@pytest.fixture
def from_start(monkeypatch):
    """The first codes need no images, so that the damaged one is met while training."""
    from var_toolkit.training.tokenizer_objective import TokenizerObjective

    monkeypatch.setattr(TokenizerObjective, "_prepare", lambda self, tokenizer: None)


def run(recipe, out, cache, *options):
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    return main(["train", str(file), "--out", str(out), "--cache", str(cache), "--device", "cpu", *options])


@pytest.mark.parametrize(("kind", "workers"), [("cut", 0), ("empty", 0), ("page", 2)])
def test_the_command_ends_in_one_line_that_names_the_image(
    recipe_for, damaged, from_start, cache, tmp_path, capfd, kind, workers
):
    root, path, _ = damaged(kind)
    assert run(recipe_for(root, workers), tmp_path / "run", cache) == 2
    (error,) = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("training: ")]
    assert error.startswith(f"vargen train: {path} is ")
    assert error.endswith("; remove it or use --skip-damaged")


def test_the_run_goes_on_from_its_last_step_once_the_image_is_repaired(
    tiny, recipe_for, damaged, from_start, cache, tmp_path, weights
):
    from var_toolkit.training.recipe import recipe_from

    root, _, repair = damaged()
    recipe = recipe_from(recipe_for(root))
    with pytest.raises(ImageFileError, match=r"b/1\.png"):
        train(recipe, tmp_path / "run", cache_dir=cache, device="cpu")
    steps = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < steps < 4  # of an epoch's four
    repair()
    resumed = weights(train(recipe, tmp_path / "run", cache_dir=cache, device="cpu"))
    whole = weights(train(recipe, tmp_path / "whole", cache_dir=cache, device="cpu"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_with_skip_damaged_the_run_ends_and_counts_what_was_replaced(
    recipe_for, damaged, cache, tmp_path, capfd, weights
):
    root, path, _ = damaged()
    assert run(recipe_for(root), tmp_path / "run", cache, "--skip-damaged") == 0
    assert f"1 damaged image was replaced: {path}\n" in capfd.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["damaged"] for line in lines if "damaged" in line] == [[str(path)]]
    assert sum("loss" in line for line in lines) == 9
    # Stopped on the way, by another number of steps, and with worker processes.
    short = recipe_for(root, steps=3, schedule={"kind": "constant", "warmup": 0.0})
    assert run(short, tmp_path / "parts", cache, "--skip-damaged") == 0
    assert run(short | {"steps": 5}, tmp_path / "parts", cache, "--skip-damaged") == 0
    assert run(short | {"steps": 5}, tmp_path / "once", cache, "--skip-damaged") == 0
    parts, once = (weights(tmp_path / name / "final") for name in ("parts", "once"))
    assert all(torch.equal(parts[name], once[name]) for name in once)
    assert (tmp_path / "parts" / "log.jsonl").read_text().count('"damaged"') == 1


@pytest.fixture
def decoder_alone(recipe_for, tmp_path, cache):
    """The settings of a recipe of a decoder, whose training ends at the damaged image of a folder."""
    good = recipe_for(tmp_path) | {"data": {"kind": "still-lifes", "count": 8, "validation_count": 0}, "steps": 1}
    assert run(good, tmp_path / "first", cache) == 0
    options = {"train_only": "decoder", "initial": str(tmp_path / "first" / "final")}
    return lambda root: recipe_for(root, objective_options=options)


def test_a_damaged_image_ends_all_processes_with_the_same_line(decoder_alone, damaged, tmp_path, train_in_two):
    root, path, _ = damaged()
    with pytest.raises(AssertionError) as ended:
        train_in_two(recipe_from(decoder_alone(root)), tmp_path / "two")
    assert str(ended.value).count(f"ImageFileError: {path} is damaged") == 2
    assert torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["step"] > 0


@pytest.mark.slow
def test_a_damaged_image_ends_all_processes_of_torchrun(decoder_alone, damaged, tmp_path, cache):
    root, path, _ = damaged()
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(decoder_alone(root)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = ["var_toolkit", "train", tmp_path / "two.yaml", "--out", tmp_path / "two", "--cache", cache]
    done = subprocess.run([*launch, *map(str, command)], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert done.stderr.count(f"vargen train: {path} is damaged") == 2


def test_latents_of_a_damaged_image_are_those_of_the_next_of_its_class(tiny, damaged, tmp_path, capfd, parts):
    from var_toolkit.processes import Team
    from var_toolkit.training.flowar_objective import FlowARObjective
    from var_toolkit.training.objectives import Workplace

    root, path, _ = damaged()
    model = {**tiny("flowar").model.__dict__, "num_classes": 2}
    data = {"kind": "folders", "root": root, "size": 64, "workers": 0}
    recipe = tiny("flowar", model=model, data=data, objective_options={"cache_latents": True})
    team = Team(0, 1, torch.device("cpu"))
    with pytest.raises(ImageFileError, match=r"b/1\.png .*--skip-damaged"):
        FlowARObjective(recipe, Workplace(tmp_path / "cache", team))
    source = FlowARObjective(recipe, Workplace(tmp_path / "cache", team, skip_damaged=True)).source
    (batch,) = source.batches([torch.arange(8)], 0)
    assert batch.labels.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(batch.moments[5], batch.moments[6])
    assert f"1 damaged image was replaced: {path}\n" in capfd.readouterr().err


@pytest.mark.parametrize("objective", ["tokenizer", "raster-tokenizer", "bits-tokenizer", "kl"])
def test_tokenizers_train_on_a_folder_without_classes(tiny, image_folders, cache, tmp_path, objective):
    root = Path(image_folders("train", "a", 4))
    data = {"kind": "folders", "root": str(root / "a"), "validation_root": str(root), "size": 64, "workers": 0}
    recipe = tiny(objective, data=data, batch_size=2, steps=1, objective_options={})
    assert train(recipe, tmp_path / "out", cache_dir=cache, device="cpu").is_dir()


def test_what_learns_classes_refuses_a_folder_without_them(tiny, settings, image_folders, cache, tmp_path):
    root = image_folders("train", "a", 4) + "/a"
    data = {"kind": "folders", "root": root, "size": 64, "workers": 0}
    recipe = tiny("var", model=settings("var")["model"] | {"num_classes": 1}, data=data)
    with pytest.raises(ValueError, match=rf"root '{root}' holds 4 images and no folder"):
        train(recipe, tmp_path / "out", cache_dir=cache, device="cpu")
