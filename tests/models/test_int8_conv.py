"""Convolutions in 8 bits are near the wide ones, whatever multiplies, and decoders keep their first and last one."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.loading import load, load_tokenizer
from var_toolkit.models.layers import int8_conv
from var_toolkit.models.layers.int8_conv import Int8Conv2d, has_int8_convolutions, quantize_convolutions
from var_toolkit.models.layers.int8_layer import is_quantized
from var_toolkit.pipeline import Pipeline

ERROR = 0.02  # of the norm of a result
CLOSE = 40  # dB of PSNR, of a decoder in int8 to the wide one
CASES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "stride": 2, "dilation": 2},
    "grouped": {"kernel_size": (3, 1), "padding": (1, 0), "groups": 4},
}
by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
plain_or_packed = pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])


def made(case, channels=12, outputs=20):
    torch.manual_seed(0)
    return nn.Conv2d(channels, outputs, **case).requires_grad_(False).eval()


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def noise(*shape):
    return F.silu(torch.randn(*shape, generator=torch.Generator().manual_seed(1)))


@by_case
@plain_or_packed
def test_the_result_is_near_the_wide_one(case, packed):
    wide, x = made(case), noise(2, 12, 9, 7)
    layer = Int8Conv2d(wide)
    if packed:
        layer.pack()
        assert layer.weight.is_mkldnn == has_int8_convolutions()
    assert 0 < relative(layer(x), wide(x)) < ERROR
    assert 0 < relative(layer.doubled(x), wide(F.interpolate(x, scale_factor=2.0))) < ERROR


@pytest.mark.parametrize("low", [-11.5, -100.5, 0.0, -255.0])
def test_the_largest_value_of_an_image_stays_the_largest(low):
    x = torch.linspace(low, low + 255, 511).view(1, 1, 7, 73)
    whole, step, zero = int8_conv._quantised(x)
    assert_close((whole.float() - zero) * step, x, rtol=0, atol=1.01 * step)


def test_without_the_operators_the_result_is_near_too(monkeypatch):
    monkeypatch.setattr(int8_conv, "has_int8_convolutions", lambda: False)
    wide, x = made(CASES["3x3"]), noise(2, 12, 9, 7)
    layer = Int8Conv2d(wide)
    layer.pack()
    assert not layer.weight.is_mkldnn
    assert 0 < relative(layer(x), wide(x)) < ERROR
    assert relative(layer.doubled(x), wide(F.interpolate(x, scale_factor=2.0))) < ERROR


def test_an_image_does_not_depend_on_the_others():
    layer, x = Int8Conv2d(made(CASES["3x3"])), noise(3, 12, 9, 7)
    before = layer(x)[:1]
    x[1] *= 1000
    assert torch.equal(layer(x)[:1], before)
    assert torch.equal(layer(x[:1]), before)


def test_an_image_larger_than_a_piece_is_quantised_whole(monkeypatch):
    layer, x = Int8Conv2d(made(CASES["3x3"])), noise(1, 12, 9, 7)
    wanted = layer(x)
    monkeypatch.setattr(int8_conv, "PIECE", 50)
    assert torch.equal(layer(x), wanted)


def test_zeros_give_the_bias_and_what_is_not_finite_stays_so():
    wide, x = made(CASES["1x1"]), torch.zeros(3, 12, 4, 4)
    x[1, 3, 2, 2], x[2, 3, 2, 2] = float("nan"), float("inf")
    found = Int8Conv2d(wide)(x)
    assert torch.equal(found[0], wide.bias[:, None, None].expand(-1, 4, 4))
    assert not found[1].isfinite().any() or not has_int8_convolutions()
    assert not found[1:, :, 2, 2].isfinite().any()


@by_case
def test_a_layer_is_saved_moved_and_copied_with_the_same_bits(case):
    layer, x = Int8Conv2d(made(case)), noise(2, 12, 9, 7)
    before, weight = layer(x), layer.weight.clone()
    layer.pack()
    assert torch.equal(layer(x), before)
    assert torch.equal(deepcopy(layer).weight, weight)
    other = Int8Conv2d(made(case))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), before)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer.weight, weight)


def test_operators_that_are_missing_or_differ_are_not_used(monkeypatch):
    if not has_int8_convolutions():
        pytest.skip("this processor does not use them")
    for broken in (lambda: torch.ops.onednn.no_such_operator, lambda: False):
        monkeypatch.setattr(int8_conv, "_operators_agree", broken)
        assert has_int8_convolutions.__wrapped__() is False


@pytest.mark.parametrize("name", ["stilllife-tokenizer", "stilllife-raster-vq", "stilllife-kl", "scenes-infinity"])
@torch.no_grad()
def test_a_decoder_in_int8_is_near_the_wide_one(name):
    wide = load_tokenizer(name, device="cpu")
    narrow = deepcopy(wide)
    network = getattr(narrow, "autoencoder", narrow)
    quantize_convolutions(network)
    kept = {key for key, module in network.decoder.named_modules() if isinstance(module, nn.Conv2d)}
    assert kept == {"conv_in", "conv_out"}
    assert not is_quantized(network.encoder)
    latent = torch.randn(1, wide.channels, wide.latent_side if hasattr(wide, "latent_side") else 8, 8)
    error = (narrow.decode(latent) - wide.decode(latent)).square().mean() / 4
    assert 0 < error < 10 ** (-CLOSE / 10)


def test_a_saved_decoder_in_int8_is_loaded_so(small_tokenizer, small_var, tmp_path):
    pipe = Pipeline(deepcopy(small_tokenizer), deepcopy(small_var)).quantize()
    pipe.save_pretrained(tmp_path / "model")
    tokenizer = load(tmp_path / "model", device="cpu").tokenizer
    latent = torch.randn(1, tokenizer.channels, tokenizer.latent_side, tokenizer.latent_side)
    assert is_quantized(tokenizer)
    assert_close(tokenizer.decode(latent), pipe.tokenizer.decode(latent), atol=0.04, rtol=0)


def test_a_saved_autoencoder_in_int8_is_loaded_so(tmp_path):
    pipe = load("stilllife-flowar", device="cpu", dtype="int8")
    pipe.save_pretrained(tmp_path / "model")
    tokenizer = load(tmp_path / "model", device="cpu").tokenizer
    latent = torch.randn(1, tokenizer.channels, 8, 8)
    assert is_quantized(tokenizer)
    assert_close(tokenizer.decode(latent), pipe.tokenizer.decode(latent), atol=0.04, rtol=0)
