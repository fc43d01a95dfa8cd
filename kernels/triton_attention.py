"""Attention over a pyramid with the Triton kernels: tile lists on the device, tuning, and the differentiable operator.

Requires triton, so this module is imported only when the Triton backend is used.

Letters: R rows, H heads, L tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
import triton
from torch import Tensor
from triton.runtime import JITFunction
from triton.runtime.errors import OutOfResources

from var_toolkit.kernels import triton_kernels
from var_toolkit.kernels.tiles import Pattern, allowed_keys, allowed_queries, per_token, row_tiles

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDTHS = (32, 128)  # the narrowest and the widest head


class Config(NamedTuple):
    """Tile sizes in rows and columns, with warps and pipeline stages."""

    rows: int
    columns: int
    warps: int
    stages: int


# Candidates for each kernel by padded head width. The first needs less than 99 KB of shared memory, none more than
# 129 KB; none spills more than a few registers (compiled for sm_80 and sm_90).
CONFIGS: dict[tuple[str, int], tuple[Config, ...]] = {
    ("forward", 64): (Config(64, 64, 4, 3), Config(128, 64, 4, 3), Config(128, 64, 8, 3), Config(128, 128, 8, 2)),
    ("forward", 128): (Config(64, 64, 4, 2), Config(128, 32, 8, 3), Config(128, 64, 8, 3)),
    ("dq", 64): (Config(64, 64, 4, 2), Config(64, 64, 4, 3), Config(128, 64, 8, 2)),
    ("dq", 128): (Config(64, 64, 8, 2), Config(64, 32, 4, 2), Config(128, 64, 8, 2)),
    ("dkv", 64): (Config(64, 64, 4, 2), Config(64, 64, 4, 3), Config(128, 64, 8, 2)),
    ("dkv", 128): (Config(64, 64, 8, 2), Config(64, 32, 4, 2), Config(128, 64, 8, 2)),
}
FLOAT32 = Config(32, 32, 4, 1)
KERNELS: dict[str, Any] = {
    "forward": triton_kernels.forward_kernel,
    "dq": triton_kernels.dq_kernel,
    "dkv": triton_kernels.dkv_kernel,
}
# Tensor arguments of each kernel in order, and the tensors whose strides follow.
POINTERS = {
    "forward": "q k v out lse logit_scale",
    "dq": "q k v out dout lse delta dq product logit_scale",
    "dkv": "q k v dout lse delta dk dv logit_scale",
}
STRIDED = {"forward": "q k v out", "dq": "q k v out dout dq", "dkv": "q k v dout dk dv"}


class Problem(NamedTuple):
    """Everything that the choice of a configuration depends on; the number of rows does not matter."""

    lengths: tuple[int, ...]
    pattern: Pattern
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, q_RHLD: Tensor, lengths: Sequence[int], pattern: str) -> Problem:
        _, heads, _, width = q_RHLD.shape
        return cls(tuple(lengths), cast(Pattern, pattern), heads, width, q_RHLD.dtype, q_RHLD.device)


@torch.compiler.assume_constant_result
def unsupported(width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels do not support this head width, dtype and device; None if they do."""
    if not WIDTHS[0] <= width <= WIDTHS[1]:
        return f"head width is {width}; the kernels support {WIDTHS[0]} to {WIDTHS[1]}"
    if dtype not in DTYPES:
        return f"dtype is {dtype}; the kernels support {', '.join(map(str, DTYPES))}"
    if not isinstance(triton_kernels.forward_kernel, JITFunction):  # interpreted, on any device
        return f"dtype is {dtype}, which Triton's interpreter does not support" if dtype == torch.bfloat16 else None
    if device.type != "cuda":
        return f"device is {device}; the kernels run on cuda, or on the cpu under TRITON_INTERPRET=1"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is too old; the kernels need compute capability 8.0 or higher"
    return None


