"""Heads of an editor that copy from its first step, in the first block, which sees the source on the grid of a scale.

An Infinity never saw a source image, and learns late that a token of the source stands for that of the image at the
same place. A head of ours begins with that knowledge: which tokens it attends to depends on their positions alone, and
its values are the features of the source. All weights are trained on from there.
Letters: R rows, S source tokens, L tokens, C width, D bits of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.models.varedit import VAREdit

SHARPNESS = 40.0  # logit scale: a neighbour of the token at the same place gets less than one percent of its weight
PAIRS = (
    0,
    1,
)  # of channels that RoPE turns by 1 and by 0.3 a token, of each axis; slower ones do not tell neighbours apart
AMPLITUDE = 0.4  # of what is copied, beside features of about 0.5


@torch.no_grad()
def copy_source(network: VAREdit, source_RSD: Tensor, forward: Callable[[], Any]) -> None:
    """Make the least sharp heads of the first block copy the source; `forward` shows these sources to the network.

    The keys of all tokens become one unit vector, which only RoPE tells apart, and values the features of the source:
    both are least squares over the tokens that `forward` computes.
    """
    x_RLC, gate_C = _first_block(network, forward)
    source_RSD = source_RSD.cpu()
    attention, bits = network.blocks[0].sa, source_RSD.shape[-1]
    side = attention.q_bias.numel() // attention.heads
    query, key = _at_the_same_place(network, side)
    ones = x_RLC.new_ones(x_RLC.shape[0] * x_RLC.shape[1], 1)
    constant_C = torch.linalg.lstsq(x_RLC.flatten(0, 1), ones).solution[:, 0]
    seen = x_RLC[:, : source_RSD.shape[1]].flatten(0, 1)
    with_one = torch.cat((seen, torch.ones_like(seen[:, :1])), dim=1)
    features = torch.linalg.lstsq(with_one, source_RSD.flatten(0, 1)).solution  # (C + 1, D)
    out = _written(gate_C, bits)
    qkv = attention.mat_qkv.weight.view(3, attention.heads, side, -1)
    heads = attention.scale_mul_1H11.flatten().argsort()[: ceil(bits / side)].tolist()
    for head, own in zip(heads, torch.arange(bits).chunk(len(heads)), strict=True):
        rows = slice(head * side, (head + 1) * side)
        values = torch.zeros(side, len(features))
        values[: len(own)] = features[:, own].T
        qkv[0, head], attention.q_bias[rows] = 0.0, query
        qkv[1, head] = key[:, None] * constant_C
        qkv[2, head], attention.v_bias[rows] = values[:, :-1], values[:, -1]
        attention.scale_mul_1H11[0, head] = log(SHARPNESS)
        attention.proj.weight[:, rows] = 0.0
        attention.proj.weight[:, head * side : head * side + len(own)] = out[:, own]


def _first_block(network: VAREdit, forward: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """What self-attention of the first block reads in a pass, (R, S + L, C), and its mean gate, (C), on the CPU."""
    block, given = network.blocks[0], list[Any]()
    hooks = [one.register_forward_pre_hook(lambda _, read: given.append(read)) for one in (block, block.sa)]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    (_, modulation, *_), (x_RLC, *_) = given
    return x_RLC.cpu().float(), modulation.gate1.mean((0, 1)).cpu().float()


def _at_the_same_place(network: VAREdit, side: int) -> tuple[Tensor, Tensor]:
    """A query and a key of unit length that fit best for a token and the source token at its place."""
    grid, theta = network._grid(network.scales), 1e4
    key, query = torch.zeros(2, side // 4, 2), torch.zeros(2, side // 4, 2)  # by axis and pair of channels
    for axis in range(2):
        for pair in PAIRS[: side // 4]:
            angle = torch.tensor(grid[axis] * theta ** -(2 * pair / (side // 2)))
            key[axis, pair, 0] = 1.0
            query[axis, pair] = torch.stack((angle.cos(), angle.sin()))
    return F.normalize(query.flatten(), dim=0), F.normalize(key.flatten(), dim=0)


def _written(gate_C: Tensor, bits: int) -> Tensor:
    """Where the copied features are written, (C, D): orthogonal directions of channels that the gate lets through."""
    out = torch.zeros(len(gate_C), bits)
    open_ = gate_C.abs().argsort(descending=True)[: max(bits, len(gate_C) // 2)]
    directions = torch.linalg.qr(torch.randn(len(open_), bits))[0]
    out[open_] = AMPLITUDE * directions / gate_C[open_, None]
    return out
