"""What a run delivers says by itself how it was trained."""

import dataclasses
import json

import yaml

from var_toolkit.formats.facts import read_facts
from var_toolkit.loading import load
from var_toolkit.training.loop import train
from var_toolkit.training.recipe import recipe_from


def test_a_trained_model_knows_its_recipe_its_images_and_its_last_figures(tiny, cache, tmp_path):
    recipe = tiny("var")
    final = train(recipe, tmp_path / "mine", cache_dir=cache, device="cpu")
    facts = load(final, device="cpu").facts
    assert facts.images_seen == recipe.steps * recipe.batch_size
    assert facts.data == "24 still lifes rendered by var_toolkit"
    assert facts.license is None

    log = [json.loads(line) for line in (tmp_path / "mine" / "log.jsonl").read_text().splitlines()]
    for key in ("loss", "validation_loss"):
        assert facts.training[key] == [line[key] for line in log if key in line][-1]
    assert not {"lr", "images_per_second", "step"} & facts.training.keys()

    card = (final / "README.md").read_text()
    assert 'load("mine/final")' in card
    assert f"| validation loss at the end | {facts.training['validation_loss']:g} |" in card
    assert facts.recipe.strip() in card

    before = facts
    train(dataclasses.replace(recipe, steps=7), tmp_path / "mine", cache_dir=cache, device="cpu")
    after = load(final, device="cpu").facts
    assert after.images_seen == before.images_seen + recipe.batch_size
    assert yaml.safe_load(after.recipe)["steps"] == 7


def test_the_recipe_that_is_delivered_trains_again_and_names_no_folder_of_this_machine(tiny, cache, tmp_path):
    recipe = tiny("tokenizer", steps=1)
    final = train(recipe, tmp_path / "run", cache_dir=cache, device="cpu")
    facts = read_facts(final)
    options = dataclasses.replace(recipe.objective_options, perceptual_network="classifier")  # lies in a folder
    assert recipe_from(yaml.safe_load(facts.recipe)) == dataclasses.replace(recipe, objective_options=options)
    assert not (final / "README.md").exists()  # a network alone is no model

    recipe = tiny("var", steps=1, tokenizer=str(final))
    facts = read_facts(train(recipe, tmp_path / "other", cache_dir=cache, device="cpu"))
    assert yaml.safe_load(facts.recipe)["tokenizer"] == "run/final"
    assert str(tmp_path) not in facts.recipe
