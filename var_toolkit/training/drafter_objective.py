"""Fine-tunes CoDe's drafter (arXiv 2411.17787, section 3.3): a VAR that predicts only the first scales.

The first scales have few tokens, so a step costs a fraction of a step of VAR.
"""

from dataclasses import dataclass
from typing import Any

from var_toolkit.core.schedule import Schedule
from var_toolkit.training.collaborative import CollaborativeObjective, CollaborativeOptions
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.var_objective import require_share


@dataclass(frozen=True, kw_only=True)
class DrafterOptions(CollaborativeOptions):
    """Options of the drafter."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(label_smoothing=self.label_smoothing)


@objective("drafter")
class DrafterObjective(CollaborativeObjective):
    """Cross-entropy on the tokens of the drafted scales; the other scales are not computed.

    The previews show samples of the drafter alone, including the finer scales, which it gradually forgets.
    """

    options_type = DrafterOptions
    log_note = "loss and accuracy are of the drafted scales only, so they are not comparable with those of all scales"

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Labels, and the inputs of the drafted scales."""
        scales = Schedule(recipe.model.patch_nums[: recipe.objective_options.draft_scales])
        labels, inputs = super().example(recipe, rows)
        return labels, inputs[:, : scales.total - scales.lengths[0]]

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        self.trained = Schedule(self.scales.patch_nums[: self.options.draft_scales])
