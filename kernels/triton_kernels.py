# mypy: allow-untyped-defs
# Triton interprets the annotations of a kernel itself; only constants have any.
"""Block-sparse flash attention as three Triton kernels: forward, gradient of queries, gradients of keys and values.

The algorithm is FlashAttention-2 (arXiv 2307.08691) over the tiles that a pyramid of token maps needs, as HMAR (arXiv
2506.04421) skips them in training. Each program owns one run of rows (queries, or keys in the last kernel) of one head
and loops over its columns: first the tiles that are allowed entirely, then those that need a mask. Every output is
written once, by its owner, in a fixed order, so one configuration gives the same bits in every call.

Scores are in base 2: a log-sum-exp here is log2 of a sum of powers of two.

Letters: R rows, H heads, L tokens, D head width; M queries and N keys of a tile.
"""

from __future__ import annotations

import triton
from triton import language as tl

LOG2E = tl.constexpr(1.4426950408889634)
COUNTS = ("tile_count", "heads", "length")  # one compiled kernel serves every schedule and number of heads


@triton.jit
def _program(tiles_ptr, tile_count, heads):
    """The row tile, row and head of this program.

    Tiles of one head are adjacent, so that its keys and values stay in the L2 cache; the longest start first.
    """
    program = tl.program_id(0)
    head = program // tile_count
    tile = tiles_ptr + (program % tile_count) * 6
    return tile, (head // heads).to(tl.int64), (head % heads).to(tl.int64)


@triton.jit
def _masked_column(tile, index, WIDTH: tl.constexpr):
    """First column of the index-th masked tile: those before the unmasked tiles, then those after."""
    full = tl.load(tile + 4)
    return tl.load(tile + 2) + (index + tl.where(index < tl.load(tile + 3), 0, full)) * WIDTH


@triton.jit
def _score_scale(logit_scale_ptr, head, scale):
    """The factor of a head's scores, in float32, since a Python float may arrive as float64."""
    factor = tl.cast(scale, tl.float32)
    if logit_scale_ptr is not None:
        factor *= tl.load(logit_scale_ptr + head).to(tl.float32)
    return factor


@triton.jit
def _block(ptr, index, stride, dims, dim_stride, D: tl.constexpr):
    """Pointers to the vectors of some tokens, (tokens, D), and a mask of the columns within the head width."""
    return ptr + index[:, None] * stride + dims[None, :] * dim_stride, (dims < D)[None, :]


@triton.jit
def _load(ptr, index, end, stride, dims, dim_stride, D: tl.constexpr, BOUNDED: tl.constexpr):
    """Load vectors of some tokens, (tokens, D); zero beyond the head width and, if BOUNDED, from token `end` on."""
    pointers, inside = _block(ptr, index, stride, dims, dim_stride, D)
    if BOUNDED:
        return tl.load(pointers, mask=inside & (index < end)[:, None], other=0.0)
    elif dims.shape[0] != D:
        return tl.load(pointers, mask=inside, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _store(ptr, value, index, end, stride, dims, dim_stride, D: tl.constexpr):
    pointers, inside = _block(ptr, index, stride, dims, dim_stride, D)
    tl.store(pointers, value.to(ptr.dtype.element_ty), mask=inside & (index < end)[:, None])


@triton.jit
def _dot(a, b):
    """Matrix product accumulated in float32; float32 inputs are not rounded to TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _allowed(spans_ptr, rows, row_end, columns, length):
    """Mask of the allowed pairs of a tile: each row has one interval of columns."""
    begin = tl.load(spans_ptr + rows, mask=rows < row_end, other=0)
    end = tl.load(spans_ptr + length + rows, mask=rows < row_end, other=0)
    return (begin[:, None] <= columns[None, :]) & (columns[None, :] < end[:, None])


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit
def _forward_step(
    acc_MD, sum_M, max_M, q_MD, factor, k_ptr, v_ptr, k_stride, k_dim, v_stride, v_dim,
    column, length, spans_ptr, rows, row_end, dims, D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    columns = column + tl.arange(0, BLOCK_N)
    k_ND = _load(k_ptr, columns, length, k_stride, dims, k_dim, D, MASKED)
    score_MN = _dot(q_MD, tl.trans(k_ND))
    if MASKED:
        score_MN = tl.where(_allowed(spans_ptr, rows, row_end, columns, length), score_MN * factor, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(score_MN, 1))
        # A row may see only masked columns before its own scale; avoid -inf - (-inf).
        anchor_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)
        p_MN = tl.exp2(score_MN - anchor_M[:, None])
    else:
        new_max_M = tl.maximum(max_M, tl.max(score_MN, 1) * factor)
        anchor_M = new_max_M
        p_MN = tl.exp2(score_MN * factor - anchor_M[:, None])
    rescale_M = tl.exp2(max_M - anchor_M)
    v_ND = _load(v_ptr, columns, length, v_stride, dims, v_dim, D, MASKED)
    acc_MD = acc_MD * rescale_M[:, None] + _dot(p_MN.to(v_ND.dtype), v_ND)
    return acc_MD, sum_M * rescale_M + tl.sum(p_MN, 1), new_max_M


@triton.jit(do_not_specialize=COUNTS)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, logit_scale_ptr, tiles_ptr, spans_ptr, tile_count, scale, heads, length,
    q_r, q_h, q_l, q_d, k_r, k_h, k_l, k_d, v_r, v_h, v_l, v_d, o_r, o_h, o_l, o_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tile, r, h = _program(tiles_ptr, tile_count, heads)
    row_end, column, full, count = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 4), tl.load(tile + 5)
    rows, dims = tl.load(tile) + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    k_ptr += r * k_r + h * k_h
    v_ptr += r * v_r + h * v_h
    q_MD = _load(q_ptr + r * q_r + h * q_h, rows, row_end, q_l, dims, q_d, D, True)
    factor = _score_scale(logit_scale_ptr, h, scale) * LOG2E
    # The running maximum assumes a positive scale, so move the sign to q, which is exact.
    q_MD = tl.where(factor < 0, -q_MD, q_MD)
    factor = tl.abs(factor)

    acc_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    max_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    head = tl.load(tile + 3)
    for i in range(head, head + full):
        acc_MD, sum_M, max_M = _forward_step(
            acc_MD, sum_M, max_M, q_MD, factor, k_ptr, v_ptr, k_l, k_d, v_l, v_d,
            column + i * BLOCK_N, length, spans_ptr, rows, row_end, dims, D, BLOCK_N, False,
        )  # fmt: skip
    for i in range(count - full):
        acc_MD, sum_M, max_M = _forward_step(
            acc_MD, sum_M, max_M, q_MD, factor, k_ptr, v_ptr, k_l, k_d, v_l, v_d,
            _masked_column(tile, i, BLOCK_N), length, spans_ptr, rows, row_end, dims, D, BLOCK_N, True,
        )  # fmt: skip
    _store(out_ptr + r * o_r + h * o_h, acc_MD / sum_M[:, None], rows, row_end, o_l, dims, o_d, D)
    tl.store(lse_ptr + (r * heads + h) * length + rows, max_M + tl.log2(sum_M), mask=rows < row_end)


# --- gradient of the queries ------------------------------------------------------------------------------------------


@triton.jit
def _dq_step(
    dq_MD, q_MD, dout_MD, lse_M, delta_M, factor, k_ptr, v_ptr, k_stride, k_dim, v_stride, v_dim,
    column, length, spans_ptr, rows, row_end, dims, D: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    columns = column + tl.arange(0, BLOCK_N)
    k_ND = _load(k_ptr, columns, length, k_stride, dims, k_dim, D, MASKED)
    v_ND = _load(v_ptr, columns, length, v_stride, dims, v_dim, D, MASKED)
    p_MN = tl.exp2(_dot(q_MD, tl.trans(k_ND)) * factor - lse_M[:, None])
    if MASKED:
        p_MN = tl.where(_allowed(spans_ptr, rows, row_end, columns, length), p_MN, 0.0)
    dscore_MN = p_MN * (_dot(dout_MD, tl.trans(v_ND)) - delta_M[:, None])
    return dq_MD + _dot(dscore_MN.to(k_ND.dtype), k_ND)


@triton.jit(do_not_specialize=COUNTS)
def dq_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr, product_ptr, logit_scale_ptr,
    tiles_ptr, spans_ptr, tile_count, scale, heads, length,
    q_r, q_h, q_l, q_d, k_r, k_h, k_l, k_d, v_r, v_h, v_l, v_d, o_r, o_h, o_l, o_d,
    do_r, do_h, do_l, do_d, dq_r, dq_h, dq_l, dq_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Also writes delta = sum(out * dout) and, with a logit scale, the terms of its gradient."""
    tile, r, h = _program(tiles_ptr, tile_count, heads)
    row_end, column, full, count = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 4), tl.load(tile + 5)
    rows, dims = tl.load(tile) + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    inside = rows < row_end
    k_ptr += r * k_r + h * k_h
    v_ptr += r * v_r + h * v_h
    q_MD = _load(q_ptr + r * q_r + h * q_h, rows, row_end, q_l, dims, q_d, D, True)
    out_MD = _load(out_ptr + r * o_r + h * o_h, rows, row_end, o_l, dims, o_d, D, True)
    dout_MD = _load(dout_ptr + r * do_r + h * do_h, rows, row_end, do_l, dims, do_d, D, True)
    numbers = (r * heads + h) * length + rows
    delta_M = tl.sum(out_MD.to(tl.float32) * dout_MD.to(tl.float32), 1)
    tl.store(delta_ptr + numbers, delta_M, mask=inside)
    lse_M = tl.load(lse_ptr + numbers, mask=inside, other=0.0)
    score_scale = _score_scale(logit_scale_ptr, h, scale)
    factor = score_scale * LOG2E

    dq_MD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    head = tl.load(tile + 3)
    for i in range(head, head + full):
        dq_MD = _dq_step(
            dq_MD, q_MD, dout_MD, lse_M, delta_M, factor, k_ptr, v_ptr, k_l, k_d, v_l, v_d,
            column + i * BLOCK_N, length, spans_ptr, rows, row_end, dims, D, BLOCK_N, False,
        )  # fmt: skip
    for i in range(count - full):
        dq_MD = _dq_step(
            dq_MD, q_MD, dout_MD, lse_M, delta_M, factor, k_ptr, v_ptr, k_l, k_d, v_l, v_d,
            _masked_column(tile, i, BLOCK_N), length, spans_ptr, rows, row_end, dims, D, BLOCK_N, True,
        )  # fmt: skip
    if logit_scale_ptr is not None:
        tl.store(product_ptr + numbers, tl.sum(dq_MD * q_MD.to(tl.float32), 1), mask=inside)
    _store(dq_ptr + r * dq_r + h * dq_h, dq_MD * score_scale, rows, row_end, dq_l, dims, dq_d, D)


# --- gradients of the keys and values ---------------------------------------------------------------------------------


@triton.jit
def _dkv_step(
    dk_ND, dv_ND, k_ND, v_ND, factor, q_ptr, dout_ptr, lse_ptr, delta_ptr, q_stride, q_dim, do_stride, do_dim,
    column, length, spans_ptr, rows, row_end, dims, D: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    queries = column + tl.arange(0, BLOCK_M)
    q_MD = _load(q_ptr, queries, length, q_stride, dims, q_dim, D, MASKED)
    dout_MD = _load(dout_ptr, queries, length, do_stride, dims, do_dim, D, MASKED)
    if MASKED:
        lse_M = tl.load(lse_ptr + queries, mask=queries < length, other=0.0)
        delta_M = tl.load(delta_ptr + queries, mask=queries < length, other=0.0)
    else:
        lse_M = tl.load(lse_ptr + queries)
        delta_M = tl.load(delta_ptr + queries)
    p_NM = tl.exp2(_dot(k_ND, tl.trans(q_MD)) * factor - lse_M[None, :])
    if MASKED:
        p_NM = tl.where(_allowed(spans_ptr, rows, row_end, queries, length), p_NM, 0.0)
    dv_ND += _dot(p_NM.to(dout_MD.dtype), dout_MD)
    dscore_NM = p_NM * (_dot(v_ND, tl.trans(dout_MD)) - delta_M[None, :])
    return dk_ND + _dot(dscore_NM.to(q_MD.dtype), q_MD), dv_ND


@triton.jit(do_not_specialize=COUNTS)
def dkv_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, logit_scale_ptr,
    tiles_ptr, spans_ptr, tile_count, scale, heads, length,
    q_r, q_h, q_l, q_d, k_r, k_h, k_l, k_d, v_r, v_h, v_l, v_d,
    do_r, do_h, do_l, do_d, dk_r, dk_h, dk_l, dk_d, dv_r, dv_h, dv_l, dv_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Runs after `dq_kernel`, whose delta it reads. Rows are keys, columns are queries."""
    tile, r, h = _program(tiles_ptr, tile_count, heads)
    row_end, column, full, count = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 4), tl.load(tile + 5)
    rows, dims = tl.load(tile) + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    q_ptr += r * q_r + h * q_h
    dout_ptr += r * do_r + h * do_h
    lse_ptr += (r * heads + h) * length
    delta_ptr += (r * heads + h) * length
    k_ND = _load(k_ptr + r * k_r + h * k_h, rows, row_end, k_l, dims, k_d, D, True)
    v_ND = _load(v_ptr + r * v_r + h * v_h, rows, row_end, v_l, dims, v_d, D, True)
    score_scale = _score_scale(logit_scale_ptr, h, scale)
    factor = score_scale * LOG2E

    dk_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    head = tl.load(tile + 3)
    for i in range(head, head + full):
        dk_ND, dv_ND = _dkv_step(
            dk_ND, dv_ND, k_ND, v_ND, factor, q_ptr, dout_ptr, lse_ptr, delta_ptr, q_l, q_d, do_l, do_d,
            column + i * BLOCK_M, length, spans_ptr, rows, row_end, dims, D, BLOCK_M, False,
        )  # fmt: skip
    for i in range(count - full):
        dk_ND, dv_ND = _dkv_step(
            dk_ND, dv_ND, k_ND, v_ND, factor, q_ptr, dout_ptr, lse_ptr, delta_ptr, q_l, q_d, do_l, do_d,
            _masked_column(tile, i, BLOCK_M), length, spans_ptr, rows, row_end, dims, D, BLOCK_M, True,
        )  # fmt: skip
    _store(dk_ptr + r * dk_r + h * dk_h, dk_ND * score_scale, rows, row_end, dk_l, dims, dk_d, D)
    _store(dv_ptr + r * dv_r + h * dv_h, dv_ND, rows, row_end, dv_l, dims, dv_d, D)
