"""Hi-MAR's objective: small images, masks of both phases, what phase 2 reads of pivots, the weights of the losses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws

CPU = torch.device("cpu")


def draws(step):
    return Draws(0, step, 0, 1, 8, CPU)


class Spy(nn.Module):
    """Answers with zeros and keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, labels, pivots, tokens, passed):
        self.seen.append((pivots, tokens, passed))
        return torch.zeros(*pivots.states.shape[:-1], 2 * pivots.states.shape[-1]), torch.zeros_like(tokens.states)


@pytest.fixture
def spied(build):
    objective, batch = build("himar", diffusion_copies=3)
    objective.networks["himar"] = Spy()
    return objective, batch, objective.networks["himar"].seen


def test_phases_have_shares_of_hidden_tokens_of_their_own(spied):
    objective, batch, seen = spied
    for step in range(60):
        objective._loss(batch, draws(step))
    hidden = torch.tensor([(16 - p.known, 64 - t.known) for p, t, _ in seen], dtype=torch.float)
    assert hidden[:, 0].min() >= 12  # the smallest whole number above 0.7 of 16
    assert hidden[:, 1].min() < 12
    assert float(hidden[:, 1].mean()) / 64 == pytest.approx(2 / torch.pi, abs=0.1)
    pivots, tokens, _ = seen[0]
    assert pivots.states.shape == (3, 8, 16 - pivots.known, 4)
    assert pivots.steps.shape == pivots.states.shape[:-1]
    assert (tokens.states.shape, tokens.steps.shape) == ((3, 8, 64, 4), (3, 8, 1))


def test_features_of_pivots_are_passed_to_more_and_more_images(spied):
    objective, batch, seen = spied
    objective.steps = 800
    for step in (0, *range(100, 160)):
        objective._loss(batch, draws(step))
    assert not seen[0][2].any()
    assert float(torch.stack([passed for *_, passed in seen[1:]]).float().mean()) == pytest.approx(0.25, abs=0.08)
    assert [objective._passed(step) for step in (50, 100, 800)] == [0.125, 0.25, 0.25]


def test_the_loss_weighs_phases_by_their_tokens_and_counts_visible_tokens_as_zero(spied):
    objective, batch, seen = spied
    loss = objective._loss(batch, draws(7))
    hidden, terms = 1 - seen[0][1].known / 64, {name: float(value) for name, value in loss.terms.items()}
    expected = (
        16 / 80 * 2 * (terms["error_pivots"] + terms["bound_pivots"]) + 64 / 80 * 0.75 * hidden * terms["error_map"]
    )
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)
    assert terms["error_map"] == pytest.approx(1.0, abs=0.15)  # of a network that predicts 0


def test_small_latents_are_those_of_the_smaller_images(build):
    objective, batch = build("himar")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    found = objective._small_moments_of(Batch(batch.labels[:2], images=images))
    small = F.interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(-1, 1)
    torch.testing.assert_close(found, objective.tokenizer.autoencoder.encode(small).latent_dist.parameters)
    assert batch.small_moments.shape == (8, 8, 4, 4)


def test_phase_two_reads_the_features_of_hidden_pivots_where_they_are_passed(build):
    objective, batch = build("himar", class_dropout=0.0)
    network, seen = objective.networks["himar"].eval(), []
    nn.init.normal_(network.map_head.final_layer.linear.weight)
    for block in network.map_head.blocks:
        nn.init.normal_(block.adaLN_modulation[1].weight)
    made, passed = network._map_features, torch.tensor([True, False] * 4)
    network._map_features = lambda condition, shown, *rest: seen.append(shown) or made(condition, shown, *rest)

    def asked(labels, pivots, tokens, _):
        seen.append(pivots)
        return network(labels, pivots, tokens, passed)

    objective.networks["himar"] = asked
    objective._loss(batch, draws(1)).total.backward()
    pivots, shown = seen
    empty = (shown == network.cond_proj(network.cond_tokens)[0]).all(dim=-1)
    visible = torch.zeros(8, 16, dtype=torch.bool).scatter(1, pivots.order_BL[:, : pivots.known], True)
    assert pivots.known > 0
    assert torch.equal(empty, visible | ~passed.unsqueeze(1))
    assert network.cond_z_proj.weight.grad.abs().sum() > 0


def test_validation_is_the_same_every_time(build):
    objective, _ = build("himar")
    network = objective.networks["himar"].eval()
    with torch.no_grad():
        first = objective.validate(network)
        torch.rand(3)
        assert objective.validate(network) == first
    assert set(first) == {"loss", "error_pivots", "bound_pivots", "error_map"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective_options": {"passed": 1.5}}, "passed is 1.5"),
        ({"model": {"prediction": "data"}}, "prediction is 'data'; it must be one of epsilon, velocity"),
        ({"model": {"pivot_side": 8}}, "pivot_side is 8"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny, settings, changes, words):
    if "model" in changes:
        changes = changes | {"model": settings("himar")["model"] | changes["model"]}
    with pytest.raises(ValueError, match=words):
        tiny("himar", **changes)
