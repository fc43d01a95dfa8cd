"""Bounds for the sizes in configuration files, which are checked before a network is built.

The bounds are far above any published model. They keep out numbers that would build layers for hours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from var_toolkit import strict_fields

Config = TypeVar("Config")
PARAMETERS = 100_000_000_000
VALUES = 64  # in a list
LAYERS, WIDTH, SIDE = (1, 1000), (1, 65_536), (1, 1024)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("depth", "encoder_depth", "decoder_depth", "branch_depth", "head_depth", "layers"), LAYERS),
    **dict.fromkeys(("num_res_blocks", "layers_per_block"), (1, 100)),
    **dict.fromkeys(("embed_dim", "head_width", "features", "widths", "block_out_channels", "ch"), WIDTH),
    **dict.fromkeys(("z_channels", "code_dim", "latent_channels", "in_channels", "out_channels"), WIDTH),
    **dict.fromkeys(("patch_nums", "side", "input_side"), SIDE),
    "sample_size": (1, 16_384),
    "mlp_hidden": (1, 1_000_000),
    "mlp_ratio": (1e-3, 1000),
    "num_heads": (1, 4096),
    "num_classes": (1, 10_000_000),
    "vocab_size": (1, 10_000_000),
    "ch_mult": (1, 1000),
    "norm_groups": WIDTH,
    "norm_num_groups": WIDTH,
    "norm_eps": (0, 1),
    "dropout": (0, 1),
    "drop_path": (0, 1),
    "beta": (0, 1e6),
    "quant_resi": (-1, 1),
    "share_quant_resi": (0, 1000),
    "quant_conv_ks": (1, 63),
    "scaling_factor": (1e-6, 1e6),
    "shift_factor": (-1e6, 1e6),
    "latents_mean": (-1e6, 1e6),
    "latents_std": (1e-6, 1e6),
}


def network_config(cls: type[Config], values: object, *, where: str, complete: bool = False) -> Config:
    """The configuration of a network from a mapping. ValueError in one line, naming file and key, for anything wrong.

    With `complete` every field must be there, as in the files that we write: a default could differ from a lost value.
    A field that RANGES does not name states its own bounds: `field(default=4, metadata={"range": (1, 64)})`; a list of
    more than VALUES values states how many there are at most: `metadata={"most": 1000}`; one that may be empty has
    `{"least": 0}`.
    """
    fields = strict_fields.read(cls, values, where=where)
    if complete:
        lacking = [name for name in getattr(cls, "__dataclass_fields__", {}) if name not in fields]
        if lacking:
            raise ValueError(f"{where}: missing key {lacking[0]!r}; save the model again, or give it a value")
    told: dict[str, dict[str, Any]] = {
        kind: {one.name: one.metadata[kind] for one in dataclasses.fields(cls) if kind in one.metadata}  # type: ignore[arg-type]
        for kind in ("range", "most", "least")
    }
    check_ranges(fields, where=where, ranges={**RANGES, **told["range"]}, most=told["most"], least=told["least"])
    return strict_fields.made(cls, fields, where=where)


def check_ranges(
    fields: Mapping[str, Any],
    *,
    where: str,
    ranges: Mapping[str, tuple[float, float]] = RANGES,
    most: Mapping[str, int] | None = None,
    least: Mapping[str, int] | None = None,
) -> None:
    """ValueError in one line for the first number outside its range, and for lists that are empty or too long."""
    for name, value in fields.items():
        shortest, longest = (least or {}).get(name, 1), (most or {}).get(name, VALUES)
        if isinstance(value, list | tuple) and not shortest <= len(value) <= longest:
            told = strict_fields.shown(value)
            raise ValueError(f"{where}: {name} is {told}; expected a list of {shortest} to {longest} values")
        if name not in ranges:
            continue
        low, high = ranges[name]
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and not low <= number <= high:
                told = strict_fields.shown(value)
                raise ValueError(f"{where}: {name} is {told}; expected {low:,g} to {high:,}")


def check_parameters(network: nn.Module, *, where: str) -> None:
    """ValueError in one line for a network with more than PARAMETERS parameters."""
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > PARAMETERS:
        raise ValueError(
            f"{where}: these sizes make {count / 1e9:,.0f} billion parameters; at most {PARAMETERS // 10**9} are read"
        )
