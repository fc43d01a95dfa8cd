"""Fine-tunes the large half of CoDe (arXiv 2411.17787, section 3.3): a VAR that only draws the first scales.

Those hold few of the tokens, so a step costs a fraction of one of VAR's.
"""

from dataclasses import dataclass

from var_toolkit.scales import Scales
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
    """Cross-entropy on the tokens of the drafted scales, which are all that is computed.

    The previews show what the drafter draws by itself, the finer scales included, which it slowly forgets.
    """

    options_type = DrafterOptions
    log_note = "loss and accuracy are of the drafted scales alone: not to be compared with those of all scales"

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        self.trained = Scales(self.scales.patch_nums[: self.options.draft_scales])
