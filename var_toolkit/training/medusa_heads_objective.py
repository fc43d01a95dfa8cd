"""Trains the draft heads of Medusa (arXiv 2401.10774) and Hydra (arXiv 2402.05109) for LlamaGen's GPT, under guidance.

Of Medusa it is the first of the two published ways, with a frozen target. Both papers learn from tokens; here the heads
learn the target's guided distributions, as those of Hydra++ learn its unguided ones.

Letters: B images, R rows (twice as many under guidance), L tokens, V vocabulary, C width, X what is known at a token.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from var_toolkit.core.filters import guide
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.models.medusa_heads import HydraHeads, MedusaHeads
from var_toolkit.training.acceptance import soft_cross_entropy
from var_toolkit.training.batches import Batch
from var_toolkit.training.distillation import DistillationObjective, DistillationOptions
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import NO_BLOCKS
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from
from var_toolkit.training.var_objective import require_equal


@dataclass(frozen=True, kw_only=True)
class MedusaHeadsOptions(DistillationOptions):
    """How much less each head weighs than the one before it, as published for Medusa."""

    decay: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay}; it must be above 0, and 1 at most")


@objective("medusa-heads")
class MedusaHeadsObjective(DistillationObjective):
    """Cross-entropy of every head with the target's distribution of the token that it drafts, from the true tokens.

    The log has the acceptance of each head; `acceptance` is their mean.
    """

    options_type = MedusaHeadsOptions
    network_type: ClassVar[Any] = MedusaHeads
    refused = NO_BLOCKS

    def _require_target(self, model: Any, teacher: RasterGPT) -> None:
        with torch.device("meta"):
            self.network_type(model).require_fit(teacher)
        if model.heads > teacher.config.tokens - 2:
            most = teacher.config.tokens - 2
            raise ValueError(f"model: heads is {model.heads}; an image of the teacher has tokens for {most} at most")

    def _require_fit(self, tokenizer: Any) -> None:
        require_equal(self.recipe.model, tokenizer, {"vocab_size": "vocab_size"})

    def _begin(self, network: Any) -> None:
        network.init_weights()
        start_from(network, self.options.initial)

    def _compared(self, network: nn.Module, batch: Batch, draws: Draws | None) -> tuple[Tensor, dict[str, Tensor]]:
        _, seen_BL = self._forced(batch)
        known_RLX, target_BLV = self._taught(batch.labels, seen_BL)
        embedded_RLC = self.teacher.tok_embeddings(seen_BL).repeat(self.target.rows, 1, 1)
        losses, accepted = [], []
        for head in range(self.recipe.model.heads):
            # The features at position i predicted token i; with tokens i to i + head they draft the one after these.
            known_RLX = torch.cat((known_RLX[:, :-1], embedded_RLC[:, head:]), dim=-1)
            logits = self.teacher.next_logits(network(known_RLX))
            draft_BLV = guide(logits, self.target.guidance) if self.target.rows == 2 else logits
            losses.append(soft_cross_entropy(draft_BLV, target_BLV[:, head + 1 :]).mean())
            accepted.append(self._acceptance(draft_BLV, target_BLV[:, head + 1 :]))
        loss = torch.stack([self.options.decay**head * one for head, one in enumerate(losses)]).sum()
        by_head = {f"acceptance_{head}": one for head, one in enumerate(accepted, start=1)}
        return loss, {"acceptance": torch.stack(accepted).mean(), **by_head}

    def preview(self, network: nn.Module) -> None:
        """None: heads cannot sample an image without their target."""


@objective("hydra-heads")
class HydraHeadsObjective(MedusaHeadsObjective):
    """The same for heads that read the tokens before theirs."""

    network_type = HydraHeads
