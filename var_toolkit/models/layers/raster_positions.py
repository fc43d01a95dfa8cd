"""Positions of a token map in raster order: the class at 0, token i at 1 + i; of branches and of ragged rows too.

Letters: R rows (images, twice under guidance), L tokens, K cache slots, D head width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.cache import KVCache, RaggedCache, SlotCache
from var_toolkit.models.layers.attention import Attend, to_all, to_allowed, to_weighted_first
from var_toolkit.models.layers.rotary import Rotation, rotation_on_grids


class Branches(NamedTuple):
    """Positions and mask of new tokens that do not form one sequence, such as a draft tree."""

    positions: Tensor  # (R, L), int64: the class is at 0, token i at 1 + i
    mask: Tensor  # (R, L, K), bool: which of the K cache slots, new ones included, each attends to


def rotation_and_attend(
    rotation: Rotation, cache: KVCache | None, new: int, branches: Branches | None = None
) -> tuple[Rotation, Attend]:
    """RoPE and attention of `new` tokens that follow a cache, given the rotation of every position."""
    first_R = cache.first if cache is not None else None
    if branches is None and (cache is None or cache.even):
        begin = cache.length if cache is not None else 0
        attend = _causal(begin, new, rotation.cos.device, first_R)
        return Rotation(*(table[begin : begin + new] for table in rotation)), attend
    positions_RL, mask_RLK = branches or _behind(cache, new, rotation.cos.device)
    on_map_RL = positions_RL.clamp(max=len(rotation.cos) - 1)  # padding of shorter rows may lie beyond the end
    mask = mask_RLK.unsqueeze(1)
    attend = to_allowed(mask) if first_R is None else to_weighted_first(first_R, mask)
    return Rotation(*(table[on_map_RL].unsqueeze(1) for table in rotation)), attend


def additions_at(cache: KVCache | None, new: int, branches: Branches | None = None) -> dict[int, Tensor]:
    """What is added to the features of `new` tokens that follow a cache before some layers, (R, L, C), by layer."""
    if cache is None or not cache.additions:
        return {}
    some_RLC = next(iter(cache.additions.values()))
    if branches is None and cache.even:
        positions = (cache.length + torch.arange(new, device=some_RLC.device)).unsqueeze(0)
    else:
        positions = (branches or _behind(cache, new, some_RLC.device)).positions
    at_RL1 = positions.clamp(max=some_RLC.shape[1] - 1).unsqueeze(-1)  # the last token predicts none
    return {layer: added.take_along_dim(at_RL1, dim=1) for layer, added in cache.additions.items()}


def _causal(begin: int, new: int, device: torch.device, first_R: Tensor | None) -> Attend:
    if first_R is not None:
        mask = torch.ones(new, begin + new, dtype=torch.bool, device=device).tril(begin) if new > 1 else None
        return to_weighted_first(first_R, mask)
    if new == 1:
        return to_all
    if begin == 0:
        return lambda q, k, v, scale: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return to_allowed(torch.ones(new, begin + new, dtype=torch.bool, device=device).tril(begin))


def _behind(cache: KVCache | None, new: int, device: torch.device) -> Branches:
    """New tokens that follow rows of different lengths, or one token whose position is a tensor."""
    if isinstance(cache, SlotCache):
        return Branches(cache.slot[None], cache.seen())
    cache = cast(RaggedCache, cache)
    positions_RL = cache.lengths_R.unsqueeze(1) + torch.arange(new, device=device)
    slots_K = torch.arange(cache.length + new, device=device)
    return Branches(positions_RL, slots_K <= positions_RL.unsqueeze(-1))


@torch.compiler.assume_constant_result  # the compiler traces no cache
def rotation_with_class(side: int, head_dim: int, device: torch.device) -> Rotation:
    """Rotation (1 + side * side, D / 2) of the class, which is all zeros, and of a map; computed once."""
    return known_rotation(side, head_dim, device)


@lru_cache(maxsize=8)
def known_rotation(side: int, head_dim: int, device: torch.device) -> Rotation:
    """`rotation_with_class`."""
    with torch.inference_mode(False):  # training could not use an inference tensor
        grid = rotation_on_grids((side,), side, head_dim, device)
        return Rotation(*(F.pad(table, (0, 0, 1, 0)) for table in grid))
