"""Trains EAGLE's draft head (arXiv 2401.15077, section 4) for LlamaGen's GPT, under guidance as in LANTERN.

Letters: B images, R rows (twice as many under guidance), L tokens, V vocabulary, C width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.filters import guide
from var_toolkit.models.draft_heads import EagleHead
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.training.acceptance import soft_cross_entropy
from var_toolkit.training.batches import Batch
from var_toolkit.training.distillation import DistillationObjective, DistillationOptions
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import NO_ADAPTER
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from


@dataclass(frozen=True, kw_only=True)
class EagleHeadOptions(DistillationOptions):
    """The weight of the token loss relative to the feature loss (as published), and noise on the input features.

    A larger `choice_weight` improves the first draft but harms later ones, which depend on estimated features.
    """

    choice_weight: float = 0.1
    feature_noise: float = 0.1  # uniform in [-feature_noise, feature_noise]

    def __post_init__(self) -> None:
        for name in ("choice_weight", "feature_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


@objective("eagle-head")
class EagleHeadObjective(DistillationObjective):
    """Regression of the target's features at the next position, for both CFG rows, and cross-entropy on its tokens.

    The head's logits are guided like the target's, from its estimates of both rows. The head does not predict the first
    token of an image, since it starts from a known token.
    """

    options_type = EagleHeadOptions
    network_type = EagleHead
    refused = NO_ADAPTER

    def _require_target(self, model: Any, teacher: RasterGPT) -> None:
        with torch.device("meta"):
            EagleHead(model).require_fit(teacher)

    def _begin(self, network: Any) -> None:
        start_from(network, self.options.initial)

    def _compared(self, network: nn.Module, batch: Batch, draws: Draws | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, its parts and acceptance; with draws the features have noise."""
        _, seen_BL = self._forced(batch)
        features_RLC, target_BLV = self._taught(batch.labels, seen_BL)
        given, expected, target_BLV = features_RLC[:, :-1], features_RLC[:, 1:], target_BLV[:, 1:]
        if draws is not None and self.options.feature_noise:
            numbers = draws.numbers("feature noise")
            uniform = numbers.uniform(self.target.rows, *given.unflatten(0, (self.target.rows, -1)).shape[1:], axis=1)
            given = given + (2 * uniform.flatten(0, 1) - 1) * self.options.feature_noise
        estimated = network(self.teacher.tok_embeddings(seen_BL).repeat(self.target.rows, 1, 1), given)
        logits = self.teacher.next_logits(estimated)
        draft_BLV = guide(logits, self.target.guidance) if self.target.rows == 2 else logits
        regression = F.smooth_l1_loss(estimated, expected)
        choice = soft_cross_entropy(draft_BLV, target_BLV).mean()
        terms = {"feature_loss": regression.detach(), "choice_loss": choice.detach()}
        terms["acceptance"] = self._acceptance(draft_BLV, target_BLV)
        return regression + self.options.choice_weight * choice, terms

    def preview(self, network: nn.Module) -> None:
        """None: the head cannot sample an image without its target."""
