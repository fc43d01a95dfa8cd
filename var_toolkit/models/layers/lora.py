"""Adapters (LoRA, arXiv 2106.09685; DoRA, 2402.09353) of the linear layers of a network, by peft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from var_toolkit.models.layers.blocks import blocks_within
from var_toolkit.models.layers.float8_linear import torchao_quietly
from var_toolkit.models.layers.linear import Linear

if TYPE_CHECKING:
    from peft import LoraConfig

    from var_toolkit.formats.peft_files import Adapter


def require_peft() -> None:
    """ValueError of one line if peft is not installed."""
    if find_spec("peft") is None:
        raise ValueError("adapters need the package peft: pip install 'var-toolkit[peft]'")


def target_layers(network: nn.Module, wanted: Sequence[str] | None = None) -> list[str]:
    """The linear layers that an adapter adapts: those of the transformer blocks that are trained, by their full names.

    Of these only the `wanted`, which are ends of names such as `attn.proj`. ValueError for one that no layer has.
    """
    blocks = {id(part) for block in blocks_within(network) for part in block.modules()}
    found = [
        name
        for name, part in network.named_modules()
        if id(part) in blocks and isinstance(part, nn.Linear) and part.weight.requires_grad
    ]
    if not found:
        raise ValueError(f"{type(network).__name__} has no linear layers in transformer blocks that are trained")
    for end in wanted or ():
        if not any(_ends(name, end) for name in found):
            kinds = sorted({".".join(part for part in name.split(".") if not part.isdigit()) for name in found})
            raise ValueError(f"targets: no layer is named {end!r}; there are {', '.join(kinds)}")
    return found if wanted is None else [name for name in found if any(_ends(name, end) for end in wanted)]


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def inject(network: nn.Module, layers: Sequence[str], *, rank: int, alpha: float, dora: bool) -> None:
    """Put adapters that change nothing yet into layers, in place; nothing else of the network is trained."""
    with torchao_quietly():
        from peft import LoraConfig

    _inject(network, LoraConfig(r=rank, lora_alpha=alpha, use_dora=dora, target_modules=list(layers)))  # type: ignore[arg-type]


def _inject(network: nn.Module, config: LoraConfig) -> None:
    from peft import inject_adapter_in_model

    from var_toolkit.models.layers.lora_linear import LoraLinear

    config._register_custom_module({Linear: LoraLinear})
    with torchao_quietly():
        inject_adapter_in_model(config, network)


def adapter_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of the adapter of a network, by peft's names."""
    from peft import get_peft_model_state_dict

    found: dict[str, Tensor] = get_peft_model_state_dict(network, save_embedding_layers=False)
    return found


def require_layers(network: nn.Module, adapter: Adapter) -> None:
    """ValueError of one line for an adapter of another kind of network, or of layers of other sizes."""
    kind, layers = type(network).__name__, dict(network.named_modules())
    if adapter.network not in (None, kind):
        base = f" ({adapter.base})" if adapter.base is not None else ""
        raise ValueError(f"{adapter.source} is an adapter of {adapter.network}{base}; the model is {kind}")
    for name, (inputs, outputs) in adapter.sizes.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{adapter.source} adapts {name!r}, which is no linear layer of {kind}")
        if (layer.in_features, layer.out_features) != (inputs, outputs):
            own = f"{layer.in_features} to {layer.out_features}"
            raise ValueError(f"{adapter.source} adapts {name!r} of sizes {inputs} to {outputs}; the model has {own}")


def weight_changes(weights: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """What an adapter adds to the weights (outputs, inputs) of its layers, given by name; float32.

    peft merges them in layers of their own, so that no network changes.
    """
    with torchao_quietly():
        from peft import LoraConfig, set_peft_model_state_dict

    shell = nn.Module()
    for name in adapter.sizes:
        _place(shell, name, weights[name].float())
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        use_dora=adapter.dora,
        use_rslora=adapter.rank_stabilised,
        target_modules=list(adapter.sizes),
    )
    _inject(shell, config)
    set_peft_model_state_dict(shell, dict(adapter.tensors))
    changes = {}
    for name in adapter.sizes:
        layer: Any = shell.get_submodule(name)
        with torch.no_grad():
            layer.merge()
        changes[name] = layer.base_layer.weight.detach() - weights[name].float()
    return changes


def _place(shell: nn.Module, name: str, weight: Tensor) -> None:
    """Put a linear layer with a copy of a weight under a name with dots."""
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(shell, parent):
            shell.add_module(parent, nn.Module())
        shell = shell.get_submodule(parent)
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    shell.add_module(last, layer)
