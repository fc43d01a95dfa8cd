"""What a precision by name means on a device, and which one is the fastest there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from var_toolkit.devices import has_units, processor_features
from var_toolkit.models.layers.float8_linear import float8_missing
from var_toolkit.models.layers.int8_linear import has_int8_operators, share_of_wide

FLOATS = ("float32", "bfloat16", "float16")
EIGHT_BITS = ("int8", "float8")
PRECISIONS = (*FLOATS, *EIGHT_BITS, "auto")
INT8_DEVICES = ("cpu", "cuda")
# Inputs of a linear layer from which on int8 took 0.4 to 0.9 of the time of bfloat16 for 8 to 2048 rows (packed layers,
# AMD EPYC with units for both, one thread). With 256 and 384 inputs it took 0.8 to 1.7.
WIDE_INPUTS = 512


@dataclass(frozen=True)
class Precision:
    """How networks compute: the dtype of all that is not quantised, and which of `EIGHT_BITS` linear layers are in."""

    wide: torch.dtype
    quantized: str | None
    why: str

    @property
    def name(self) -> str:
        """One of `PRECISIONS`, but never "auto"."""
        return self.quantized or str(self.wide).removeprefix("torch.")


def precision_of(wanted: str | torch.dtype, device: torch.device, networks: Sequence[nn.Module] = ()) -> Precision:
    """What is wanted by name or as a dtype, with "auto" resolved for the device and the sizes of the backbones.

    In int8 the rest is float32 on the CPU and bfloat16 on CUDA, in float8 bfloat16. ValueError in one line for other
    names, and for int8 or float8 on a device that cannot compute in it.
    """
    name = str(wanted).removeprefix("torch.")
    if name == "auto":
        return _fastest(device, networks)
    if name in EIGHT_BITS:
        require_eight_bits(name, device)
        return _int8(device, "as asked") if name == "int8" else Precision(torch.bfloat16, name, "as asked")
    if name not in FLOATS and not (isinstance(wanted, torch.dtype) and wanted.is_floating_point):
        raise ValueError(f"dtype is {wanted!r}; it must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    return Precision(getattr(torch, name), None, "as asked")


def require_eight_bits(name: str, device: torch.device) -> None:
    """ValueError in one line for a device that cannot multiply in one of `EIGHT_BITS`, or a package that is missing."""
    if name == "float8":
        if (why := float8_missing(device)) is not None:
            raise ValueError(why)
    elif device.type not in (*INT8_DEVICES, "meta"):
        raise ValueError(f"int8 is not supported on {device.type}; use device {' or '.join(INT8_DEVICES)}, or float32")


def _fastest(device: torch.device, networks: Sequence[nn.Module]) -> Precision:
    """By the units that the processor is known to have, so that the same machine always draws the same images."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            more = "" if float8_missing(device) else "; it has float8 units too, for --dtype float8"
            return Precision(torch.bfloat16, None, f"the GPU has bfloat16 units{more}")
        return Precision(torch.float32, None, "the GPU has no bfloat16 units")
    if device.type != "cpu" or not processor_features():
        return Precision(torch.float32, None, f"the units of {device.type} are not known")
    int8 = has_units("int8") and has_int8_operators()
    if has_units("bfloat16"):
        # Where matrix units (AMX) multiply in both, nothing was measured.
        if int8 and "amx_bf16" not in processor_features() and share_of_wide(networks, WIDE_INPUTS) > 0.5:
            why = f"most weights are in layers of {WIDE_INPUTS} inputs or more, where int8 is the fastest"
            return _int8(device, why)
        return Precision(torch.bfloat16, None, "the processor has bfloat16 units")
    if int8:
        return _int8(device, "the processor has int8 units and no bfloat16 units")
    return Precision(torch.float32, None, "the processor has neither int8 nor bfloat16 units that torch uses")


def _int8(device: torch.device, why: str) -> Precision:
    return Precision(torch.bfloat16 if device.type == "cuda" else torch.float32, "int8", why)
