"""Training on captioned images: batches carry the captions of what they show, in an order that can be resumed."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from small_captions import png, write

from var_toolkit.cli import main
from var_toolkit.processes import Team
from var_toolkit.training.batches import stream
from var_toolkit.training.data_sources import images_of
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import recipe_from

PAIRS = [(f"{number} a", f"{number} b") for number in range(8)]


@pytest.fixture
def opened(settings, tmp_path):
    """The images to train on and those held out, of a root, with changes to the section or the recipe."""

    def open_(root, *, rank=0, skip=False, workers=0, seed=0, **changes):
        data = {"kind": "captions", "root": str(root), "size": 64, "workers": workers} | changes
        recipe = recipe_from(settings("tokenizer", data=data, batch_size=2, objective_options={}, seed=seed))
        team = Team(rank, 1 + (rank > 0), torch.device("cpu"))
        return recipe, *images_of(recipe, Workplace(tmp_path / "cache", team, skip), flat=True)

    return open_


def steps(opened, *args, first=0, last=8, **changes):
    recipe, source, _ = opened(*args, **changes)
    return [batch for _, batch in stream(source, recipe, Team(0, 1, torch.device("cpu")), range(first, last))]


def same(one, other):
    return one.captions == other.captions and torch.equal(one.images, other.images)


@pytest.mark.parametrize("kind", ["text", "shard", "parquet-hub"])
def test_a_resumed_run_with_workers_sees_the_same_images_crops_and_captions(opened, tmp_path, kind):
    root = write(tmp_path / "root", kind, PAIRS)
    whole = steps(opened, root)
    assert all(map(same, whole[5:], steps(opened, root, first=5, workers=2)))
    epochs = [[caption for batch in part for caption in batch.captions] for part in (whole[:4], whole[4:])]
    assert [sorted(caption[0] for caption in epoch) for epoch in epochs] == [[*"01234567"]] * 2
    assert sorted(epochs[0]) != sorted(epochs[1])  # other captions of the same images
    assert not all(map(same, whole, steps(opened, root, seed=1)))


def test_captions_belong_to_the_images_of_the_batch(opened, tmp_path):
    root = write(tmp_path / "root", "text", PAIRS)
    _, source, _ = opened(root)
    first, second = source.batches([torch.tensor([5, 2]), torch.tensor([7])], 3)
    assert [caption[0] for caption in first.captions + second.captions] == ["5", "2", "7"]
    assert first.labels.tolist() == [0, 0]


def test_a_replaced_image_has_its_own_caption(opened, tmp_path):
    images = [b"no image" if number == 3 else png(number) for number in range(8)]
    _, source, _ = opened(write(tmp_path / "root", "text", PAIRS, images), skip=True)
    (batch,) = source.batches([torch.tensor([3, 0])], 0)
    assert [caption[0] for caption in batch.captions] == ["4", "0"]
    assert batch.damaged == (str(tmp_path / "root" / "3.png"),)


def held_out_captions(held_out):
    return [caption for batch in held_out for caption in batch.captions]


def test_some_images_can_be_held_out_whatever_the_seed(opened, tmp_path):
    root = write(tmp_path / "root", "shard", PAIRS)
    _, source, held_out = opened(root, validation_count=3)
    found = held_out_captions(held_out)
    (rest,) = source.batches([torch.arange(len(source))], 0)
    assert sorted(caption[0] for caption in (*found, *rest.captions)) == [*"01234567"]
    assert len(found) == 3
    again = opened(root, validation_count=3, seed=7)[2]
    assert held_out_captions(again) == found == held_out_captions(held_out)


def test_another_root_is_held_out_and_shared_out(opened, tmp_path):
    root, other = write(tmp_path / "root", "text", PAIRS), write(tmp_path / "other", "lines", PAIRS[:4])
    captions = [held_out_captions(opened(root, validation_root=str(other), rank=rank)[2]) for rank in (0, 1)]
    assert [caption[0] for caption in captions[0]] == [*"0123"]
    assert [caption[0] for caption in captions[1]] == [*"13"]  # of two processes


BAD = {
    "validation_count": ({"validation_count": 8}, "validation_count is 8, but .*root has only 8 images"),
    "too many": ({"validation_count": 4000}, "validation_count is 4000; expected 0 to 2048"),
    "both": ({"validation_count": 1, "validation_root": "x"}, "validation_count is 1, but validation_root is given"),
    "workers": ({"workers": -1}, "workers is -1"),
    "fields": ({"caption_fields": []}, "caption_fields is empty"),
    "size": ({"size": 0}, "size is 0"),
    "unknown": ({"captions": "text"}, "unknown key 'captions'"),
    "other root": ({"validation_root": "nowhere"}, "'nowhere' does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_do_not_fit_are_named(name, opened, tmp_path):
    changes, match = BAD[name]
    with pytest.raises(ValueError, match=match):
        opened(write(tmp_path / "root", "text", PAIRS), **changes)


def test_a_tokenizer_trains_on_captioned_images(settings, tmp_path, cache, capfd):
    root = write(tmp_path / "root", "shard", [*PAIRS[:4], ()])
    data = {"kind": "captions", "root": str(root), "size": 64, "workers": 0, "validation_count": 1}
    recipe = settings("tokenizer", data=data, batch_size=2, steps=1, objective_options={})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    command = ["train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out"), "--cache", str(cache)]
    assert main(command) == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith(f"vargen train: {root}")
    assert not (tmp_path / "out").exists()
    assert main([*command, "--skip-damaged"]) == 0
    assert "1 image without a caption was skipped: " in capfd.readouterr().err
    assert "captioned images of the folder root" in Path(tmp_path, "out", "final", "facts.json").read_text()
