"""LlamaGen's tokenizer agrees with the published one, finds codes by cosine similarity, and learns."""

import pytest
import torch
from golden.cases import load_case
from small_llamagen import golden_vq, tiny_vq
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.directory import load_network, save_network
from var_toolkit.tokenizers.raster_vq import CosineQuantizer, RasterVQConfig


@pytest.fixture(scope="module")
def case():
    return load_case("llamagen-vq").tensors


@pytest.fixture(scope="module")
def golden():
    return golden_vq()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def quantizer() -> CosineQuantizer:
    """Codes of many lengths."""
    quantizer = CosineQuantizer(16, 4, beta=0.25)
    torch.manual_seed(0)
    torch.nn.init.normal_(quantizer.embedding.weight, std=3.0)
    return quantizer


def test_images_become_the_published_tokens(golden, case):
    with torch.no_grad():
        assert_close(golden.features(case["image"]), case["latent"], atol=1e-4, rtol=0)
    (tokens,) = golden.encode(case["image"])
    assert torch.equal(tokens, case["ids"])
    assert_close(golden.latents([tokens])[0], case["quant"], atol=1e-5, rtol=0)


def test_tokens_become_the_published_images(golden, case):
    latent = golden.pyramid.grow(None, golden.pyramid.embed(case["decode_ids"]), 0)
    with torch.no_grad():
        assert_close(golden._decode_latent(latent), case["decoded"], atol=2e-4, rtol=0)
    assert_close(golden.decode(latent), case["decoded"].clamp(-1, 1), atol=2e-4, rtol=0)
    assert golden.decode(latent).abs().max() <= 1


def test_a_map_of_another_side_has_the_same_weights(golden, case):
    smaller = golden.for_schedule(Schedule((2,)))
    assert (smaller.config.side, smaller.scales.patch_nums, smaller.image_side) == (2, (2,), 32)
    assert (golden.config.side, golden.scales.patch_nums, golden.image_side) == (4, (4,), 64)
    assert all(one is other for one, other in zip(golden.parameters(), smaller.parameters(), strict=True))
    assert smaller.encode(case["image"][..., :32, :32])[0].shape == (2, 4)


def test_the_code_of_largest_cosine_is_found_for_any_lengths(quantizer):
    wanted = torch.randn(2, 9, 4)
    found = quantizer.nearest(wanted)
    angles = F.cosine_similarity(wanted.unsqueeze(2), quantizer.embedding.weight, dim=-1)
    assert torch.equal(found, angles.argmax(-1))
    assert torch.equal(quantizer.nearest(7 * wanted), found)
    nearest_by_distance = torch.cdist(wanted, quantizer.embedding.weight.expand(2, -1, -1)).argmin(-1)
    assert not torch.equal(found, nearest_by_distance)
    assert_close(quantizer.embed(found).norm(dim=-1), torch.ones(2, 9))


def test_gradients_pass_straight_through_to_the_normalised_features(quantizer):
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    weights, result = torch.randn(2, 4, 3, 3), quantizer(features)
    (ours,) = torch.autograd.grad((result.latent * weights).sum(), features, retain_graph=True)
    (expected,) = torch.autograd.grad((F.normalize(features, dim=1) * weights).sum(), features)
    assert_close(ours, expected)
    codes = quantizer.embed(result.tokens[0])
    assert_close(result.latent, codes.transpose(1, 2).unflatten(2, (3, 3)))


def test_the_loss_moves_codes_to_features_and_features_to_codes_by_beta(quantizer):
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    result, table = quantizer(features), quantizer.embedding.weight
    distance = F.mse_loss(
        F.normalize(table, dim=-1)[result.tokens[0]], F.normalize(features.flatten(2).mT, dim=-1)
    )  # of unit vectors
    assert_close(result.loss, 1.25 * distance)
    ours, expected = (torch.autograd.grad(x, (table, features), retain_graph=True) for x in (result.loss, distance))
    assert_close(ours[0], expected[0])
    assert_close(ours[1], 0.25 * expected[1])
    assert expected[1].abs().max() > 0


def test_the_training_pass_reconstructs_and_reaches_every_parameter(images):
    tokenizer = tiny_vq().train()
    found = tokenizer(images)
    (found.images.square().mean() + found.quantizer_loss).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert torch.equal(found.tokens[0], tokenizer.encode(images)[0])
    assert_close(found.images.detach().clamp(-1, 1), tokenizer.reconstruct(images), atol=1e-5, rtol=0)


def test_targets_and_errors_are_the_normalised_features_and_their_distances(images):
    tokenizer = tiny_vq()
    with torch.no_grad():
        features = tokenizer.features(images)
    vectors, errors = tokenizer.quantize.targets_and_errors(features)
    codes = tokenizer.quantize.embed(tokenizer.encode(images)[0]).flatten(0, 1)
    assert_close(vectors, F.normalize(features, dim=1).flatten(2).mT.flatten(0, 1))
    assert_close(errors, (vectors - codes).square().sum(1))


def test_in_bfloat16_the_codebook_stays_in_float32(images):
    tokenizer = tiny_vq().place("cpu", torch.bfloat16)
    assert tokenizer.quantize.embedding.weight.dtype == torch.float32
    assert tokenizer.encoder.conv_in.weight.dtype == torch.bfloat16
    found, expected = (network.reconstruct(images) for network in (tokenizer, tiny_vq()))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.3 * expected.abs().mean()


def test_saving_and_loading_gives_the_same_bits(tmp_path, images):
    tokenizer = tiny_vq()
    save_network(tokenizer, tmp_path / "vq")
    again = load_network(tmp_path / "vq")
    assert again.config == tokenizer.config
    assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images .*\(1, 3, 8, 8\).*\(B, 3, 6, 6\)"):
        tiny_vq().encode(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"code_dim": 0}, "code_dim is 0"),
        ({"side": -1}, "side is -1"),
        ({"ch_mult": ()}, "norm_groups is 32"),
        ({"ch": 48}, "norm_groups is 32"),
    ],
)
def test_impossible_sizes_are_refused_by_name(setting, found):
    with pytest.raises(ValueError, match=found):
        RasterVQConfig(**setting)
