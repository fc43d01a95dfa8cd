"""Self-attention gives the same whatever operators compute it."""

import pytest
import torch
from torch.testing import assert_close

from var_toolkit.models.layers.attention import SelfAttention, constants_of, to_all
from var_toolkit.models.layers.linear import linear_gelu


@pytest.mark.parametrize("x", [torch.randn(2, 5, 24), torch.zeros(2, 5, 24)], ids=["random", "zero"])
def test_queries_and_keys_normalised_by_one_kernel_are_those_of_several(x):
    layer = SelfAttention(24, 3, l2_norm=True)
    [several] = constants_of([layer])
    one = several._replace(weight=torch.full((8,), 8**-0.5))
    with torch.no_grad():
        assert_close(layer(x, to_all, None, 0, constants=one), layer(x, to_all, None, 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("l2_norm", [True, False])
def test_constants_of_many_layers_are_those_of_each(l2_norm):
    layers = [SelfAttention(12, 2, l2_norm=l2_norm) for _ in range(3)]
    for layer in layers:
        for weight in layer.parameters():
            torch.nn.init.normal_(weight)
    for layer, found in zip(layers, constants_of(layers), strict=True):
        x = torch.randn(1, 4, 12)
        assert torch.equal(layer(x, to_all, None, 0, constants=found), layer(x, to_all, None, 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gelu_in_the_product_is_the_tanh_approximation():
    x, weight, bias = (torch.randn(*shape, device="cuda") for shape in ((2, 3, 64), (32, 64), (32,)))
    with torch.no_grad():
        found = linear_gelu(x, weight, bias)
        assert_close(found, torch.nn.functional.gelu(x @ weight.T + bias, approximate="tanh"), atol=1e-3, rtol=1e-3)
