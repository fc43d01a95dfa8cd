"""ACDiT's objective: a step of diffusion for each block, and what is learned."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from var_toolkit.training.draws import Draws

CPU = torch.device("cpu")


class Spy(nn.Module):
    """Answers with zeros and keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, *asked):
        self.seen.append(asked)
        return torch.zeros_like(asked[2])


def test_each_block_of_each_image_has_a_step_of_its_own(build):
    objective, batch = build("acdit")
    objective.networks["acdit"] = Spy()
    loss = objective._loss(batch, Draws(0, 0, 0, 1, 8, CPU))
    _, clean, states, steps = objective.networks["acdit"].seen[0]
    assert (clean.shape, steps.shape) == ((8, 64, 4), (8, 4))
    assert steps.unique().numel() > 20
    assert float(loss.total) == pytest.approx(1.0, abs=0.1)  # of a network that predicts 0
    assert set(loss.terms) == {"loss", *(f"error_block_{number}" for number in range(4))}
    # The first block in block order is the upper left quarter of the map.
    assert torch.equal(objective.order_L[:8], torch.tensor([0, 1, 2, 3, 8, 9, 10, 11]))
    assert (states - clean).abs().mean() > 0.1


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_validation_is_the_same_every_time(build, prediction):
    objective, _ = build("acdit")
    objective.recipe = replace(objective.recipe, model=replace(objective.recipe.model, prediction=prediction))
    network = objective.networks["acdit"].eval()
    with torch.no_grad():
        first = objective.validate(network)
        torch.rand(3)
        assert objective.validate(network) == first
    assert 0 < first["loss"] < 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"prediction": "data"}, "prediction is 'data'; it must be one of epsilon, velocity"),
        ({"block_side": 3}, "side is 8; it must be a multiple of block_side, 3"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny, settings, model, words):
    with pytest.raises(ValueError, match=words):
        tiny("acdit", model=settings("acdit")["model"] | model)
