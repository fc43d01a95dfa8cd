"""Linear layers in 8 bits are near the wide ones, whatever multiplies, and the right ones are quantised."""

from copy import deepcopy

import pytest
import torch
from named_models import by_size
from torch import nn
from torch.testing import assert_close

from var_toolkit.loading import skeleton
from var_toolkit.models.layers import int8_linear
from var_toolkit.models.layers.int8_layer import is_quantized, weights_of
from var_toolkit.models.layers.int8_linear import Int8Linear, has_int8_operators, quantize_linears
from var_toolkit.models.layers.linear import Linear, pack_linears

ERROR = 0.02  # of the norm of a result: half a step of 254 in each weight and input


@pytest.fixture
def wide() -> Linear:
    torch.manual_seed(0)
    return Linear(40, 24).eval()


def relative(found, wanted) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("rows", [1, 7, 600])
@pytest.mark.parametrize("how", ["__call__", "gelu", "silu"])
@torch.no_grad()
def test_the_result_is_near_the_wide_one(wide, how, rows, packed):
    layer, x = Int8Linear(wide), torch.randn(2, rows, 40)
    if packed:
        layer.pack()
    assert relative(getattr(layer, how)(x), getattr(wide, how)(x)) < ERROR
    assert relative(layer.with_bias(x, None), wide.with_bias(x, None)) < ERROR


@torch.no_grad()
def test_packed_and_plain_products_are_the_same(wide):
    layer, x = Int8Linear(wide), torch.randn(30, 40)
    plain = layer(x)
    layer.pack()
    assert layer.weight.is_mkldnn == has_int8_operators()
    assert_close(layer(x), plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@torch.no_grad()
def test_large_inputs_are_computed_by_pieces_with_the_same_result(wide, packed, dtype, monkeypatch):
    layer, x = Int8Linear(wide), torch.randn(3, 11, 40).to(dtype)
    if packed:
        layer.pack()
    compute = (layer, layer.gelu, layer.silu, lambda x: layer.with_bias(x, None))
    wanted = [one(x) for one in compute]
    monkeypatch.setattr(int8_linear, "LARGE", 33 * 40 - 1)
    monkeypatch.setattr(int8_linear, "PIECE", 10)
    sizes, product = [], Int8Linear._product
    monkeypatch.setattr(
        Int8Linear, "_product", lambda self, rows, *rest: (sizes.append(len(rows)), product(self, rows, *rest))[1]
    )
    found = [one(x) for one in compute]
    assert sizes == [10, 10, 10, 3] * len(compute)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_packing_a_network_packs_them(wide):
    network = nn.Sequential(Int8Linear(wide), Linear(24, 8))
    pack_linears(network)
    assert network[0].weight.is_mkldnn == has_int8_operators()


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others(wide):
    layer, x = Int8Linear(wide), torch.randn(30, 40)
    layer.pack()
    before = layer(x[:3])
    x[7] *= 1000
    assert torch.equal(layer(x)[:3], before)


@torch.no_grad()
def test_rows_of_zeros_give_the_bias_and_nan_stays_nan(wide):
    layer, x = Int8Linear(wide), torch.zeros(2, 40)
    layer.pack()
    x[1, 3] = float("nan")
    found = layer(x)
    assert torch.equal(found[0], wide.bias)
    assert found[1].isnan().all()


@torch.no_grad()
def test_a_layer_is_saved_moved_and_copied_with_the_same_bits(wide):
    layer, x = Int8Linear(wide), torch.randn(5, 40)
    before, weight = layer(x), layer.weight.clone()
    layer.pack()
    assert torch.equal(deepcopy(layer).weight, weight)
    other = Int8Linear(Linear(40, 24))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), before)
    scale = layer.scale.clone()
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.int8
    assert torch.equal(layer.scale, scale)


def test_quantising_what_was_quantised_gives_the_same_whole_numbers(wide):
    first = Int8Linear(wide)
    wide.weight.data = first.weight * first.scale[:, None]
    assert torch.equal(Int8Linear(wide).weight, first.weight)


def test_a_network_in_int8_is_not_trained(wide):
    with pytest.raises(ValueError, match="int8"):
        Int8Linear(wide).train()


def test_operators_that_are_missing_or_differ_are_not_used(monkeypatch):
    if not has_int8_operators():
        pytest.skip("this processor does not use them")
    for broken in (lambda: torch.ops.onednn.no_such_operator, lambda: False):
        monkeypatch.setattr(int8_linear, "_operators_agree", broken)
        assert has_int8_operators.__wrapped__() is False


@pytest.mark.parametrize("name", by_size())
def test_of_every_model_the_blocks_are_quantised_and_the_rest_stays(name):
    pipe = skeleton(name)
    before = [sum(p.numel() for p in weights_of(network)) for network in pipe.networks]
    pipe.quantize()
    for network, count in zip(pipe.networks, before, strict=True):
        left = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
        assert is_quantized(network)
        assert not [key for key in left if key.split(".")[0].endswith(("block", "blocks"))]
        assert sum(p.numel() for p in weights_of(network)) == count


def test_weights_of_a_large_model_take_about_a_quarter():
    pipe = skeleton("var-d30")
    wide = sum(4 * p.numel() for p in weights_of(pipe.backbone))
    held = sum(t.nbytes for t in pipe.quantize().backbone.state_dict().values())
    assert held <= 0.27 * wide


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Conv2d"):
        quantize_linears(nn.Conv2d(3, 3, 3))
