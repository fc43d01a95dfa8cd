"""Perceptual distances by networks of timm, which are read from a local folder here."""

import pytest
import timm
import torch
from torch.nn import functional as F

from var_toolkit.training.loop import train
from var_toolkit.training.perceptual import PerceptualDistance, TimmFeatures
from var_toolkit.training.reconstruction import edge_loss


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    """What timm calls a small pretrained network that lies in a folder."""
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("test_resnet"), folder, safe_serialization=True)
    return f"local-dir:{folder}"


def images(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equal_images_have_no_distance_and_others_have_one(name):
    distance = PerceptualDistance(TimmFeatures(name))
    assert distance(images(0), images(0)).item() == 0
    assert distance(images(0), images(1)).item() > 0.01


def test_the_network_sees_images_normalised_as_it_was_trained(name):
    network = timm.create_model(name, pretrained=True, features_only=True).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = network(((images(0) + 1) / 2 - mean) / std)
    found = TimmFeatures(name).eval().levels(images(0))
    assert len(found) == len(expected) > 1
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_gradients_reach_the_made_images_alone(name):
    distance = PerceptualDistance(TimmFeatures(name))
    made, real = images(0).requires_grad_(), images(1).requires_grad_()
    distance(made, real).backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert real.grad is None
    assert not list(filter(lambda p: p.requires_grad, distance.parameters()))


def test_a_tokenizer_trains_on_that_distance(name, tiny, cache, tmp_path):
    options = {"perceptual": 0.1, "perceptual_network": f"timm:{name}"}
    final = train(tiny("tokenizer", steps=1, objective_options=options), tmp_path, cache_dir=cache, device="cpu")
    assert '"perceptual"' in (final.parent / "log.jsonl").read_text()


@pytest.mark.parametrize("missing", ["no-such-network", "local-dir:/no-such-folder"])
def test_what_timm_does_not_have_is_named(missing):
    with pytest.raises(ValueError, match=missing) as caught:
        TimmFeatures(missing)
    assert "\n" not in str(caught.value)


def test_a_blurred_edge_costs_more_than_one_a_pixel_away():
    """Squared differences say the opposite, and so blur edges."""
    real = torch.full((1, 3, 16, 16), -0.5)
    real[..., 8:] = 0.5
    moved = real.roll(1, 3).index_fill(3, torch.tensor([0]), -0.5)
    blurred = real.clone()
    blurred[..., 6:10] = torch.tensor([-0.4, -0.2, 0.2, 0.4])
    assert edge_loss(real, real) == 0
    assert edge_loss(blurred, real) > edge_loss(moved, real) > 0
    assert F.mse_loss(blurred, real) < F.mse_loss(moved, real)


def test_images_without_edges_get_a_gradient():
    flat = torch.zeros(1, 3, 8, 8, requires_grad=True)
    edge_loss(flat + 0.01 * images(0)[:1, :, :8, :8], images(1)[:1, :, :8, :8]).backward()
    edge_loss(flat, flat.detach()).backward()
    assert flat.grad.isfinite().all()
    assert flat.grad.abs().sum() > 0