@lru_cache(maxsize=256)
def _tiles(problem: Problem, transposed: bool, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """On the device: row tiles, int32 (tiles, 6), and the column interval of each row, int32 (2, L)."""
    allowed = (allowed_queries if transposed else allowed_keys)(problem.lengths, problem.pattern)
    tiles = torch.tensor(row_tiles(problem.lengths, allowed, rows, columns), dtype=torch.int32)
    spans = torch.tensor(per_token(problem.lengths, allowed), dtype=torch.int32).T.contiguous()
    return tiles.to(problem.device), spans.to(problem.device)


def _empty_like(x_RHLD: Tensor) -> Tensor:
    """Empty (R, H, L, D), stored as (R, L, H, D) so that joining the heads afterwards needs no copy."""
    rows, heads, length, width = x_RHLD.shape
    return x_RHLD.new_empty(rows, length, heads, width).transpose(1, 2)


def launch(name: str, config: Config, problem: Problem, tensors: Mapping[str, Tensor | None], scale: float) -> None:
    """Launch a kernel over all row tiles of all heads."""
    tiles, spans = _tiles(problem, name == "dkv", config.rows, config.columns)
    queries, keys = (config.columns, config.rows) if name == "dkv" else (config.rows, config.columns)
    numbers = (len(tiles), scale, problem.heads, sum(problem.lengths))
    strided = [cast(Tensor, tensors[key]) for key in STRIDED[name].split()]
    strides = [stride for tensor in strided for stride in tensor.stride()]
    with torch.cuda.device_of(strided[0]):
        KERNELS[name][(len(tiles) * len(strided[0]) * problem.heads,)](
            *(tensors[key] for key in POINTERS[name].split()), tiles, spans, *numbers, *strides,
            D=problem.width, BLOCK_D=triton.next_power_of_2(problem.width), BLOCK_M=queries, BLOCK_N=keys,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip


@lru_cache(maxsize=256)
def choose_config(name: str, problem: Problem, tuned: bool) -> Config:
    """The configuration to use: if `tuned` the fastest, measured once per process on random data; else the first.

    Sampling never tunes: configurations round differently, and every process must draw the same image.
    """
    if problem.dtype == torch.float32:
        return FLOAT32
    configs = CONFIGS[name, max(64, triton.next_power_of_2(problem.width))]
    if problem.device.type != "cuda" or not tuned:
        return configs[0]
    with torch.cuda.device(problem.device):
        tensors = _sample(problem)
        return min(configs, key=lambda config: _milliseconds(name, config, problem, tensors))


def _sample(problem: Problem) -> dict[str, Tensor | None]:
    """Random inputs and empty outputs of all kernels, with enough rows to fill a GPU."""
    heads, length, rows = problem.heads, sum(problem.lengths), max(1, 8192 // sum(problem.lengths))
    own = torch.Generator(problem.device).manual_seed(0)  # leave the global random state of torch alone
    shape = (rows, length, heads, problem.width)
    q = torch.randn(shape, generator=own, dtype=problem.dtype, device=problem.device).transpose(1, 2)
    lse = torch.zeros(rows, heads, length, device=problem.device)
    read = {"q": q, "k": q.roll(1, 2), "v": q.roll(2, 2), "dout": q.roll(3, 2), "lse": lse, "logit_scale": None}
    written = {name: _empty_like(q) for name in ("out", "dq", "dk", "dv")}
    return {**read, **written, "delta": lse.clone(), "product": lse.clone()}


def _milliseconds(name: str, config: Config, problem: Problem, tensors: Mapping[str, Tensor | None]) -> float:
    """Median time of one launch in milliseconds; infinite if the GPU has too little shared memory for the tiles."""
    try:
        launch(name, config, problem, tensors, 1.0)
    except OutOfResources:
        return float("inf")
    return triton.testing.do_bench(
        lambda: launch(name, config, problem, tensors, 1.0), warmup=5, rep=20, return_mode="median"
    )


@torch.library.custom_op(
    "var_toolkit::pyramid_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? logit_scale, float scale, int[] lengths, str pattern,"
    " bool tuned) -> (Tensor, Tensor)",
)
def pyramid_attention(
    q: Tensor, k: Tensor, v: Tensor, logit_scale: Tensor | None, scale: float, lengths: Sequence[int], pattern: str,
    tuned: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention output (R, H, L, D) and the base-2 log-sum-exp of the scores, float32 (R, H, L).

    The first `tuned` call for a schedule, dtype and number of heads measures the configurations, so it must not be
    captured in a CUDA graph.
    """
    problem = Problem.of(q, lengths, pattern)
    out, lse = _empty_forward(q)
    tensors = {"q": q, "k": k, "v": v, "logit_scale": logit_scale, "out": out, "lse": lse}
    launch("forward", choose_config("forward", problem, tuned), problem, tensors, scale)
    return out, lse


def _empty_forward(q_RHLD: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like(q_RHLD), q_RHLD.new_empty(q_RHLD.shape[:3], dtype=torch.float32)


@torch.library.custom_op(
    "var_toolkit::pyramid_attention_backward",
    mutates_args=(),
    schema="(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? logit_scale, float scale,"
    " int[] lengths, str pattern) -> (Tensor, Tensor, Tensor, Tensor)",
)
def pyramid_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, logit_scale: Tensor | None, scale: float,
    lengths: Sequence[int], pattern: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, and of the logit scale, float32 (H), or (0) without one."""
    problem = Problem.of(q, lengths, pattern)
    dq, dk, dv, _ = _empty_backward(q, logit_scale)
    delta, product = torch.empty_like(lse), torch.empty_like(lse)
    tensors = {
        "q": q, "k": k, "v": v, "out": out, "dout": dout, "lse": lse, "logit_scale": logit_scale,
        "delta": delta, "product": product, "dq": dq, "dk": dk, "dv": dv,
    }  # fmt: skip
    launch("dq", choose_config("dq", problem, True), problem, tensors, scale)
    launch("dkv", choose_config("dkv", problem, True), problem, tensors, scale)
    return dq, dk, dv, lse.new_empty(0) if logit_scale is None else product.sum((0, 2)) * scale


def _empty_backward(q_RHLD: Tensor, logit_scale_H: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (_empty_like(q_RHLD) for _ in range(3))
    return dq, dk, dv, q_RHLD.new_empty(0 if logit_scale_H is None else len(logit_scale_H), dtype=torch.float32)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, logit_scale, ctx.scale, ctx.lengths, ctx.pattern, _ = inputs
    ctx.save_for_backward(q, k, v, *output, logit_scale)


def _gradients(ctx: Any, dout: Tensor, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs. The log-sum-exp output exists only for this pass, so its own gradient is ignored."""
    *tensors, logit_scale = ctx.saved_tensors
    dq, dk, dv, dlogit_scale = pyramid_attention_backward(
        dout, *tensors, logit_scale, ctx.scale, ctx.lengths, ctx.pattern
    )
    return dq, dk, dv, None if logit_scale is None else dlogit_scale.to(logit_scale.dtype), None, None, None, None


pyramid_attention.register_fake(lambda q, *_: _empty_forward(q))
pyramid_attention_backward.register_fake(
    lambda dout, q, k, v, out, lse, logit_scale, *_: _empty_backward(q, logit_scale)
)
pyramid_attention.register_autograd(_gradients, setup_context=_save_for_backward)
