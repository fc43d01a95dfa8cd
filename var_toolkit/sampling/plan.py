"""Decoding plans: which backbone draws which scales of a picture, and how.

A method of next-scale decoding is a way to build a plan; one engine runs every plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor

from var_toolkit.scales import Scales


class Backbone(Protocol):
    """What the engine asks of a next-scale network."""

    scales: Scales
    config: Any

    def new_cache(self, rows: int) -> Any: ...

    def multiply_adds(self, new: int, context: int, drawn: int) -> int: ...

    def condition(self, labels_R: Tensor) -> Any: ...

    def hidden(self, condition: Any, inputs_RLc: Tensor | None, *, scales: range, cache: Any = None) -> Tensor: ...

    def logits(self, condition: Any, hidden_RLC: Tensor) -> Tensor: ...


class Tokenizer(Protocol):
    """What the engine asks of a tokenizer."""

    scales: Scales
    quantize: Any

    def decode(self, latent_BChw: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Stage:
    """Some consecutive scales, drawn by one backbone under one set of settings.

    `guidance` is VAR's: it grows linearly from 0 at the first scale of the picture to this value at the last, and the
    usual guidance scale there is 1 + guidance. 0 switches guidance off and halves the work.
    """

    backbone: Backbone
    scales: range
    guidance: float = 0.0
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0
    smooth: bool = False

    def __post_init__(self) -> None:
        last = len(self.backbone.scales)
        if not (0 <= self.scales.start < self.scales.stop <= last and self.scales.step == 1):
            raise ValueError(f"a stage has {self.scales}; it must be consecutive scales out of 0 to {last - 1}")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance}; it must be 0 (off) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be from 0 (off) to 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")


@dataclass(frozen=True)
class Plan:
    """The stages of one picture, coarse to fine. Together they cover every scale of the tokenizer once."""

    tokenizer: Tokenizer
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        ends = [0, *(stage.scales.stop for stage in self.stages)]
        starts = [*(stage.scales.start for stage in self.stages), len(self.tokenizer.scales)]
        if starts != ends:
            raise ValueError(
                f"the stages cover {self.ranges}; they must cover 0 to {len(self.tokenizer.scales) - 1} once"
            )
        for stage in self.stages:
            if stage.backbone.scales != self.tokenizer.scales:
                raise ValueError(
                    f"a backbone draws patch_nums {list(stage.backbone.scales.patch_nums)}, its tokenizer has "
                    f"{list(self.tokenizer.scales.patch_nums)}; they must be the same"
                )
        for one, other in pairwise(self.stages):
            if one.backbone.config.num_classes != other.backbone.config.num_classes:
                raise ValueError("the backbones of a plan must have the same classes")

    @property
    def ranges(self) -> str:
        """The scales of the stages in words."""
        return ", ".join(f"{stage.scales.start}-{stage.scales.stop - 1}" for stage in self.stages) or "nothing"
