"""Condition Contrastive Alignment (CCA, arXiv 2410.09347): a trained model learns to draw well without guidance.

Letters: B images, R rows (2B, the images' own labels first), L tokens, V vocabulary.
"""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.bind import Run
from var_toolkit.heads.categorical import token_losses
from var_toolkit.models.family import Family
from var_toolkit.registry import family_of
from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import WHOLE_BATCH, Loss, Workplace
from var_toolkit.training.raster_gpt_objective import RasterGPTObjective
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from
from var_toolkit.training.var_objective import VarObjective, require_share


@dataclass(frozen=True, kw_only=True)
class CcaOptions:
    """The trained model, which is the start and the reference, and the paper's two constants.

    `negative_weight` is its lambda: published 50 for VAR-d16 and d20, 100 for d24, 1000 for d30. It acts as the
    guidance scale does: more of it brings fidelity and costs variety.
    """

    initial: str  # directory or name of a model
    beta: float = 0.02  # of the log-likelihood ratios
    negative_weight: float = 50.0
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        require_share(class_dropout=self.class_dropout)
        for name in ("beta", "negative_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")


class Alignment(VarObjective):
    """Images become more likely for their own labels than for those of others, relative to the frozen reference.

    Other labels are those of the batch, moved on by one image. Class dropout takes both labels of an image.
    """

    options_type: ClassVar[type] = CcaOptions
    refused = WHOLE_BATCH
    reference: nn.Module
    log_note = (
        "ratio is the mean log-likelihood of the images, given their classes, minus that by the reference; ratio_other "
        "is the same given classes of other images; ratio minus ratio_other should grow"
    )

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        if recipe.batch_size < 2:
            raise ValueError(
                f"{where}: batch_size is 1; it must be 2 or more, because images lend one another their labels"
            )

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        self.team = workplace.team
        self.reference = self.reference.to(self.team.device).requires_grad_(False)
        self.sampling = replace(self.sampling, cfg=family_of(self.networks["var"]).cfg_off)

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Each image with two labels."""
        return super().example(recipe, 2 * rows)

    def _begin(self, network: nn.Module) -> None:
        start_from(network, self.options.initial, same_classes=True)
        self.reference = deepcopy(network)

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        own_B = self._labels(batch, draws)
        next_B = self.team.rows(batch.labels).roll(-1)[draws.rows]
        other_B = torch.where(own_B == self.classes, self.classes, next_B)
        loss, terms = self._contrasted(self.networks["var"], batch, own_B, other_B)
        return Loss(loss, {"loss": loss.detach(), **terms})

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Loss, ratios and accuracy with the true labels."""
        loss, terms = self._contrasted(network, batch, batch.labels, batch.labels.roll(-1))
        return {"loss": loss, **terms}

    def _contrasted(
        self, network: nn.Module, batch: Batch, own_B: Tensor, other_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss for two labels of each image, and detached numbers for the log."""
        tokens_BL, inputs = self._forced(batch)
        labels_R, tokens_RL, inputs = torch.cat((own_B, other_B)), tokens_BL.repeat(2, 1), torch.cat((inputs, inputs))
        logits_RLV = network(labels_R, inputs)
        losses_RL = token_losses(logits_RLV, tokens_RL)
        with torch.no_grad():  # as published, dropout is on in the reference where it is on in the network
            known_RL = token_losses(self.reference.train(network.training)(labels_R, inputs), tokens_RL)
        ratio_B, ratio_other_B = (known_RL - losses_RL).sum(dim=1).chunk(2)
        positive_B, beta, weight = other_B == own_B, self.options.beta, self.options.negative_weight
        loss = contrastive_loss(ratio_B, ratio_other_B, positive_B, beta=beta, negative_weight=weight)
        own_BL, own_BLV = (rows.detach().chunk(2)[0] for rows in (losses_RL, logits_RLV))
        return loss, {
            "ratio": ratio_B.detach().mean(),
            "ratio_other": (ratio_other_B.detach() * ~positive_B).sum() / (~positive_B).sum().clamp(min=1),
            "cross_entropy": own_BL.mean(),
            **self._by_scale("cross_entropy", own_BL, own_BLV, tokens_BL),
        }

    def _run(self, network: nn.Module, **settings: Any) -> Run:
        """Drawing without guidance."""
        return super()._run(network, **({"guidance": 0.0} | settings))


class NextTokenAlignment(Alignment, RasterGPTObjective):
    """The same for networks that draw one token after another."""


@objective("cca")
class CcaObjective(Alignment):
    """Of any family whose likelihoods of given tokens come from one pass; without a family that of VAR."""

    @classmethod
    def of_family(cls, family: Family) -> type[VarObjective]:
        """The objective for its networks. ValueError if they draw continuous tokens."""
        by_token = family.tokenizer.network == NextTokenAlignment.tokenizer_type.__name__
        return (NextTokenAlignment if by_token else Alignment).of_family(family)


def contrastive_loss(
    ratio_B: Tensor, ratio_other_B: Tensor, positive_B: Tensor, *, beta: float, negative_weight: float
) -> Tensor:
    """CCA's loss, a scalar, as the published code has it.

    The ratios are log p - log p_ref of all tokens of an image, for its own label and for another one. Where
    `positive_B` is true, the other label is as good as its own, or there is none: it then counts as positive, with
    weight 1.
    """
    sign_B, weight_B = torch.where(positive_B, 1.0, -1.0), torch.where(positive_B, 1.0, negative_weight)
    own_B, other_B = F.logsigmoid(beta * ratio_B), F.logsigmoid(beta * sign_B * ratio_other_B)
    return -(own_B + weight_B * other_B).mean() / max(negative_weight, 1.0)
