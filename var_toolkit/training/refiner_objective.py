"""Fine-tunes CoDe's refiner (arXiv 2411.17787, section 3.3): it learns the last scales from a larger VAR.

Letters: B images, L tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.bind import bind
from var_toolkit.core.plan import BACKBONE, REFINER
from var_toolkit.methods.collaborative import collaborative
from var_toolkit.models.var import VAR
from var_toolkit.training.batches import Batch
from var_toolkit.training.collaborative import CollaborativeObjective, CollaborativeOptions
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import Loss, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import network_from


@dataclass(frozen=True, kw_only=True)
class RefinerOptions(CollaborativeOptions):
    """Options of the refiner.

    `direction` is that of the divergence: KL(teacher || student) as in the authors' helper function, or
    KL(student || teacher) as in the paper's formula.
    """

    teacher: str  # directory or name of a model
    direction: Literal["teacher-student", "student-teacher"] = "teacher-student"


@objective("refiner")
class RefinerObjective(CollaborativeObjective):
    """Divergence from a teacher under teacher forcing; the weight of the drafted scales decays from 1 to 0.

    The loss is the sum over tokens of weight * KL, divided by the number of all tokens, so tokens have equal weights as
    in VAR's own loss. The paper sums over scales and does not state how the tokens of a scale are averaged.
    """

    options_type = RefinerOptions
    log_note = (
        "loss decreases on its own with the weight of the drafted scales (drafted_weight); watch kl_refined instead"
    )

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        teacher = _teacher(recipe)  # first, because preparing the data may take hours
        super().__init__(recipe, workplace)
        self.teacher = teacher.to(workplace.team.device).eval().requires_grad_(False)
        self.drafted = self.scales.offsets[self.options.draft_scales]
        self.steps = recipe.total_steps(len(self.source))

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        tokens_BL, inputs_BLc = self._forced(batch)
        labels = self._labels(batch, draws)
        logits_BLV = self.networks["var"](labels, inputs_BLc)
        losses_BL = self._divergences(logits_BLV, labels, inputs_BLc)
        weight = drafted_weight(draws.step, self.steps)
        loss = (losses_BL[:, self.drafted :].sum() + weight * losses_BL[:, : self.drafted].sum()) / losses_BL.numel()
        terms = {"loss": loss.detach(), "drafted_weight": loss.new_tensor(weight)}
        return Loss(loss, terms | self._told(losses_BL.detach(), logits_BLV.detach(), tokens_BL))

    def _divergences(self, logits_BLV: Tensor, labels: Tensor, inputs_BLc: Tensor) -> Tensor:
        """Divergence from the teacher's distribution of every token, (B, L)."""
        with torch.no_grad():
            target_BLV = self.teacher(labels, inputs_BLc)
        if self.options.direction == "student-teacher":
            return kl(logits_BLV, target_BLV)
        return kl(target_BLV, logits_BLV)

    def _told(self, losses_BL: Tensor, logits_BLV: Tensor, tokens_BL: Tensor) -> dict[str, Tensor]:
        refined = losses_BL[:, self.drafted :].mean()
        return {"kl_refined": refined, **self._by_scale("kl", losses_BL, logits_BLV, tokens_BL)}

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Divergence from the teacher and accuracy, with the true labels."""
        tokens_BL, inputs_BLc = self._forced(batch)
        logits_BLV = network(batch.labels, inputs_BLc)
        losses_BL = self._divergences(logits_BLV, batch.labels, inputs_BLc)
        return {"kl": losses_BL.mean(), **self._told(losses_BL, logits_BLV, tokens_BL)}

    def preview(self, network: nn.Module) -> Tensor:
        """Sixteen images whose first scales come from the teacher, because the refiner is not trained on them."""
        plans = [self._run(drawing).plan for drawing in (self.teacher, network)]
        plan = collaborative(*plans, draft_scales=self.options.draft_scales)
        return self._drawn(bind(plan, {BACKBONE: self.teacher, REFINER: network}, self.tokenizer), 16)


def drafted_weight(step: int, steps: int) -> float:
    """Weight of the drafted scales: 1 at the first step, decreasing linearly to 0 at the last."""
    return 1 - step / max(1, steps - 1)


def kl(first_BLV: Tensor, second_BLV: Tensor) -> Tensor:
    """KL(first || second) of every token, (B, L), from logits."""
    # Flattened, because a softmax over an inner dimension is several times slower.
    first, second = (F.log_softmax(logits.flatten(0, 1), dim=1) for logits in (first_BLV, second_BLV))
    return F.kl_div(second, first, reduction="none", log_target=True).sum(dim=1).view(first_BLV.shape[:2])


def _teacher(recipe: Recipe) -> VAR:
    """The teacher; ValueError if its tokens or classes differ from those of the recipe's model."""
    teacher = network_from(recipe.objective_options.teacher, VAR, what="teacher")
    for name in ("patch_nums", "vocab_size", "latent_channels", "num_classes"):
        theirs, ours = getattr(teacher.config, name), getattr(recipe.model, name)
        if theirs != ours:
            raise ValueError(f"teacher: {name} is {theirs}, but the model has {ours}; they must be equal")
    return teacher
