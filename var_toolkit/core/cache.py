"""Key-value caches of one decoding run. The caller creates, passes and drops them; networks never store one.

Letters: R rows (images, twice under guidance), H heads, L tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from math import sqrt
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.schedule import Schedule

OBSERVED_SIDE = 4  # of the grid of tokens whose queries judge the keys of a layer
POOL = 5  # neighbouring keys that share the highest of their scores


class KVCache:
    """Keys and values of every layer, (R, H, capacity, D) each, allocated at once and filled from the front.

    `capacities` are the tokens that each layer can hold. A layer that the rest of an image skips needs none.
    """

    even = True  # every row holds the same number of tokens
    prefix = 0  # slots of the condition, before those of the image
    first: Tensor | None = None  # (R,): the logarithm of how many equal keys the first slot represents; None: one each
    additions: Mapping[int, Tensor] | None = None  # by layer: what is added to its inputs, (R, L, C)

    def __init__(
        self,
        capacities: Sequence[int],
        *,
        rows: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self._shape = (rows, heads, head_dim)
        self._like = torch.empty(0, dtype=dtype, device=device)
        self._keys = [self._allocate(capacity) for capacity in capacities]
        self._values = [self._allocate(capacity) for capacity in capacities]
        self._rows: Tensor | slice = slice(None)
        self.length = 0

    def of_rows(self, rows: Tensor | slice, length: int) -> Self:
        """A view of some rows that hold `length` tokens each; appends to it write to this cache."""
        view = copy(self)
        view._rows, view.length = rows, length
        view.first = None if self.first is None else self.first[rows]
        view.additions = self.additions and {layer: added[rows] for layer, added in self.additions.items()}
        return view

    @property
    def tokens(self) -> int:
        """Tokens of the image that the longest row holds."""
        return max(0, self.length - self.prefix)

    def keep_rows(self, count: int) -> None:
        """Drop all but the first `count` rows, a tensor at a time."""
        self._shape = (count, *self._shape[1:])
        self.first = None if self.first is None else self.first[:count]
        self.additions = self.additions and {layer: added[:count] for layer, added in self.additions.items()}
        for tensors in (self._keys, self._values):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = tensor[:count].clone()

    def _allocate(self, capacity: int) -> Tensor:
        rows, heads, head_dim = self._shape
        return self._like.new_empty(rows, heads, capacity, head_dim)

    def resize(self, capacities: Sequence[int]) -> None:
        """Change the capacity of each layer and preserve the tokens that fit; 0 frees a layer.

        Layers that shrink come first and tensors are copied one at a time, which bounds the peak memory.
        """
        for layer in sorted(range(len(capacities)), key=lambda layer: capacities[layer] - self._keys[layer].shape[2]):
            for tensors in (self._keys, self._values):
                old = tensors[layer]
                if old.shape[2] == capacities[layer]:
                    continue
                tensors[layer] = self._allocate(capacities[layer])
                count = min(self.length, old.shape[2], capacities[layer])
                tensors[layer][:, :, :count] = old[:, :, :count]

    def append(self, layer: int, k_RHLD: Tensor, v_RHLD: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values; return all so far, as views unless only some rows are selected.

        `advance` updates the length after all layers have appended, so an error in between leaves it correct.
        ValueError if the capacity is too small.
        """
        end, capacity = self.length + k_RHLD.shape[2], self._keys[layer].shape[2]
        if end > capacity:
            raise ValueError(f"the cache has a capacity of {capacity} tokens in layer {layer}; {end} are needed")
        keys, values = self._keys[layer], self._values[layer]
        keys[self._rows, :, self.length : end] = k_RHLD
        values[self._rows, :, self.length : end] = v_RHLD
        return keys[self._rows, :, :end], values[self._rows, :, :end]

    def advance(self, tokens: int) -> None:
        """Increase the length by `tokens`, after every layer has appended them."""
        self.length += tokens

    def contents(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer so far, (R, H, length, D) each, as views unless only some rows are selected."""
        return tuple(one[layer][self._rows, :, : self.length] for one in (self._keys, self._values))  # type: ignore[return-value]

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens; ValueError if the cache holds fewer."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length is {length}; a cache of {self.length} tokens rewinds to 0 to {self.length}")
        self.length = length

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """What holds the keys and values."""
        return (*self._keys, *self._values)

    @property
    def nbytes(self) -> int:
        """Allocated memory of all keys and values, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.memory)


