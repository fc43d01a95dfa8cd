"""Best of N: the image is the candidate that a scorer prefers, whatever the batch."""

import json

import pytest
import torch

from var_toolkit.cli import main
from var_toolkit.core.noise import candidate_seeds
from var_toolkit.core.plan import Plan
from var_toolkit.core.search import BestOf
from var_toolkit.loading import skeleton
from var_toolkit.pipeline import Pipeline

LABELS, SEEDS = [3, 7], [11, 12]


def brightness(images, labels):
    """A scorer of one's own."""
    assert images.dtype == torch.uint8
    assert len(images) == len(labels)
    return images.double().mean((1, 2, 3))


NAME = f"{__name__}:brightness"


@pytest.fixture(scope="module")
def pipe(small_tokenizer, small_var) -> Pipeline:
    return Pipeline(small_tokenizer, small_var)


def every_candidate(pipe, count):
    """The scores and the latents of all candidates, drawn one after another by their seeds."""
    drawn = [pipe(LABELS, seeds=seeds, output_type="pt") for seeds in candidate_seeds(SEEDS, count)]
    scores = [brightness((one.images * 255).round().to(torch.uint8), LABELS) for one in drawn]
    return torch.stack(scores), torch.stack([one.latents for one in drawn])


@pytest.mark.parametrize("size", [1, 4])
def test_the_best_candidate_is_chosen_whatever_the_batch(pipe, size):
    scores, latents = every_candidate(pipe, 3)
    found = pipe(LABELS, seeds=SEEDS, best_of=3, scorer=brightness, batch_size=size)
    best = scores.argmax(0)
    assert [one.candidate for one in found.chosen] == best.tolist()
    assert found.seeds == SEEDS
    for image, (one, number) in enumerate(zip(found.chosen, best.tolist(), strict=True)):
        assert one.seed == candidate_seeds(SEEDS, number + 1)[number][image]
        assert one.score == pytest.approx(float(scores[number, image]), rel=1e-4)
        torch.testing.assert_close(found.latents[image], latents[number, image], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 4])
def test_with_a_threshold_the_first_that_reaches_it_is_chosen_and_no_more_are_drawn(pipe, size):
    scores, _ = every_candidate(pipe, 4)
    threshold = float(scores.flatten().sort().values[-3:-1].mean())  # which one or two reach
    found = pipe(LABELS, seeds=SEEDS, best_of=4, scorer=NAME, threshold=threshold, batch_size=size)
    for image, one in enumerate(found.chosen):
        reached = (scores[:, image] >= threshold).nonzero().flatten().tolist()
        assert one.candidate == (reached[0] if reached else int(scores[:, image].argmax()))
    if size == 1:
        needed = sum(one.candidate + 1 if one.score >= threshold else 4 for one in found.chosen)
        assert found.forward_passes == needed * len(pipe.plan().steps)


def test_candidates_have_seeds_of_their_own_that_follow_from_the_image():
    drawn = candidate_seeds(SEEDS, 50)
    assert drawn[0] == SEEDS
    assert len({seed for seeds in drawn for seed in seeds}) == 100
    assert all(0 <= seed < 2**63 for seeds in drawn for seed in seeds)
    assert candidate_seeds(SEEDS[1:2], 8)[7] == drawn[7][1:2]


def test_best_of_is_a_field_of_a_plan_and_all_candidates_are_priced(pipe):
    plain, plan = pipe.plan(), pipe.plan(best_of=6, scorer=NAME)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.best_of == BestOf(6, NAME)
    ours, theirs = pipe.bind(plan).cost(), pipe.bind(plain).cost()
    assert (ours.multiply_adds, ours.forward_passes) == (6 * theirs.multiply_adds, 6 * theirs.forward_passes)
    asked = {"seeds": SEEDS, "output_type": "latent"}
    again = pipe(LABELS, plan=plan, **asked)
    assert again.chosen == pipe(LABELS, best_of=6, scorer=brightness, **asked).chosen
    nameless = pipe.plan(best_of=6, scorer=lambda images, labels: brightness(images, labels))
    assert pipe(LABELS, plan=nameless, scorer=brightness, **asked).chosen == again.chosen


@pytest.mark.parametrize(
    ("model", "settings", "named"),
    [
        ("stilllife-var-small", {"best_of": 0}, "best_of"),
        ("stilllife-var-small", {"best_of": 2, "threshold": float("nan")}, "threshold"),
        ("stilllife-var-small", {"scorer": "stilllife"}, "scorer"),
        ("stilllife-var-small", {"threshold": 0.5}, "threshold"),
        ("stilllife-var-small", {"best_of": 2, "scorer": "beauty"}, "beauty"),
        ("stilllife-var-small", {"best_of": 2, "scorer": "scenes"}, "scenes"),
        ("stilllife-var-small", {"best_of": 2, "scorer": "clip=openai/clip-vit-large-patch14"}, "clip="),
        ("scenes-infinity", {"best_of": 2, "scorer": "stilllife"}, "stilllife"),
        ("scenes-infinity", {"best_of": 2, "scorer": "clip="}, "clip="),
        ("var-d16", {"best_of": 2}, "scorer"),
        ("var-d16", {"best_of": 2, "scorer": "stilllife"}, "stilllife"),
    ],
)
def test_a_scorer_that_does_not_fit_is_named_before_anything_is_drawn(model, settings, named):
    with pytest.raises(ValueError, match=named) as told:
        skeleton(model).plan(**settings)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("scorer", ["no_such_module:score", f"{__name__}:missing"])
def test_a_function_that_is_missing_is_named(pipe, scorer):
    with pytest.raises(ValueError, match=scorer):
        pipe.stream(LABELS, seeds=SEEDS, best_of=2, scorer=scorer)


@pytest.mark.parametrize("scores", [[1.0], [float("nan")] * 2, [[1.0]] * 2], ids=["too few", "NaN", "a table"])
def test_a_scorer_must_return_one_number_for_each_image(pipe, scores):
    with pytest.raises(ValueError, match="one number"):
        pipe(LABELS, seeds=SEEDS, best_of=2, scorer=lambda images, labels: scores, batch_size=2)


def test_the_command_line_names_a_missing_function_before_weights_are_read(capsys):
    asked = ["sample", "--class", "207", "--best-of", "2", "--scorer", "no_such_module:score", "--dry-run"]
    assert main(asked) == 2
    assert "no_such_module:score" in capsys.readouterr().err


def test_a_model_of_clip_without_its_package_is_named_before_weights_are_read(monkeypatch, capsys):
    monkeypatch.setattr("var_toolkit.methods.scorers.find_spec", lambda name: None)
    asked = ["sample", "--prompt", "a red cube on sand", "--best-of", "2", "--scorer", "clip=some/model", "--dry-run"]
    assert main(asked) == 2
    assert "pip install" in capsys.readouterr().err


def test_the_command_line_says_which_candidate_each_image_is(tmp_path, capsys):
    drawn = ["sample", "--class", "207", "--model", "stilllife-var-small", "--best-of", "2", "-n", "2"]
    main([*drawn, "--out", str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [one["seed"] for one in told["chosen"]] == [
        candidate_seeds([seed], 2)[one["candidate"]][0] for seed, one in zip(told["seeds"], told["chosen"], strict=True)
    ]
    assert all(0 <= one["score"] <= 1 for one in told["chosen"])
    assert Plan.from_json(told["plan"]).best_of == BestOf(2, "stilllife")
