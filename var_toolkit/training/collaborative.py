"""What fine-tuning of CoDe's drafter and refiner (arXiv 2411.17787) has in common.

The authors published weights but no training code; these objectives follow section 3 of the paper.
"""

from dataclasses import dataclass

from var_toolkit.models.var import VAR
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.starting_weights import start_from
from var_toolkit.training.var_objective import VarObjective, require_share


@dataclass(frozen=True, kw_only=True)
class CollaborativeOptions:
    """The number of drafted scales, and the trained network to start from."""

    draft_scales: int
    initial: str  # directory or name of a model
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        require_share(class_dropout=self.class_dropout)


class CollaborativeObjective(VarObjective):
    """Fine-tunes a trained VAR, with different weights for drafted and other scales."""

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        draft_scales, count = recipe.objective_options.draft_scales, len(recipe.model.patch_nums)
        if not 1 <= draft_scales <= count - 1:
            raise ValueError(
                f"{where}: draft_scales is {draft_scales}; it must be from 1 to {count - 1} for {count} scales"
            )

    def _begin(self, network: VAR) -> None:
        start_from(network, self.options.initial)
