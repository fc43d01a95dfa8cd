"""Numbers that stopped being finite: where, and what to do about it.

float16 ends at 65504, so that networks trained in other formats overflow in it. An infinity becomes NaN a layer later,
and NaN draws a wrong token or a black pixel without an error of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Noted(NamedTuple):
    what: str
    network: nn.Module
    guidance: float
    extremes: tuple[Tensor, Tensor]  # smallest and largest value; NaN if any value is


class FiniteCheck:
    """Records on the device what each step of a decoding run computed, and reads the record once.

    Reading at every step would make the host wait for the accelerator each time. On the CPU there is nothing to wait
    for, so there `note` raises at once.
    """

    def __init__(self) -> None:
        self._noted: list[_Noted] = []

    def note(self, values: Tensor, what: str, network: nn.Module, guidance: float) -> None:
        """Record what a network computed; `what` names it in the error.

        FloatingPointError on the CPU if it is not finite.
        """
        self._noted.append(_Noted(what, network, guidance, values.aminmax()))
        if values.is_cpu:
            self.require()

    def require(self) -> None:
        """FloatingPointError that names the first values that were not finite. One read by the host."""
        noted, self._noted = self._noted, []
        if not noted:
            return
        extremes = torch.stack([extreme for one in noted for extreme in one.extremes])
        finite = extremes.isfinite().view(-1, 2).all(dim=1).tolist()
        for one, good in zip(noted, finite, strict=True):
            if not good:
                raise FloatingPointError(f"{one.what} are not finite; {_remedy(one.network, one.guidance)}")


def _remedy(network: nn.Module, guidance: float) -> str:
    ways = ["check the weights for NaN"]
    if guidance > 0:
        ways.insert(0, f"lower the guidance scale ({1 + guidance:g} there)")
    if next(network.parameters()).dtype == torch.float16:
        ways.insert(0, "float16 overflows in some models: use bfloat16 or float32")
    return ", or ".join(ways)


def require_finite(values: Tensor, what: str) -> Tensor:
    """The values; FloatingPointError if one of them is not finite. The host waits for them."""
    if not bool(values.isfinite().all()):
        raise FloatingPointError(
            f"{what} are not finite; float16 overflows in some models: use bfloat16 or float32, or check the weights"
        )
    return values


def clamped(images: Tensor) -> Tensor:
    """Images in [-1, 1], and NaN where they were infinite: clamping alone would turn an overflow into white."""
    return images.masked_fill(images.isinf(), torch.nan).clamp_(-1, 1)


def require_fit(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, where: str) -> None:
    """ValueError that names the first of some weights that would become infinite in a dtype."""
    if dtype is None:
        return
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
            continue
        largest = tensor.abs().max()
        if largest.isfinite() and not largest.to(dtype).isfinite():
            kind, limit = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
            raise ValueError(
                f"{where}: {name} holds {float(largest):g}, and {kind} ends at {limit:g}; use bfloat16 or float32"
            )
