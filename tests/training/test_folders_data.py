"""Training on class folders: what does not fit is refused, and held-out images stay bytes until looked at."""

from pathlib import Path

import numpy as np
import pytest
import torch

from var_toolkit.loading import skeleton
from var_toolkit.processes import Team
from var_toolkit.training.codebook_upkeep import initialise_codebook
from var_toolkit.training.data_sources import class_names_of, images_of
from var_toolkit.training.loop import train
from var_toolkit.training.objectives import Workplace


def section(root, validation=None, size=64):
    return {"kind": "folders", "root": root, "validation_root": validation, "size": size, "workers": 0}


def test_a_var_trains_on_folders_and_is_delivered(tiny, settings, image_folders, cache, tmp_path):
    model = settings("var")["model"] | {"num_classes": 3}
    recipe = tiny(
        "var",
        model=model,
        data=section(image_folders("train", "abc"), image_folders("val", "abc", 1)),
        batch_size=4,
    )
    final = train(recipe, tmp_path / "out", cache_dir=cache, device="cpu")
    names = skeleton(final).class_names
    assert [names.resolve(name) for name in "abc"] == [0, 1, 2]


def test_names_of_classes_that_do_not_fit_the_folders_are_refused(tiny, settings, image_folders, cache, tmp_path):
    model = settings("var")["model"] | {"num_classes": 3}
    root = image_folders("train", "abc")
    for names, match in (("imagenet", "imagenet"), (["cat", "dog"], "2 names for 3 classes"), ("birds", "'birds'")):
        recipe = tiny("var", model=model, data=section(root) | {"class_names": names}, batch_size=4)
        refused(recipe, tmp_path, cache, match)
    assert not (tmp_path / "out").exists()


def test_names_of_a_recipe_replace_those_of_the_folders(image_folders, tiny, cache):
    data = section(image_folders("train", "abc")) | {"class_names": ["cat", "dog", "owl"]}
    recipe = tiny("classifier", data=data, batch_size=2)
    source, _ = images_of(recipe, Workplace(cache, Team(0, 1, torch.device("cpu"))), 3)
    assert class_names_of(recipe.data, source) == ("cat", "dog", "owl")


def test_crops_follow_from_the_seed_of_the_recipe(tiny, image_folders, cache):
    root, team = image_folders("train", "ab"), Team(0, 1, torch.device("cpu"))

    def crops(seed):
        source, _ = images_of(tiny("classifier", data=section(root), seed=seed), Workplace(cache, team))
        return next(iter(source.batches([torch.arange(6)], 0))).images

    assert torch.equal(crops(1), crops(1))
    assert not torch.equal(crops(1), crops(2))


def test_held_out_images_are_shared_out_and_stay_bytes(tiny, image_folders, cache):
    data = section(image_folders("train", "abc"), image_folders("val", "abc"))
    labels = []
    for rank in range(2):
        team = Team(rank, 2, torch.device("cpu"))
        _, held_out = images_of(tiny("classifier", data=data, batch_size=2), Workplace(cache, team))
        assert held_out.source.values.dtype == np.uint8
        batches = list(held_out)
        assert [len(batch.labels) for batch in batches] == [2, 2]
        assert torch.equal(batches[0].images, next(iter(held_out)).images)
        labels += [int(label) for batch in batches for label in batch.labels]
    assert sorted(labels) == [0, 0, 0, 1, 1, 1, 2, 2]


def refused(recipe, tmp_path, cache, match):
    with pytest.raises(ValueError, match=match) as caught:
        train(recipe, tmp_path / "out", cache_dir=cache, device="cpu")
    assert "\n" not in str(caught.value)


def test_another_number_of_class_folders_is_refused(tiny, image_folders, cache, tmp_path):
    refused(
        tiny("var", data=section(image_folders("train", "abc"))),
        tmp_path, cache, "num_classes is 1000, but .*train has 3 class folders",
    )  # fmt: skip


def test_still_lifes_need_their_number_of_classes(tiny, settings, tmp_path):
    recipe = tiny("var", model=settings("var")["model"] | {"num_classes": 10})
    refused(recipe, tmp_path, tmp_path / "cache", "num_classes is 10, but there are 1000 classes of still lifes")
    assert not (tmp_path / "cache").exists()


def test_other_validation_folders_are_refused(tiny, image_folders, cache, tmp_path):
    data = section(image_folders("train", "abc"), image_folders("val", "abd"))
    refused(tiny("tokenizer", data=data), tmp_path, cache, "must have the same class folders, .* 'c'")


def test_images_of_another_size_are_refused(tiny, image_folders, cache, tmp_path):
    data = section(image_folders("train", "abc"), size=32)
    refused(tiny("tokenizer", data=data), tmp_path, cache, "images have 32 x 32 pixels, but the tokenizer reads 64")


def test_the_first_codes_come_from_images_of_all_classes(tiny, image_folders, cache, tmp_path, monkeypatch):
    import var_toolkit.training.tokenizer_objective as module

    seen = []

    def watched(tokenizer, images, draws):
        seen.append(images)
        initialise_codebook(tokenizer, images, draws)

    monkeypatch.setattr(module, "initialise_codebook", watched)
    monkeypatch.setattr(module, "FIRST_IMAGES", 3)
    recipe = tiny("tokenizer", data=section(image_folders("train", "abc")), objective_options={}, batch_size=4, steps=1)
    train(recipe, tmp_path / "out", cache_dir=cache, device="cpu")
    source, _ = images_of(recipe, Workplace(Path(cache), Team(0, 1, torch.device("cpu"))))
    expected = next(iter(source.batches([torch.tensor([0, 4, 8])], 0))).images
    assert torch.equal(seen[0], expected)
