"""Recipes: what is shipped parses, what does not fit is refused in one line."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from var_toolkit.training.recipe import read_recipe, recipe_from

CONFIGS = sorted(path for path in Path(str(files("var_toolkit.configs"))).iterdir() if path.suffix == ".yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses(path):
    recipe = read_recipe(path)
    assert recipe.optimiser.peak(recipe.batch_size) > 0


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.startswith("imagenet")], ids=lambda path: path.stem)
def test_what_imagenet_recipes_train_knows_the_names_of_its_classes(path):
    recipe = read_recipe(path)
    if hasattr(recipe.model, "num_classes"):
        assert recipe.data.class_names == "imagenet"


def test_the_published_recipes_have_the_published_peak_rates():
    peaks = {path.stem: read_recipe(path) for path in CONFIGS if path.stem.startswith("imagenet256-var")}
    d16, d30 = peaks["imagenet256-var-d16"], peaks["imagenet256-var-d30"]
    assert d16.optimiser.peak(d16.batch_size) == pytest.approx(3e-4)
    assert d30.optimiser.peak(d30.batch_size) == pytest.approx(3.2e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batchsize": 8}, ["unknown key 'batchsize'", "did you mean 'batch_size'", "Allowed keys: objective, model"]),
        ({"optimiser": {"lr": 1e-3, "beta": [0.9, 0.9]}}, ["optimiser", "'beta'", "'betas'"]),
        ({"optimiser": {"lr": float("nan")}}, ["lr is nan", "a number"]),
        ({"optimiser": {"base_lr": float("inf")}}, ["base_lr is inf", "a number"]),
        ({"optimiser": {"lr": 1e-3, "eps": 0.0}}, ["eps is 0.0", "above 0"]),
        ({"optimiser": {"lr": 1e-3, "weight_decay": -1.0}}, ["weight_decay is -1.0", "0 or more"]),
        ({"checkpoint_minutes": float("nan")}, ["checkpoint_minutes is nan", "a number"]),
        ({"batch_size": 32}, ["batch_size is 32", "only 24 images"]),
        ({"optimiser": {"lr": "fast"}}, ["optimiser: lr is 'fast'", "a number"]),
        ({"optimiser": {"lr": 1e-3, "base_lr": 1e-3}}, ["exactly one of lr and base_lr"]),
        ({"schedule": {"kind": "cosin"}}, ["kind is 'cosin'", "lin0, cosine, constant"]),
        ({"model": {"widths": [8, 9]}}, ["model", "widths is [8, 9]", "multiples of 8"]),
        ({"model": {"widths": 8}}, ["widths is 8", "a list"]),
        ({"data": {"kind": ["a"]}}, ["kind is ['a']", "still-lifes, folders"]),
        ({"data": {"kind": "samples"}}, ["kind is 'samples'", "allowed: still-lifes, folders"]),
        ({"data": {"kind": "stills"}}, ["kind is 'stills'", "still-lifes, folders"]),
        (
            {"objective": "gan"},
            [
                "objective is 'gan'",
                "himar, hmar, hmar-mask, hydra-heads, infinity, judge-head, kl, latent-scorer, mar, medusa-heads",
            ],
        ),
        ({"family": "var"}, ["classifier", "family", "var or raster-gpt"]),
        ({"objective": "var", "family": "llamagen"}, ["llamagen", "RasterVQ", "MultiScaleVQ"]),
        ({"objective": "var", "family": "vra"}, ["family 'vra'", "var"]),
        ({"objective": "var", "family": 3}, ["family '3'"]),
        ({"objective_options": {"noize": 1}}, ["objective_options", "'noize'", "'noise'"]),
        ({"batch_size": True}, ["batch_size is True", "a whole number"]),
        ({"epochs": 3}, ["exactly one of steps and epochs"]),
        ({"precision": "int8"}, ["precision is 'int8'", "bf16, fp32, fp16"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_way_out(settings, tmp_path, changes, expected):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings("classifier") | changes))
    with pytest.raises(ValueError, match=r"recipe\.yaml") as caught:
        read_recipe(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in expected), message


def test_a_missing_file_and_a_broken_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        read_recipe(tmp_path / "broken.yaml")


def test_exponents_without_a_dot_are_numbers(settings):
    assert recipe_from(settings("classifier", optimiser={"lr": "1e-3"})).optimiser.lr == 1e-3


def test_var_without_a_tokenizer_is_refused(settings):
    with pytest.raises(ValueError, match="missing key 'tokenizer'"):
        recipe_from(settings("var", tokenizer=None))


def test_a_decoder_stage_without_initial_weights_is_refused(settings):
    with pytest.raises(ValueError, match="needs initial"):
        recipe_from(settings("tokenizer", objective_options={"train_only": "decoder"}))
