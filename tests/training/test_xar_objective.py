"""xAR's objective: noise of each cell, also as context."""

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
        return torch.zeros_like(asked[1])


def test_each_cell_has_noise_of_its_own(build):
    objective, batch = build("xar")
    objective.networks["xar"] = spy = Spy()
    losses = [objective._loss(batch, Draws(0, step, 0, 1, 8, CPU)) for step in range(60)]
    times = torch.cat([asked[2] for asked in spy.seen])
    assert times.shape == (480, 4)
    assert float(times.logit().mean()) == pytest.approx(0, abs=0.1)  # normal numbers
    assert float(times.logit().std()) == pytest.approx(1, abs=0.1)
    assert set(losses[0].terms) == {"loss", *(f"error_block_{number}" for number in range(4))}
    sampled = objective.tokenizer.latents(batch.moments, torch.randn_like(batch.moments[:, :4]))
    variance = float(sampled.square().mean())
    assert float(torch.stack([loss.total for loss in losses]).mean()) == pytest.approx(1 + variance, rel=0.1)
