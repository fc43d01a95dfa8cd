"""Sub-layers that compute some tokens of a scale and restore the others from an earlier scale.

The rule of FastVAR (arXiv 2503.23367; `methods.fastvar`). Letters: R rows, L tokens of the scale, K those that are
kept, N tokens of the earlier scale, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.cache import SparseCache
from var_toolkit.core.schedule import Schedule

Compute = Callable[[Tensor, Tensor | None], Tensor]  # states of some tokens, and which (None: all) -> their outputs
Sublayer = Callable[[Tensor, str, Compute], Tensor]  # states of all tokens, the sub-layer's name -> outputs of all


def whole(x_RLC: Tensor, name: str, compute: Compute) -> Tensor:
    """A sub-layer that computes all tokens."""
    return compute(x_RLC, None)


def kept_tokens(x_RLC: Tensor, count: int) -> Tensor:
    """The tokens that differ most from the mean of their row, the most different first, int64 (R, K)."""
    x_RLC = x_RLC.float()
    scores_RL = (x_RLC - x_RLC.mean(dim=1, keepdim=True)).square().sum(-1)
    return scores_RL.topk(count, dim=1).indices


def gathered(x_RLC: Tensor, kept_RK: Tensor) -> Tensor:
    """The states of some tokens of each row, (R, K, C)."""
    return x_RLC.take_along_dim(kept_RK.unsqueeze(-1), dim=1)


def restored(
    found_RKC: Tensor, kept_RK: Tensor, earlier_RNC: Tensor, earlier: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Outputs of all tokens of a map of `size`, (R, L, C): those found, else those of an `earlier` map by area."""
    map_RChw = earlier_RNC.transpose(1, 2).unflatten(2, earlier)
    outputs_RLC = F.interpolate(map_RChw, size=size, mode="area").flatten(2).transpose(1, 2).contiguous()
    index_RKC = kept_RK.unsqueeze(-1).expand_as(found_RKC)
    return outputs_RLC.scatter(1, index_RKC, found_RKC.to(outputs_RLC.dtype))


@dataclass(frozen=True, eq=False)
class PrunedPass:
    """A pass of a network over `scales` of which each layer computes `kept` tokens, if they are one scale.

    The others are restored from the outputs at scale `source`. Those of the scales in `sources`, of the layers named
    there, go to the cache for later passes. Each sub-layer and each row has a ranking of its own.
    """

    cache: SparseCache
    schedule: Schedule
    scales: range
    kept: tuple[int, ...]
    source: int | None
    sources: Mapping[int, Sequence[int]]

    def layer(self, layer: int) -> Sublayer:
        """How the sub-layers of a layer run."""
        return partial(self._run, layer)

    def _run(self, layer: int, x_RLC: Tensor, name: str, compute: Compute) -> Tensor:
        pruned = len(self.scales) == 1 and self.kept[layer] < x_RLC.shape[1]
        outputs_RLC = self._pruned(layer, x_RLC, name, compute) if pruned else compute(x_RLC, None)
        for k, layers in self.sources.items():
            if layer in layers:
                first, end = (self.schedule.offsets[at] - self.schedule.offsets[self.scales.start] for at in (k, k + 1))
                self.cache.outputs[k, layer, name] = outputs_RLC[:, first:end].clone()
        return outputs_RLC

    def _pruned(self, layer: int, x_RLC: Tensor, name: str, compute: Compute) -> Tensor:
        assert self.source is not None
        kept_RK = kept_tokens(x_RLC, self.kept[layer])
        found_RKC = compute(gathered(x_RLC, kept_RK), kept_RK)
        maps, earlier_RNC = self.schedule.maps, self.cache.outputs[self.source, layer, name]
        return restored(found_RKC, kept_RK, earlier_RNC, maps[self.source], maps[self.scales.start])


def sublayers(pruned: PrunedPass | None, layer: int) -> Sublayer:
    """How the sub-layers of a layer run in a pass that may be pruned."""
    return whole if pruned is None else pruned.layer(layer)
