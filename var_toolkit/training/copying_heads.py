"""Heads of an editor that copy the source image from the first step of training.

An Infinity never saw a source image, and learns late that a token of the source corresponds to that of the image at the
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
PAIRS = (0, 1)  # of channels of each axis, the fastest of RoPE; slower ones do not tell neighbours apart
SHARE = 0.65  # of the size of the features of a block: what is copied beside them


@torch.no_grad()
def copy_source(network: VAREdit, layer: int, source_RSD: Tensor, forward: Callable[[], Any]) -> None:
    """Make the least sharp heads of a block copy the source; `forward` shows these sources to the network.

    The keys of all tokens become one unit vector, which RoPE alone tells apart, and values the features of the source:
    both are least squares over the tokens that `forward` computes.
    """
    block, bits = network.blocks[layer], source_RSD.shape[-1]
    x_RLC, amplitude, gate_RC = _read_by(block, forward)
    attention, out_CD = block.sa, amplitude * _written(gate_RC, bits)
    side = attention.q_bias.numel() // attention.heads
    query, key = _at_the_same_place(network, side)
    seen, every = x_RLC[:, : source_RSD.shape[1]].flatten(0, 1), x_RLC.flatten(0, 1)
    key_DC = key[:, None] * _fitted(every, torch.ones(len(every), 1))[:, 0]
    *value_CD, bias_D = _fitted(F.pad(seen, (0, 1), value=1.0), source_RSD.cpu().flatten(0, 1))
    value_DC = torch.stack(value_CD, dim=1)
    heads = attention.scale_mul_1H11.flatten().argsort()[: ceil(bits / side)].tolist()
    qkv = attention.mat_qkv.weight.view(3, attention.heads, side, -1)
    for head, own in zip(heads, torch.arange(bits).tensor_split(len(heads)), strict=True):
        first = head * side
        rows, used = slice(first, first + side), slice(first, first + len(own))
        qkv[0, head], attention.q_bias[rows] = 0.0, query
        qkv[1, head] = key_DC
        qkv[2, head], attention.v_bias[rows], attention.proj.weight[:, rows] = 0.0, 0.0, 0.0
        qkv[2, head, : len(own)], attention.v_bias[used] = value_DC[own], bias_D[own]
        attention.proj.weight[:, used] = out_CD[:, own]
        attention.scale_mul_1H11[0, head] = log(SHARPNESS)


def _fitted(inputs_NC: Tensor, outputs_ND: Tensor) -> Tensor:
    """The linear map with the least squared error, (C, D)."""
    return torch.linalg.lstsq(inputs_NC, outputs_ND).solution


def _read_by(block: Any, forward: Callable[[], Any]) -> tuple[Tensor, float, Tensor]:
    """Of a pass: what self-attention of a block reads (R, S + L, C), the size of its features, and its gate (R, C)."""
    given = list[Any]()
    hooks = [one.register_forward_pre_hook(lambda _, read: given.append(read)) for one in (block, block.sa)]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    (features, modulation, *_), (x_RLC, *_) = given
    return x_RLC.cpu().float(), float(features.std()), modulation.gate1[:, 0].cpu().float()


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


def _written(gate_RC: Tensor, bits: int) -> Tensor:
    """Where copied features are written, (C, D): orthogonal directions of channels whose gate is open for all texts."""
    gate_C, width = gate_RC.mean(0), gate_RC.shape[1]
    out = torch.zeros(width, bits)
    chosen = (gate_C.abs() - gate_RC.std(0)).argsort(descending=True)[: max(bits, width // 2)]
    out[chosen] = SHARE * torch.linalg.qr(torch.randn(len(chosen), bits))[0] / gate_C[chosen, None]
    return out
