"""The Triton kernels against the float64 reference: on a GPU if there is one, else in Triton's interpreter.

Letters: R rows, H heads, L tokens, D head width.
"""

import os

import pytest
import torch

from var_toolkit.core.schedule import Schedule
from var_toolkit.kernels.pyramid_attention import attention

triton_attention = pytest.importorskip("var_toolkit.kernels.triton_attention", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # numpy's, of rows beyond a tile's end
TOLERANCES = {  # of the output, then of gradients
    torch.float32: (2e-6, 2e-5),
    torch.float16: (2e-3, 8e-3),
    torch.bfloat16: (1e-2, 6e-2),
}
HALF = [
    torch.float16,
    *([torch.bfloat16] if torch.cuda.is_available() else []),
]  # the interpreter supports only float16


@pytest.fixture
def device():
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1 from the start, as test_triton_interpreted.py runs this file")
    return torch.device("cpu")


@pytest.fixture(autouse=True)
def _memory_begins_as_nan():
    """Fill scratch memory with NaN, so that unwritten outputs show."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def tiles(monkeypatch):
    """Set the tile sizes, rows and columns, of all three kernels."""

    def choose(rows, columns):
        config = triton_attention.Config(rows, columns, 4, 1)
        monkeypatch.setattr(triton_attention, "choose_config", lambda name, problem, tuned: config)

    return choose


def packed_views(rows, heads, tokens, width, dtype, device):
    """q, k and v as views of one packed tensor, with NaN before, between and after them."""
    memory = torch.full((rows, tokens + 40, 3, heads, width + 2), torch.nan, dtype=dtype, device=device)
    qkv = memory[:, 20 : 20 + tokens, :, :, :width]
    qkv.copy_(torch.randn(qkv.shape, generator=torch.Generator().manual_seed(0)))
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def transposed_views(rows, heads, tokens, width, dtype, device):
    """q, k and v whose last dimension is not contiguous."""
    memory = torch.randn(3, rows, heads, width, tokens, generator=torch.Generator().manual_seed(0))
    return memory.to(device, dtype).transpose(-1, -2).unbind(0)


def check(q, k, v, scales, logit_scale_H=None, **options):
    """Compare output and all gradients, for a non-uniform output gradient that is a view."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    if logit_scale_H is not None:
        leaves.append(logit_scale_H.detach().requires_grad_())
        wide.append(logit_scale_H.detach().double().requires_grad_())
    dout = torch.randn(q.transpose(-1, -2).shape, generator=torch.Generator().manual_seed(1)).to(q).transpose(-1, -2)
    outs = []
    for backend, inputs in (("triton", leaves), ("reference", wide)):
        out = attention(*inputs[:3], scales, logit_scale_H=(*inputs, None)[3], backend=backend, **options)
        out.backward(dout.to(out.dtype))
        outs.append(out)
    of_output, of_gradients = TOLERANCES[q.dtype]
    assert outs[0].dtype == q.dtype
    torch.testing.assert_close(outs[0].double(), outs[1], atol=of_output, rtol=of_output)
    for name, x, y in zip(("q", "k", "v"), leaves, wide, strict=False):
        torch.testing.assert_close(
            x.grad.double(), y.grad, atol=of_gradients, rtol=of_gradients, msg=lambda m, n=name: f"gradient of {n}: {m}"
        )
    if logit_scale_H is not None:
        sum_of_terms = of_gradients * q[:, 0, :, 0].numel()
        torch.testing.assert_close(leaves[3].grad.double(), wide[3].grad, atol=sum_of_terms, rtol=of_gradients)


@pytest.mark.parametrize("pattern", ["block-causal", "block-diagonal"])
@pytest.mark.parametrize(
    ("sides", "tokens", "heads", "width", "rows", "columns"),
    [
        ((1, 2, 3, 5), 39, 3, 32, 16, 16),  # three scales share a tile, the last has three with a ragged tail
        ((1, 2, 3, 5, 6), 39, 1, 48, 32, 16),  # the first scales of a longer schedule; padded head width
        ((2, 7), 53, 1, 80, 16, 32),  # a schedule that does not start with one token
        ((1, 2, 3, 4, 5), 55, 1, 32, 64, 16),  # rows that see only masked columns before their own scale
        ((6,), 36, 1, 64, 16, 16),  # a single scale: only the last tile of each row needs a mask
        ((1,), 1, 5, 32, 16, 16),  # one token
        ((1, 2, 3), 14, 1, 128, 64, 64),  # one tile that is larger than the whole
    ],
    ids=lambda x: str(x).replace(" ", ""),
)
def test_output_and_gradients_equal_the_reference(device, tiles, sides, tokens, heads, width, rows, columns, pattern):
    tiles(rows, columns)
    q, k, v = packed_views(1, heads, tokens, width, torch.float32, device)
    check(q, k, v, Schedule(sides), pattern=pattern)


@pytest.mark.parametrize("pattern", ["block-causal", "block-diagonal"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_close_to_the_reference(device, tiles, dtype, pattern):
    tiles(16, 16)
    check(*packed_views(1, 1, 55, 64, dtype, device), Schedule((1, 2, 3, 4, 5)), pattern=pattern)


@pytest.mark.parametrize("pattern", ["block-causal", "block-diagonal"])
def test_the_logit_scale_and_its_gradient_equal_the_reference(device, tiles, pattern):
    tiles(16, 16)
    logit_scale_H = torch.tensor([8.0, -0.5, 0.0], device=device)  # any sign is allowed, and zero
    q, k, v = packed_views(2, 3, 30, 32, torch.float32, device)
    check(q, k, v, Schedule((1, 2, 3, 4)), logit_scale_H, pattern=pattern, scale=0.25)


def test_a_logit_scale_in_half_precision_gets_a_gradient_in_half_precision(device, tiles):
    tiles(16, 16)
    logit_scale_H = torch.tensor([2.0, 0.5], device=device, dtype=torch.float16)
    check(*packed_views(1, 2, 14, 32, torch.float16, device), Schedule((1, 2, 3)), logit_scale_H)


def test_inputs_may_have_any_strides(device, tiles):
    tiles(16, 16)
    check(*transposed_views(2, 1, 14, 32, torch.float32, device), Schedule((1, 2, 3)))


def test_large_scores_stay_finite(device, tiles):
    tiles(16, 16)
    q, k, v = packed_views(1, 1, 39, 32, torch.float32, device)
    out = attention(q * 300, k * 300, v, Schedule((1, 2, 3, 5)), scale=1.0, pattern="block-diagonal", backend="triton")
    wanted = attention(
        q * 300, k * 300, v, Schedule((1, 2, 3, 5)), scale=1.0, pattern="block-diagonal", backend="reference"
    )
    torch.testing.assert_close(out, wanted)


def test_the_default_configuration_equals_the_reference(device):
    check(*packed_views(1, 1, 14, 64, torch.float16, device), Schedule((1, 2, 3)))


def test_the_interpreter_refuses_bfloat16(device):
    q = torch.zeros(1, 1, 5, 32, dtype=torch.bfloat16)
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"dtype is torch.bfloat16.* interpreter"):
            attention(q, q, q, Schedule((1, 2)), backend="triton")


def test_no_rows_give_no_rows(device, tiles):
    tiles(16, 16)
    q = torch.zeros(0, 2, 5, 32, device=device, requires_grad=True)
    out = attention(q, q, q, Schedule((1, 2)), backend="triton")
    out.sum().backward()
    assert out.shape == q.grad.shape == (0, 2, 5, 32)


def test_autocast_casts_as_torch_does(device, tiles):
    tiles(16, 16)
    q, k, v = (x.requires_grad_() for x in packed_views(1, 1, 14, 32, torch.float32, device))
    with torch.autocast(device.type, torch.float16):
        out = attention(q, k, v, Schedule((1, 2, 3)), backend="triton")
    assert out.dtype == torch.float16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_joining_the_heads_of_the_result_needs_no_copy(device, tiles):
    tiles(16, 16)
    q, k, v = packed_views(1, 2, 5, 32, torch.float32, device)
    assert attention(q, k, v, Schedule((1, 2)), backend="triton").transpose(1, 2).is_contiguous()


def test_the_operator_passes_opcheck(device, tiles):
    tiles(16, 16)
    q, k, v = (x.requires_grad_() for x in packed_views(1, 2, 5, 32, torch.float32, device))
    logit_scale_H = torch.ones(2, device=device, requires_grad=True)
    for logit_scale in (logit_scale_H, None):
        arguments = (q, k, v, logit_scale, 0.2, [1, 4], "block-causal", False)
        torch.library.opcheck(triton_attention.pyramid_attention, arguments)


def test_it_compiles_to_one_graph(device, tiles):
    tiles(16, 16)
    q, k, v = (x.requires_grad_() for x in packed_views(1, 2, 14, 32, torch.float32, device))

    def run(q, k, v):
        return attention(q * 1, k, v, Schedule((1, 2, 3)), backend="triton")

    found, wanted = torch.compile(run, backend="aot_eager", fullgraph=True)(q, k, v), run(q, k, v)
    torch.testing.assert_close(found, wanted)
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (found, wanted)]
    torch.testing.assert_close(*grads)
