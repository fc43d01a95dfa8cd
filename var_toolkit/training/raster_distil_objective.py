"""Trains a small GPT to draft for a larger one, after FastDraft (arXiv 2411.11055) and TVD++ (arXiv 2403.00858)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from var_toolkit.conditions.class_names import Named
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.registry import Sampling
from var_toolkit.training.distillation import MatchingObjective, MatchingOptions
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.raster_gpt_objective import RasterGPTObjective
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective


@dataclass(frozen=True, kw_only=True)
class RasterDistilOptions(MatchingOptions):
    """Options of the smaller GPT, with `class_embedding` as for `raster-gpt`."""

    class_embedding: Literal["table", "still-life-factors"] = "table"


@objective("raster-distil")
class RasterDistilObjective(MatchingObjective):
    """A GPT of any size with the same tokens and classes as the target."""

    options_type = RasterDistilOptions

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        self.sampling = Sampling(cfg=1.0, top_k=self.target.head.top_k, top_p=self.target.head.top_p)

    def _require_target(self, model: Any, teacher: RasterGPT) -> None:
        for name in ("side", "vocab_size", "num_classes"):
            ours, theirs = getattr(model, name), getattr(teacher.config, name)
            if ours != theirs:
                raise ValueError(f"model: {name} is {ours}, but the teacher has {theirs}; they must be equal")

    def _class_names(self) -> Named:
        still_lifes = self.options.class_embedding == "still-life-factors"
        return "still-lifes" if still_lifes else super()._class_names()

    def _save(self, network: nn.Module, directory: Path) -> None:
        RasterGPTObjective.save(self, network, directory)

    def _drafted(self, network: nn.Module, labels: Tensor, seen_BL: Tensor) -> Tensor:
        logits_BLV: Tensor = network(labels, seen_BL)
        return logits_BLV
