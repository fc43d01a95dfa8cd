"""GPU tests of the Triton kernels: every configuration at a published size, and the same bits twice."""

import pytest
import torch

from var_toolkit.core.schedule import Schedule
from var_toolkit.kernels import pyramid_attention
from var_toolkit.kernels.pyramid_attention import attention

triton_attention = pytest.importorskip("var_toolkit.kernels.triton_attention", exc_type=ImportError)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SCALES = Schedule.named("256")


def gradients(packed, backend, pattern):
    """The output and the gradient of the packed queries, keys and values."""
    leaf = packed.detach().requires_grad_()
    out = attention(*leaf.permute(2, 0, 3, 1, 4).unbind(0), SCALES, backend=backend, pattern=pattern)
    out.backward(torch.ones_like(out))
    return out.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", ["block-causal", "block-diagonal"])
@pytest.mark.parametrize(
    ("name", "width", "config"),
    [(*key, config) for key, configs in triton_attention.CONFIGS.items() for config in configs],
    ids=str,
)
def test_every_configuration_equals_the_reference(name, width, config, pattern, dtype, monkeypatch):
    def choose_config(kernel, problem, tuned):
        return config if kernel == name else triton_attention.CONFIGS[kernel, width][0]

    monkeypatch.setattr(triton_attention, "choose_config", choose_config)
    packed = torch.randn(2, SCALES.total, 3, 3, width, device="cuda", dtype=dtype)
    try:
        found = gradients(packed, "triton", pattern)
    except triton_attention.OutOfResources:
        pytest.skip("too little shared memory on this card")
    for x, y in zip(found, gradients(packed.double(), "reference", pattern), strict=True):
        torch.testing.assert_close(x.double(), y, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("width", [32, 48, 64, 80, 96, 128])
def test_auto_uses_the_tuned_configuration_and_gives_the_same_bits_twice(width):
    packed = torch.randn(3, SCALES.total, 3, 5, width, device="cuda", dtype=torch.bfloat16)
    assert pyramid_attention._best_backend(packed[:, :, 0]) == "triton"
    for x, y in zip(gradients(packed, "auto", "block-causal"), gradients(packed, "auto", "block-causal"), strict=True):
        assert torch.equal(x, y)


def test_sampling_never_tunes(monkeypatch):
    monkeypatch.setattr(triton_attention, "_milliseconds", lambda *_: pytest.fail("a configuration was measured"))
    packed = torch.randn(1, SCALES.total, 3, 7, 64, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        attention(*packed.permute(2, 0, 3, 1, 4), SCALES, backend="triton")


@pytest.mark.parametrize("pattern", ["block-causal", "block-diagonal"])
def test_flex_equals_the_reference_in_output_and_gradient(pattern):
    packed = torch.randn(1, SCALES.total, 3, 2, 64, device="cuda", dtype=torch.float16)
    wanted = gradients(packed.double(), "reference", pattern)
    for x, y in zip(gradients(packed, "flex", pattern), wanted, strict=True):
        torch.testing.assert_close(x.double(), y, atol=2e-2, rtol=2e-2)
