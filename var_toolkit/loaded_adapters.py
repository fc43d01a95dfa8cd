"""Adapters (LoRA, DoRA) of a pipeline, merged into the weights of its backbone: drawing takes as long as without."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor, nn

from var_toolkit.formats.peft_files import Adapter
from var_toolkit.models.layers.float8_linear import is_float8
from var_toolkit.models.layers.int8_layer import is_quantized
from var_toolkit.models.layers.linear import pack_linears, unpack_linears
from var_toolkit.models.layers.lora import require_layers, require_peft, weight_changes


def require_adaptable(network: nn.Module, adapter: Adapter) -> None:
    """ValueError of one line if an adapter does not fit a network, or none can be merged into it."""
    require_peft()
    _require_wide(network, adapter.source)
    require_layers(network, adapter)


def _require_wide(network: nn.Module, source: str) -> None:
    if is_quantized(network) or is_float8(network):
        raise ValueError(
            f"{source}: no adapter can be merged into int8 or float8 weights; load the model in float32 first"
        )


def require_weight(weight: float, source: str) -> None:
    """ValueError of one line for a weight of an adapter that is no finite number."""
    if not isfinite(weight):
        raise ValueError(f"the weight of {source} is {weight}; expected a number")


class LoadedAdapters:
    """What each adapter adds to the weights of a network, and how much of it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.base: dict[str, Tensor] = {}  # weights of the layers that adapters change, as they were before, float32
        self.changes: dict[str, dict[str, Tensor]] = {}  # by the names of adapters and layers, float32
        self.weights: dict[str, float] = {}

    def add(self, name: str, adapter: Adapter, weight: float) -> None:
        """Merge another adapter. ValueError if it does not fit."""
        require_adaptable(self.network, adapter)
        require_weight(weight, adapter.source)
        if name in self.changes:
            raise ValueError(f"an adapter named {name!r} is loaded already; give another adapter_name")
        packed = self._unpack()
        for layer in adapter.sizes.keys() - self.base.keys():
            self.base[layer] = self.network.get_parameter(f"{layer}.weight").detach().float().clone()
        self.changes[name] = weight_changes(self.base, adapter)
        self.weights[name] = weight
        self._merge(packed)

    def use(self, weights: Mapping[str, float]) -> None:
        """Take other weights; adapters that are not named have none. ValueError for an unknown name."""
        _require_wide(self.network, ", ".join(weights) or "no adapter")
        for name, weight in weights.items():
            if name not in self.changes:
                raise ValueError(f"no adapter is named {name!r}; loaded are {', '.join(self.changes) or 'none'}")
            require_weight(weight, name)
        self.weights = dict.fromkeys(self.changes, 0.0) | dict(weights)
        self._merge(self._unpack())

    @torch.no_grad()
    def _merge(self, packed: bool) -> None:
        for layer, base in self.base.items():
            weight, merged = self.network.get_parameter(f"{layer}.weight"), base.clone()
            for name, changes in self.changes.items():
                if layer in changes and self.weights[name]:
                    merged.add_(changes[layer], alpha=self.weights[name])
            weight.copy_(merged)
        if packed:
            pack_linears(self.network)

    def _unpack(self) -> bool:
        """Unpack the linear layers; whether they were packed."""
        packed = any(weight.is_mkldnn for weight in self.network.parameters())
        unpack_linears(self.network)
        return packed
