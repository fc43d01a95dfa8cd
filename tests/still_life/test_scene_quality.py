"""Scores of prompts by the embedded detector, and of edges."""

import pytest
import torch

import var_toolkit
from var_toolkit.still_life.scene_judge import CATEGORIES, prompts
from var_toolkit.still_life.scene_quality import (
    ATTRIBUTES,
    edge_f1,
    edges,
    prompt_report,
    prompt_scores,
    prompt_share,
    renderings,
)

ASKED = prompts(10 * len(CATEGORIES))


@pytest.fixture(scope="module")
def real() -> torch.Tensor:
    return renderings(ASKED)


def test_real_renderings_show_what_their_prompts_ask_for(real: torch.Tensor) -> None:
    scores = prompt_scores(real, ASKED)
    assert scores.whole >= 0.93
    assert set(scores.categories) == set(CATEGORIES)
    assert all(scores.attributes[name] >= 0.95 for name in ATTRIBUTES)


def test_images_of_other_prompts_do_not(real: torch.Tensor) -> None:
    scores = prompt_scores(real.roll(1, 0), ASKED)
    assert scores.whole < 0.05
    assert scores.attributes["colour"] < 0.3


def test_every_image_has_a_prompt(real: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="59"):
        prompt_scores(real[:59], ASKED)


def test_edges_that_agree_and_edges_that_do_not(real: torch.Tensor) -> None:
    few = real[:12]
    assert 0.001 < edges(few).float().mean() < 0.05
    assert edge_f1(few, few) == 1.0
    assert edge_f1(few.roll(1, 3), few) > 0.9  # one pixel away still counts
    assert edge_f1(few.roll(6, 3), few) < 0.6
    blurred = torch.nn.functional.avg_pool2d(few.float(), 9, stride=1, padding=4).round().to(torch.uint8)
    assert edge_f1(blurred, few) < 0.3
    assert edge_f1(torch.full_like(few, 128), few) == 0.0


def test_a_model_of_classes_draws_no_prompts() -> None:
    with pytest.raises(ValueError, match="scenes-infinity"):
        prompt_report(var_toolkit.load("stilllife-gpt-small", device="cpu"), 2)


def test_a_scorer_prefers_images_of_their_own_prompts(real: torch.Tensor) -> None:
    texts = [prompt.caption.text for prompt in ASKED]
    own, others = torch.tensor(prompt_share(real, texts)), torch.tensor(prompt_share(real.roll(1, 0), texts))
    assert (own > others).float().mean() > 0.9
