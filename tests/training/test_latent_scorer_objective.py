"""A scorer of latents learns what a judge will say of finished images."""

import pytest
import torch

from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.processes import Team
from var_toolkit.still_life.classifier import StillLifeClassifier
from var_toolkit.training.draws import Draws
from var_toolkit.training.latent_scorer_objective import in_order
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import recipe_from
from var_toolkit.training.registry import objective_class
from var_toolkit.training.starting_weights import network_from

NAME = "latent-scorer"
DRAWS = Draws(0, 0, 0, 1, 8, torch.device("cpu"))


def test_images_are_judged_as_they_are_decoded(build):
    objective, batch = build(NAME)
    run = objective.teacher_run()
    drawn = decode(run, batch.labels, Noise(range(8)))
    assert torch.equal(torch.cat(drawn.tokens, dim=1), batch.tokens)
    images = ((run.tokenizer.decode(drawn.latent) + 1) * 127.5).clamp(0, 255).round() / 127.5 - 1
    judge = network_from(objective.options.judge, StillLifeClassifier, what="judge")
    torch.testing.assert_close(batch.judged, judge.probability(images, batch.labels))


def test_the_latents_are_those_that_drawing_scores(build):
    objective, batch = build(NAME)
    seen = []
    decode(objective.teacher_run(), batch.labels, Noise(range(8)), on_scale=lambda event: seen.append(event.latent))
    for ours, theirs in zip(objective._latents(batch.tokens, 2), seen, strict=False):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_falls_where_the_judge_follows_the_latent(build):
    objective, batch = build(NAME)
    latent = list(objective._latents(batch.tokens, 2))[1]
    batch = batch._replace(judged=(latent.mean((1, 2, 3)) > latent.mean()).float())
    optimiser = torch.optim.Adam(objective.networks["scorer"].parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = objective._loss(batch, DRAWS)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.5 * losses[0]
    assert float(loss.terms["order_1"]) > 0.9


@pytest.mark.parametrize(
    ("scores", "judged", "share"),
    [([3.0, 2.0, 1.0], [0.9, 0.5, 0.1], 1.0), ([1.0, 2.0, 3.0], [0.9, 0.5, 0.1], 0.0), ([1.0, 1.0], [0.9, 0.1], 0.5)],
)
def test_order_counts_pairs(scores, judged, share):
    assert float(in_order(torch.tensor(scores), torch.tensor(judged))) == pytest.approx(share)


@pytest.mark.parametrize("model", [{"latent_channels": 5}, {"side": 4}, {"scales": [2]}], ids=str)
def test_sizes_that_are_not_those_of_the_model_are_named(settings, cache, model):
    values = settings(NAME)
    recipe = recipe_from(values | {"model": values["model"] | model})
    with pytest.raises(ValueError, match=next(iter(model))):
        objective_class(NAME)(recipe, Workplace(cache, Team(0, 1, torch.device("cpu"))))
