"""MAR's objective: mask ratios, repeated draws, the terms of the loss, and what is refused."""

import pytest
import torch
from torch import nn

from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train

CPU = torch.device("cpu")


def draws(step, rank=0, world_size=1):
    return Draws(0, step, rank, world_size, 8, CPU)


class Spy(nn.Module):
    """Answers with zeros and keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, labels, tokens, order, known, states, steps):
        self.seen.append((labels, order, known, states, steps))
        return torch.zeros(*states.shape[:-1], 2 * states.shape[-1])


@pytest.fixture
def spied(build):
    objective, batch = build("mar", diffusion_copies=3)
    objective.networks["mar"] = Spy()
    return objective, batch, objective.networks["mar"].seen


def test_one_share_of_each_batch_is_hidden_in_a_random_order_of_each_image(spied):
    objective, batch, seen = spied
    for step in range(200):
        objective._loss(batch, draws(step))
    hidden = torch.tensor([64 - known for _, _, known, _, _ in seen], dtype=torch.float)
    assert hidden.min() >= 44  # the smallest whole number above 0.7 of 64
    assert hidden.max() <= 64
    assert float(hidden.mean()) / 64 == pytest.approx(0.867, abs=0.02)
    order = seen[0][1]
    assert torch.equal(order.sort(dim=1).values, torch.arange(64).expand(8, 64))
    assert not torch.equal(order[0], order[1])


def test_every_process_hides_as_many_tokens(spied):
    objective, batch, seen = spied
    half = batch._replace(labels=batch.labels[:4], moments=batch.moments[:4])
    for rank in range(2):
        objective._loss(half, draws(5, rank, 2))
    assert seen[0][2] == seen[1][2]


def test_hidden_tokens_are_denoised_several_times_at_steps_of_their_own(spied):
    objective, batch, seen = spied
    loss = objective._loss(batch, draws(0))
    _, _, known, states, steps = seen[0]
    assert states.shape == (3, 8, 64 - known, 4)
    assert steps.unique().numel() > 300
    assert loss.terms["error"] == pytest.approx(1.0, abs=0.1)  # of a network that predicts 0
    assert float(loss.total) == pytest.approx(float(loss.terms["error"] + loss.terms["bound"]))


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_it_trains_and_what_it_saves_draws(tiny, settings, tmp_path, cache, prediction):
    from var_toolkit.loading import load

    model = settings("mar")["model"] | {"prediction": prediction}
    final = train(tiny("mar", model=model, steps=3, sample_every=3), tmp_path / "out", cache_dir=cache, device="cpu")
    pipe = load(final, device="cpu")
    assert pipe.sampling.steps == 64
    drawn = pipe(3, seeds=0, steps=2, solver="dpm++", denoising_steps=2, output_type="latent")
    assert drawn.images.shape == (1, 4, 8, 8)


def test_validation_is_the_same_every_time(build):
    objective, _ = build("mar")
    network = objective.networks["mar"].eval()
    with torch.no_grad():
        first = objective.validate(network)
        torch.rand(3)
        assert objective.validate(network) == first
    assert set(first) == {"loss", "error", "bound"}


def test_the_head_has_no_weight_decay(build):
    objective, _ = build("mar")
    network = objective.networks["mar"]
    decayed = {id(p) for group in objective.param_groups(network) if group["decay"] for p in group["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in decayed}
    assert "encoder_blocks.0.attn.qkv.weight" in names
    assert not any(name.startswith("diffloss.") or name.endswith("bias") for name in names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": None}, "missing key 'tokenizer'"),
        ({"objective_options": {"diffusion_copies": 0}}, "diffusion_copies is 0"),
        ({"objective_options": {"mask_ratio_min": 1.5}}, "mask_ratio_min is 1.5"),
        ({"model": {"prediction": "data"}}, "prediction is 'data'; it must be one of epsilon, velocity"),
        ({"model": {"num_heads": 3}}, "embed_dim is 16; it must be a multiple of num_heads"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny, settings, changes, words):
    if "model" in changes:
        changes = changes | {"model": settings("mar")["model"] | changes["model"]}
    with pytest.raises(ValueError, match=words):
        tiny("mar", **changes)
