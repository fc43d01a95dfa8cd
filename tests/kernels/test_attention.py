"""Attention over a pyramid on the CPU: the reference, the backends that equal it, and invalid input.

Letters: R rows, H heads, L tokens, D head width.
"""

import subprocess
import sys
import warnings

import pytest
import torch
from torch.nn import functional as F

from var_toolkit.core.schedule import Schedule
from var_toolkit.kernels import pyramid_attention
from var_toolkit.kernels.pyramid_attention import attention
from var_toolkit.kernels.tiles import PATTERNS

SCALES = Schedule((1, 2, 3, 5, 7))  # two scales beyond the 64 tokens that share a mask
PREFIXES = SCALES.offsets[1:]


def inputs(tokens=SCALES.total, dtype=torch.float32, rows=2, heads=3, width=32, seed=0):
    """q, k and v as the views of one packed tensor that a transformer makes, and a logit scale."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(rows, tokens, 3, heads, width, generator=generator, dtype=torch.float64).to(dtype)
    logit_scale_H = torch.linspace(0.5, 3, heads, dtype=dtype)
    return packed.requires_grad_(), logit_scale_H.requires_grad_()


def run(packed, logit_scale_H, **options):
    return attention(*packed.permute(2, 0, 3, 1, 4).unbind(0), SCALES, logit_scale_H=logit_scale_H, **options)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_reference_is_attention_under_the_mask_of_the_schedule(pattern):
    packed, _ = inputs(dtype=torch.float64)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    mask = SCALES.block_causal_mask() if pattern == "block-causal" else SCALES.block_diagonal_mask()
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention(q, k, v, SCALES, pattern=pattern, backend="reference"), wanted)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_gradients_are_those_of_finite_differences(backend, pattern):
    packed, logit_scale_H = inputs(5, torch.float64, rows=1, heads=2, width=3)
    assert torch.autograd.gradcheck(
        lambda *x: run(*x, backend=backend, pattern=pattern, scale=0.7), (packed, logit_scale_H)
    )


@pytest.mark.parametrize("with_logit_scale", [False, True], ids=["plain", "logit-scale"])
@pytest.mark.parametrize("tokens", PREFIXES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backend", ["sdpa", "auto"])
def test_sdpa_equals_the_reference_on_every_prefix(backend, pattern, tokens, with_logit_scale):
    packed, logit_scale_H = inputs(tokens)
    wide = [x.detach().double().requires_grad_() for x in (packed, logit_scale_H)]
    found = run(packed, logit_scale_H if with_logit_scale else None, pattern=pattern, backend=backend)
    wanted = run(wide[0], wide[1] if with_logit_scale else None, pattern=pattern, backend="reference")
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    dout = torch.randn_like(wanted)
    found.backward(dout.float())
    wanted.backward(dout)
    torch.testing.assert_close(packed.grad.double(), wide[0].grad, atol=1e-5, rtol=1e-5)
    if with_logit_scale:
        torch.testing.assert_close(logit_scale_H.grad.double(), wide[1].grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 14, SCALES.total])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_flex_equals_the_reference_forward(pattern, tokens):
    packed, logit_scale_H = (x.detach() for x in inputs(tokens))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(packed, logit_scale_H, pattern=pattern, backend="flex")
    wanted = run(packed.double(), logit_scale_H.double(), pattern=pattern, backend="reference")
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


def test_flex_on_the_cpu_refuses_gradients_in_one_line():
    with pytest.raises(ValueError, match=r"^backend 'flex' .* 'sdpa'$"):
        run(*inputs(), backend="flex")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_half_precision_in_training_and_out_of_it_is_close_to_the_reference(pattern):
    packed, logit_scale_H = inputs(dtype=torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in (packed, logit_scale_H)]
    found, wanted = run(packed, logit_scale_H, pattern=pattern), run(*wide, pattern=pattern, backend="reference")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, atol=3e-2, rtol=3e-2)
    found.backward(torch.ones_like(found))
    wanted.backward(torch.ones_like(wanted))
    torch.testing.assert_close(packed.grad.double(), wide[0].grad, atol=6e-2, rtol=6e-2)
    with torch.inference_mode():
        torch.testing.assert_close(run(packed, logit_scale_H, pattern=pattern).double(), wanted, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_autocast_casts_as_torch_does(backend, pattern):
    packed, logit_scale_H = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = run(packed, logit_scale_H, pattern=pattern, backend=backend)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert packed.grad.isfinite().all()
    assert logit_scale_H.grad.dtype == torch.float32


def test_a_schedule_first_used_in_inference_mode_can_be_trained():
    scales = Schedule((1, 2, 4))
    q, k, v = torch.randn(3, 1, 2, 21, 32)
    with torch.inference_mode():
        attention(q, k, v, scales)
    q.requires_grad_()
    attention(q, k, v, scales).sum().backward()
    assert q.grad.abs().sum() > 0


def test_joining_the_heads_of_the_result_needs_no_copy():
    found = run(*inputs())
    assert found.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_compiles_to_one_graph(pattern):
    packed, logit_scale_H = inputs()
    compiled = torch.compile(lambda x, s: run(x * 1, s, pattern=pattern), backend="aot_eager", fullgraph=True)
    found, wanted = compiled(packed, logit_scale_H), run(packed, logit_scale_H, pattern=pattern)
    torch.testing.assert_close(found, wanted)
    grads = [torch.autograd.grad(out.square().sum(), (packed, logit_scale_H)) for out in (found, wanted)]
    torch.testing.assert_close(*grads)


def test_a_token_does_not_depend_on_masked_tokens():
    packed, _ = inputs()
    for pattern in PATTERNS:
        other = packed.detach().clone()
        other[:, 14:39] += 1  # the scale of side 5
        same = (run(packed, None, pattern=pattern) == run(other, None, pattern=pattern)).all(-1).all(0).all(0)
        assert same[:14].all()
        assert not same[14:39].any()
        assert same[39:].all() == (pattern == "block-diagonal")


def line(message):
    """A pattern for the whole message, which must be one line."""
    return f"^{message}$"


@pytest.mark.parametrize("backend", ["auto", "triton", "flex", "sdpa", "reference"])
def test_a_partial_scale_is_refused(backend):
    q = torch.randn(1, 1, 15, 32)
    with pytest.raises(ValueError, match=line("q has 15 tokens.* 1, 5, 14, 39, 88")):
        attention(q, q, q, SCALES, backend=backend)


def test_unknown_patterns_and_backends_are_refused_with_the_allowed_ones():
    q = torch.randn(1, 1, 5, 32)
    with pytest.raises(ValueError, match=line("pattern is 'causal'.* block-causal, block-diagonal")):
        attention(q, q, q, SCALES, pattern="causal")
    known = "auto, triton, flex, sdpa, reference"
    with pytest.raises(ValueError, match=line(f"backend is 'cuda'.* {known}")):
        attention(q, q, q, SCALES, backend="cuda")


def test_tensors_of_different_shapes_or_dtypes_are_refused():
    q = torch.randn(1, 2, 5, 32)
    for k in (q[:, :1], q[..., :16], q.double(), q[0]):
        with pytest.raises(ValueError, match=r"q, k and v .* given q "):
            attention(q, k, q, SCALES)
    with pytest.raises(ValueError, match=r"^logit_scale_H is \(3,\); .*\(2,\)"):
        attention(q, q, q, SCALES, logit_scale_H=torch.ones(3))


@pytest.mark.parametrize(
    ("width", "dtype", "reason"),
    [
        (16, torch.float16, "head width is 16; .* 32 to 128"),
        (256, torch.float16, "head width is 256; .* 32 to 128"),
        (64, torch.float64, "dtype is torch.float64; .* torch.float16, torch.bfloat16, torch.float32"),
        (64, torch.float16, "device is cpu; .* TRITON_INTERPRET=1"),
    ],
)
def test_triton_names_the_unsupported_input(width, dtype, reason):
    pytest.importorskip("triton")
    q = torch.randn(1, 2, 5, width, dtype=dtype)
    with pytest.raises(ValueError, match=line(f"backend 'triton' .* {reason}")):
        attention(q, q, q, SCALES, backend="triton")


class CUDAQueries:
    """The attributes that the choice of a backend reads, without a GPU."""

    device = torch.device("cuda")

    def __init__(self, width=64, dtype=torch.float16):
        self.shape, self.dtype = (1, 2, 5, width), dtype


@pytest.fixture
def fresh_warnings():
    pyramid_attention._warn_once.cache_clear()
    yield
    pyramid_attention._warn_once.cache_clear()


def test_auto_warns_once_for_each_reason_and_falls_back(fresh_warnings):
    pytest.importorskip("triton")
    for queries in (CUDAQueries(width=256), CUDAQueries(dtype=torch.float64)):
        with pytest.warns(UserWarning, match=r"Triton .* SDPA") as caught:
            assert [pyramid_attention._best_backend(queries) for _ in range(3)] == ["sdpa"] * 3
        assert len(caught) == 1


def test_without_triton_auto_is_sdpa_and_triton_is_refused(fresh_warnings, monkeypatch):
    monkeypatch.setitem(sys.modules, "var_toolkit.kernels.triton_attention", None)
    with pytest.warns(UserWarning, match="triton cannot be imported"):
        assert pyramid_attention._best_backend(CUDAQueries()) == "sdpa"
    q = torch.randn(1, 2, 5, 64)
    with pytest.raises(ValueError, match="triton cannot be imported"):
        attention(q, q, q, SCALES, backend="triton")


def test_auto_uses_sdpa_for_float32_and_other_devices_without_a_warning(fresh_warnings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pyramid_attention._best_backend(CUDAQueries(dtype=torch.float32)) == "sdpa"
        assert pyramid_attention._best_backend(torch.randn(1, 2, 5, 64)) == "sdpa"


def test_attention_works_without_triton_and_flex_attention():
    code = (
        "import sys, torch\n"
        "sys.modules['triton'] = sys.modules['torch.nn.attention.flex_attention'] = None\n"
        "from var_toolkit.kernels.pyramid_attention import attention\n"
        "from var_toolkit.core.schedule import Schedule\n"
        "print(attention(*torch.randn(3, 1, 2, 5, 32), Schedule((1, 2))).shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "torch.Size([1, 2, 5, 32])", found.stderr
