"""Adapters in peft's format: `adapter_config.json` and `adapter_model.safetensors`. Reading them runs no code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from var_toolkit.formats.directory import write_tensors
from var_toolkit.formats.json_files import read_json, write_json
from var_toolkit.formats.safetensors_files import read_safetensors
from var_toolkit.strict_fields import shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of peft's names of tensors
PARTS = re.compile(r"(.+)\.lora_(?:(A|B)|(magnitude_vector))(?:\.weight)?")
MOST = 4096  # rank
# Settings that change what is computed and that are not read: each must be as peft has it by default.
UNREAD = (
    "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "lora_bias", "fan_in_fan_out",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "arrow_config", "use_qalora",
    "use_bdlora", "velora_config", "monteclora_config", "kasa_config",
)  # fmt: skip
CHANGING = (
    "pissa",
    "olora",
    "corda",
    "loftq",
    "lora_ga",
)  # what init_lora_weights begins with where it changes the base


@dataclass(frozen=True)
class Adapter:
    """The tensors of an adapter by peft's names without prefix, and what decides how they are used."""

    source: str  # for complaints
    rank: int
    alpha: float
    dora: bool
    rank_stabilised: bool
    network: str | None  # the class of network that it was made for
    base: str | None  # the model that it was made for
    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, tuple[int, int]]  # inputs and outputs of each adapted layer


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    rank: int,
    alpha: float,
    dora: bool,
    layers: list[str],
    network: str,
    module: str,
    base: str,
) -> None:
    """Write an adapter into an existing folder as peft does."""
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_dora": dora,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": layers,
        "base_model_name_or_path": base,
        "auto_mapping": {"base_model_class": network, "parent_library": module},
        "task_type": None,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, config)
    write_tensors(folder / WEIGHTS, {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()})


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder. ValueError in one line for anything else, or for settings that are not supported."""
    path = folder / CONFIG
    if not path.is_file():
        hint = f"; did you mean {folder / 'final'}?" if (folder / "final" / CONFIG).is_file() else ""
        raise ValueError(f"{path} is missing; an adapter is a folder with {CONFIG} and {WEIGHTS}{hint}")
    config: Any = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {shown(config.get('peft_type'))}; adapters must be LORA")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias is {shown(config['bias'])}; only none is supported")
    for name in UNREAD:
        if config.get(name):
            raise ValueError(f"{path}: {name} is set, which is not supported; train the adapter without it")
    first = config.get("init_lora_weights")
    if isinstance(first, str) and first.startswith(CHANGING):
        raise ValueError(
            f"{path}: init_lora_weights is {shown(first)}, which changes the base model; it is not supported"
        )
    told = {str(name).removeprefix(PREFIX): tensor for name, tensor in read_safetensors(folder / WEIGHTS).items()}
    found, sizes = _layers(told, rank := _rank(config, path), folder / WEIGHTS)
    dora, mapping = config.get("use_dora") is True, config.get("auto_mapping")
    if dora and (lacking := [name for name in sizes if f"{name}.lora_magnitude_vector" not in found]):
        raise ValueError(f"{folder / WEIGHTS} lacks the magnitudes of {lacking[0]!r}, which use_dora needs")
    return Adapter(
        str(folder), rank, _alpha(config, path), dora, config.get("use_rslora") is True,
        _text(mapping.get("base_model_class")) if isinstance(mapping, dict) else None,
        _text(config.get("base_model_name_or_path")), found, sizes,
    )  # fmt: skip


def _rank(config: Mapping[str, Any], path: Path) -> int:
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MOST:
        raise ValueError(f"{path}: r is {shown(rank)}; expected a rank of 1 to {MOST}")
    return rank


def _alpha(config: Mapping[str, Any], path: Path) -> float:
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not isfinite(alpha):
        raise ValueError(f"{path}: lora_alpha is {shown(alpha)}; expected a number")
    return float(alpha)


def _text(value: object) -> str | None:
    return " ".join(value.split())[:200] if isinstance(value, str) and value.strip() else None


def _layers(told: Mapping[str, Tensor], rank: int, path: Path) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """The tensors, and the sizes of their layers; ValueError for any that is not part of a whole LoRA."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    found = {}
    for name, tensor in told.items():
        match = PARTS.fullmatch(name)
        if match is None:
            raise ValueError(f"{path}: {name[:100]!r} is no tensor of LoRA or DoRA on a linear layer")
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: {name[:100]!r} holds values that are not finite numbers")
        part = match[2] or "magnitudes"
        shapes.setdefault(match[1], {})[part] = tuple(tensor.shape)
        found[f"{match[1]}.lora_magnitude_vector" if match[3] else f"{match[1]}.lora_{part}.weight"] = tensor.float()
    sizes = {}
    for layer, parts in shapes.items():
        down, up = parts.get("A", ()), parts.get("B", ())
        if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank:
            parts_shown = f"A {list(down)} and B {list(up)}"
            raise ValueError(
                f"{path}: {layer[:100]!r} has {parts_shown}; expected [{rank}, inputs] and [outputs, {rank}]"
            )
        if parts.get("magnitudes", (up[0],)) != (up[0],):
            raise ValueError(f"{path}: {layer[:100]!r} has magnitudes {list(parts['magnitudes'])}; expected [{up[0]}]")
        sizes[layer] = down[1], up[0]
    if not sizes:
        raise ValueError(f"{path} holds no tensors")
    return found, sizes
