"""What the two halves of CoDe (arXiv 2411.17787) share when they are fine-tuned, each for its own scales.

The authors published weights, but no training code: these objectives follow section 3 of the paper.
"""

from dataclasses import dataclass

from var_toolkit.backbones.var import VAR
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.starting_weights import start_from
from var_toolkit.training.var_objective import VarObjective, require_share


@dataclass(frozen=True, kw_only=True)
class CollaborativeOptions:
    """How many scales the drafter draws, and the trained network that the run goes on from."""

    draft_scales: int
    initial: str  # directory or name of a model
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        require_share(class_dropout=self.class_dropout)


class CollaborativeObjective(VarObjective):
    """Goes on from a trained VAR, with another weight for the drafted scales than for the others."""

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        draft_scales, count = recipe.objective_options.draft_scales, len(recipe.model.patch_nums)
        if not 1 <= draft_scales <= count - 1:
            raise ValueError(
                f"{where}: draft_scales is {draft_scales}; it must be from 1 to {count - 1}, of {count} scales"
            )

    def _begin(self, network: VAR) -> None:
        start_from(network, self.options.initial)
