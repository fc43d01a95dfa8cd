"""The authors' figures stand beside what was drawn as theirs were, and beside nothing else."""

import json

import pytest

from var_toolkit.evaluation.published import published
from var_toolkit.loading import skeleton


def settings(model: str = "var-d30", **plan) -> dict:
    """What `settings.json` holds of a set with all classes and 50,000 images."""
    plan = json.loads(json.dumps(skeleton(model).plan(**plan).to_json()))
    return {"model": model, "classes": "0-999", "images": 50_000, "plan": plan}


@pytest.mark.parametrize(("model", "fid"), [("var-d30", 1.97), ("code-6", 2.27), ("flowar-l", 1.90)])
def test_a_set_drawn_as_the_authors_drew_theirs_has_their_figure(model, fid):
    assert published(settings(model), measured=50_000, evaluators=True) == ({"fid": fid}, [])


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"subnet": 2, "full_scales": 1}, "the plan has a different layers"),
        ({"cfg": 4.0, "smooth": True}, "the plan has a different guidance, smooth"),
        ({"temperature": (1.1,) * 7 + (1.0,) * 3}, "the plan has a different temperature"),
    ],
)
def test_another_plan_has_no_published_figure(plan, words):
    found, (difference,) = published(settings(**plan), measured=50_000, evaluators=True)
    assert found is None
    assert words in difference


def test_another_tokenizer_has_no_published_figure():
    own = {**settings("flowar-s"), "tokenizer": "own"}
    assert published(own, measured=50_000, evaluators=True) == ({"fid": 3.61}, [])
    other = {**own, "tokenizer": "someone/vae"}
    assert published(other, measured=50_000, evaluators=True) == (None, ["the tokenizer is someone/vae"])


def test_fewer_classes_fewer_images_and_other_references_have_no_published_figure():
    few = {**settings(), "classes": "0-9", "images": 500}
    assert published(few, measured=400, evaluators=False) == (
        None,
        [
            "the classes are 0-9, not 0-999",
            "400 images are measured, not 50000",
            "500 images were drawn, not 50000",
            "the reference is not a statistics file (mu and sigma) of the ADM evaluator",
        ],
    )
    assert published({**settings(), "images": 100_000}, measured=50_000, evaluators=True)[0] is None


def test_settings_that_tell_nothing_have_no_published_figure():
    assert published(None, measured=50_000, evaluators=True) == (None, [])
    assert published({"model": "stilllife-var"}, measured=50_000, evaluators=True) == (None, [])
    assert published({"model": "var-d30"}, measured=50_000, evaluators=True)[0] is None
