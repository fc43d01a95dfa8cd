"""The plans that are offered for a model by name."""

import pytest
from named_models import DRAWING, by_size

from var_toolkit.loading import Drafting, skeleton
from var_toolkit.named_plans import choices
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import ENTRIES, Embedded


@pytest.mark.parametrize("model", by_size())
def test_every_plan_fits_its_model_and_the_own_one_comes_first(model):
    found = choices(model)
    shapes = [(skeleton(choice.source), choice.settings) for choice in found]
    plans = [str(shape.bind(shape.plan(**settings))) for shape, settings in shapes]
    pipe = skeleton(model)
    assert plans[0] == str(pipe.bind(pipe.plan()))
    assert len(set(plans)) == len({choice.name for choice in found}) == len(found)


def names(model: str) -> str:
    return " | ".join(choice.name for choice in choices(model))


def test_a_var_offers_subnets_and_the_pair_it_drafts_for():
    assert "Plain" in names("stilllife-var")
    assert "VARiant: 4 of 12 layers" in names("stilllife-var")
    assert "CoDe" in names("stilllife-var")
    assert "stilllife-code-4" in [choice.source for choice in choices("stilllife-var")]
    assert "CoDe" not in names("stilllife-var-small")


def test_only_an_hmar_offers_masked_passes():
    embedded = [name for name in DRAWING if isinstance(ENTRIES[name].source, Embedded)]
    assert [name for name in embedded if "Masked passes" in names(name)] == ["stilllife-hmar"]


def test_a_next_token_model_offers_jacobi_and_the_drafters_made_for_it():
    assert "Jacobi" in names("stilllife-gpt")
    assert "VARiant" not in names("stilllife-gpt")
    drafted = [choice.source for choice in choices("stilllife-gpt") if isinstance(choice.source, Drafting)]
    assert [one.draft_model for one in drafted] == list(ENTRIES["stilllife-gpt"].draft_models.values())


def test_a_directory_has_plans_as_well(small_tokenizer, small_var, tmp_path):
    Pipeline(small_tokenizer, small_var).save_pretrained(tmp_path / "mine")
    assert [choice.settings["subnet"] for choice in choices(str(tmp_path / "mine"))] == [4, 2]