class SparseCache(KVCache):
    """A cache whose layers hold some of the tokens of the image: the others were pruned, or evicted (`evict`).

    `length` counts the tokens of the image. Each layer has memory for what it holds and no more. `outputs` are those of
    sub-layers that pruned tokens are restored from, (R, L, C), by scale, layer and name (`core.pruning`).
    """

    def __init__(self, depth: int, **shape: Any) -> None:
        super().__init__((0,) * depth, **shape)
        self.outputs: dict[tuple[int, int, str], Tensor] = {}
        self._budget: Sequence[int] = (0,) * depth
        self._map = (1, 1)

    @classmethod
    def instead_of(cls, empty: KVCache, depth: int) -> Self:
        """A cache for the rows of another, which holds nothing."""
        (rows, heads, head_dim), like = empty._shape, empty._like
        return cls(depth, rows=rows, heads=heads, head_dim=head_dim, dtype=like.dtype, device=like.device)

    def begin(self, budget: Sequence[int], size: tuple[int, int], sources: Sequence[int]) -> None:
        """Ready for a step: what each layer may hold after it (0 frees the layer), and the map that it draws.

        Outputs of other scales than `sources` are dropped.
        """
        self._budget, self._map = budget, size
        self.outputs = {key: output for key, output in self.outputs.items() if key[0] in sources}
        for layer, count in enumerate(budget):
            if count == 0:
                self._keys[layer], self._values[layer] = self._allocate(0), self._allocate(0)

    def keep_rows(self, count: int) -> None:
        """Drop all but the first `count` rows, a tensor at a time."""
        super().keep_rows(count)
        for key, output in self.outputs.items():
            self.outputs[key] = output[:count].clone()

    def append(self, layer: int, k_RHLD: Tensor, v_RHLD: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values, of any number of tokens; return all that the layer holds."""
        for stored, new_RHLD in ((self._keys, k_RHLD), (self._values, v_RHLD)):
            stored[layer] = torch.cat((stored[layer], new_RHLD.to(stored[layer].dtype)), dim=2)
        return self._keys[layer], self._values[layer]

    def observed(self, new: int) -> Tensor:
        """Which of `new` tokens of a pass judge the keys: the centres of a grid of 4 x 4 over the map that is drawn.

        Of a pruned map they are the first ones, which differ most from the mean.
        """
        height, width = self._map
        if new < height * width:
            return torch.arange(min(new, OBSERVED_SIDE**2), device=self._like.device)
        rows, columns = (_centres(side, self._like.device) for side in self._map)
        return new - height * width + (rows[:, None] * width + columns).flatten()

    def evict(self, layer: int, q_RHOD: Tensor, observed_O: Tensor, new: int) -> None:
        """Drop keys of a layer beyond its budget: of each row and head those that matter least to some queries.

        Scores are summed over the queries of the `observed` ones of the last `new` tokens, and a key is as important as
        its most important neighbour among five. Observed tokens stay (ScaleKV, arXiv 2505.19602).
        """
        keys_RHLD, budget = self._keys[layer], self._budget[layer]
        held = keys_RHLD.shape[2]
        if held <= budget:
            return
        scores_RHL = (keys_RHLD.float() @ q_RHOD.float().sum(2).unsqueeze(-1)).squeeze(-1) / sqrt(keys_RHLD.shape[-1])
        scores_RHL = F.max_pool1d(scores_RHL, POOL, stride=1, padding=POOL // 2)
        scores_RHL[:, :, held - new + observed_O] = torch.inf
        stays_RHL = scores_RHL.topk(budget, dim=-1).indices.sort(dim=-1).values
        for stored in (self._keys, self._values):
            stored[layer] = stored[layer].take_along_dim(stays_RHL.unsqueeze(-1), dim=2)

    @property
    def nbytes(self) -> int:
        """Memory of all keys, values and outputs of sub-layers, in bytes."""
        return super().nbytes + sum(output.numel() * output.element_size() for output in self.outputs.values())


def _centres(side: int, device: torch.device) -> Tensor:
    """The middles of four equal parts of a side; fewer where it is shorter."""
    parts = min(side, OBSERVED_SIDE)
    return (2 * torch.arange(parts, device=device) + 1) * side // (2 * parts)


class SlotCache(KVCache):
    """A cache to which single tokens are appended at a position that is a tensor, so that one graph serves them all.

    It shares the memory of another, of which it reads every slot: `seen` says which slots the next token attends to.
    """

    even = False  # so that its positions are asked for

    def __init__(self, filled: KVCache) -> None:
        self._keys, self._values, self._rows = filled._keys, filled._values, filled._rows
        self.prefix, self.first, self.additions = filled.prefix, filled.first, filled.additions
        for tensor in self.memory:
            tensor[:, :, filled.length :] = 0  # slots that are not seen are read, and 0 * NaN is NaN
        self.slot = torch.full((1,), filled.length, device=filled._like.device)

    def seen(self) -> Tensor:
        """Bool (1, 1, capacity)."""
        return torch.arange(self._keys[0].shape[2], device=self.slot.device) <= self.slot[None, None]

    def append(self, layer: int, k_RHLD: Tensor, v_RHLD: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of one token; return those of every slot."""
        for stored, new_RHLD in ((self._keys[layer], k_RHLD), (self._values[layer], v_RHLD)):
            stored.index_copy_(2, self.slot, new_RHLD.to(stored.dtype))
        return self._keys[layer], self._values[layer]

    def advance(self, tokens: int) -> None:
        """Count nothing, which a graph could not; `next` does."""

    def next(self) -> None:
        """Go to the next slot, after a graph."""
        self.slot += 1


class RaggedCache(KVCache):
    """A cache whose rows may hold different numbers of tokens, each filled from the front.

    The host knows their `lengths`, and `length` is that of the longest row; the device has the same as `lengths_R`.
    While all rows are `even` it takes the faster path of `KVCache`.
    """

    def __init__(self, capacities: Sequence[int], *, rows: int, **shape: Any) -> None:
        super().__init__(capacities, rows=rows, **shape)
        device = self._like.device
        self.lengths, self.lengths_R = [0] * rows, torch.zeros(rows, dtype=torch.int64, device=device)
        self._rows_R1 = torch.arange(rows, device=device).unsqueeze(1)
        self._slots_RL: Tensor | None = None  # that a pass writes

    def _allocate(self, capacity: int) -> Tensor:
        return super()._allocate(capacity).zero_()  # unwritten slots of shorter rows are read, and 0 * NaN is NaN

    def append(self, layer: int, k_RHLD: Tensor, v_RHLD: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values to each row; return views as long as the longest row."""
        if self.even:
            return super().append(layer, k_RHLD, v_RHLD)
        end, capacity = self.length + k_RHLD.shape[2], self._keys[layer].shape[2]
        if end > capacity:
            raise ValueError(f"the cache has a capacity of {capacity} tokens in layer {layer}; {end} are needed")
        if self._slots_RL is None:
            self._slots_RL = _onward(self.lengths_R, k_RHLD.shape[2])
        for stored, new_RHLD in ((self._keys[layer], k_RHLD), (self._values[layer], v_RHLD)):
            stored[self._rows_R1, :, self._slots_RL] = new_RHLD.transpose(1, 2).to(stored.dtype)
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def advance(self, tokens: int) -> None:
        """Increase the length of every row by `tokens`, after every layer has appended them."""
        self._set([length + tokens for length in self.lengths], self.lengths_R + tokens)

    def rewind(self, length: int | Sequence[int], lengths_R: Tensor | None = None) -> None:
        """Drop all but the first `length` tokens, one number or one per row; ValueError if a row has fewer.

        Who has the lengths on the device as well gives them too, which saves a copy.
        """
        lengths = [length] * len(self.lengths) if isinstance(length, int) else list(map(int, length))
        if any(not 0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True)):
            raise ValueError(f"length is {length}; rows of {self.lengths} tokens rewind to at most their own lengths")
        self._set(lengths, torch.tensor(lengths).to(self._like.device) if lengths_R is None else lengths_R)

    def move(self, begin_R: Tensor, slots_RL: Tensor) -> None:
        """Copy some slots of each row to consecutive slots from `begin_R` on: the accepted path of a draft tree.

        Call `rewind` afterwards to drop the rest.
        """
        target_RL = _onward(begin_R, slots_RL.shape[1])
        for stored in (*self._keys, *self._values):
            stored[self._rows_R1, :, target_RL] = stored[self._rows_R1, :, slots_RL]

    def _set(self, lengths: list[int], lengths_R: Tensor) -> None:
        self.lengths, self.lengths_R, self._slots_RL = lengths, lengths_R, None
        self.length, self.even = max(lengths), min(lengths) == max(lengths)


def _onward(begin_R: Tensor, count: int) -> Tensor:
    """Consecutive numbers of each row, (R, count)."""
    return begin_R.unsqueeze(1) + torch.arange(count, device=begin_R.device)


def cache_of(
    network: Any, rows: int, capacities: Sequence[int] | None, kind: Callable[..., KVCache] = KVCache
) -> KVCache:
    """An empty cache for a network whose layers all cache every token, in the dtype and on the device of its weights.

    `capacities` are the tokens that each layer can hold; None is a whole image in every layer.
    """
    config, weight = network.config, next(network.parameters())
    capacities = [network.scales.total] * config.depth if capacities is None else capacities
    shape = {"rows": rows, "heads": config.num_heads, "head_dim": config.embed_dim // config.num_heads}
    return kind(capacities, **shape, dtype=weight.dtype, device=weight.device)


def token_span(cache: KVCache | None, scales: Schedule, computed: range) -> tuple[int, int]:
    """Start and end of the tokens of scales `computed`. ValueError unless the cache holds exactly the tokens before."""
    begin, end = scales.offsets[computed.start], scales.offsets[computed.stop]
    if (cache.tokens if cache is not None else 0) != begin:
        raise ValueError(
            f"scales {computed.start} to {computed.stop - 1} need a cache of exactly the {begin} tokens before them"
        )
    return begin, end
