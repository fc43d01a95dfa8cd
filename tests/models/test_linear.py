"""The fast linear layers equal those of torch."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.models.layers.linear import Linear, linear, linear_gelu, linear_silu


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_without_gradients_the_result_is_the_same(rows, bias):
    x, weight = torch.randn(2, rows, 33), torch.randn(17, 33)
    b = torch.randn(17) if bias else None
    with torch.no_grad():
        assert_close(linear(x, weight, b), F.linear(x, weight, b), atol=1e-5, rtol=1e-5)
        expected = F.gelu(F.linear(x, weight, b), approximate="tanh")
        assert_close(linear_gelu(x, weight, b), expected, atol=2e-5, rtol=1e-5)
        assert_close(linear_silu(x, weight, b), F.silu(F.linear(x, weight, b)), atol=2e-5, rtol=1e-5)


def test_non_contiguous_inputs_work():
    x, weight = torch.randn(3, 5, 66)[:, ::2, ::2], torch.randn(17, 66)[:, ::2]
    with torch.no_grad():
        assert_close(linear(x, weight, None), F.linear(x, weight), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("product", [linear, linear_gelu, linear_silu])
def test_gradients_flow_if_enabled(product):
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    product(x, weight, None).sum().backward()
    assert x.grad.abs().sum() > 0
    assert weight.grad.abs().sum() > 0


@pytest.fixture
def layer() -> Linear:
    torch.manual_seed(0)
    return Linear(40, 24).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 30, 600])
def test_a_packed_layer_gives_the_same(layer, dtype, rows):
    layer.to(dtype)
    x = torch.randn(2, rows, 40, dtype=dtype)
    with torch.no_grad():
        before = layer(x)
        layer.pack()
        assert_close(layer(x), before, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)
    assert_close(layer(x).detach(), before, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)


def test_a_packed_layer_is_saved_moved_copied_and_trained_like_any_other(layer):
    weight = layer.weight.detach().clone()
    layer.pack()
    assert torch.equal(layer.state_dict()["weight"], weight)
    assert torch.equal(deepcopy(layer).state_dict()["weight"], weight)
    assert torch.equal(layer.to(torch.float64).weight, weight.double())
    layer.float().pack()
    layer.train()
    layer(torch.randn(3, 40)).sum().backward()
    assert layer.weight.grad is not None


def test_weights_load_into_a_packed_network_after_it_is_set_to_train(layer):
    layer.pack()
    layer.train().load_state_dict({"weight": torch.ones(24, 40), "bias": torch.zeros(24)})
    assert layer.weight.min() == 1
