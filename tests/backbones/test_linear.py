"""The fast linear layers give what torch's give."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.backbones.linear import linear, linear_gelu


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_without_gradients_the_result_is_the_same(rows, bias):
    x, weight = torch.randn(2, rows, 33), torch.randn(17, 33)
    b = torch.randn(17) if bias else None
    with torch.no_grad():
        assert_close(linear(x, weight, b), F.linear(x, weight, b), atol=1e-5, rtol=1e-5)
        expected = F.gelu(F.linear(x, weight, b), approximate="tanh")
        assert_close(linear_gelu(x, weight, b), expected, atol=2e-5, rtol=1e-5)


def test_views_that_are_not_contiguous_are_taken():
    x, weight = torch.randn(3, 5, 66)[:, ::2, ::2], torch.randn(17, 66)[:, ::2]
    with torch.no_grad():
        assert_close(linear(x, weight, None), F.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_gradients_flow_when_they_are_wanted():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    linear_gelu(x, weight, None).sum().backward()
    assert x.grad.abs().sum() > 0
    assert weight.grad.abs().sum() > 0
