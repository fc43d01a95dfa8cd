"""Trains HMAR's masked branch (arXiv 2506.04421): it predicts masked tokens of a scale from the visible ones.

Letters: B images, L tokens, M tokens of all scales but the first, c latent channels.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit.core.masked import current_input
from var_toolkit.heads.categorical import token_losses
from var_toolkit.methods.masked_passes import masked_passes
from var_toolkit.models.hmar import HMAR
from var_toolkit.registry import Sampling
from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws
from var_toolkit.training.hmar_objective import masked_parts
from var_toolkit.training.objectives import Loss, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from
from var_toolkit.training.var_objective import VarObjective, require_share

VALIDATION_SHARE = 0.5  # share of masked tokens in validation


@dataclass(frozen=True, kw_only=True)
class HmarMaskOptions:
    """The trained next-scale network, and whether visible tokens depend on masked ones.

    `clean` removes masked tokens also from the latent that the visible tokens show; the published training does not.
    """

    initial: str  # directory or name of an HMAR
    class_dropout: float = 0.1
    label_smoothing: float = 0.0
    clean: bool = False

    def __post_init__(self) -> None:
        require_share(class_dropout=self.class_dropout, label_smoothing=self.label_smoothing)


@objective("hmar-mask")
class HmarMaskObjective(VarObjective):
    """Mean cross-entropy of the masked tokens; only the masked branch is trained.

    Every step masks a share of each scale, uniform in (0, 1) and at least one token, at the same positions in the whole
    batch. The first scale is never masked.
    """

    options_type = HmarMaskOptions
    network_type = HMAR
    log_note = "loss and accuracy are of the masked tokens only, so they are not comparable with those of whole scales"

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        self.sampling = Sampling(refine="published", refine_clean=self.options.clean)

    def freeze(self, network: Any) -> None:
        """Leave all but the masked branch as it is."""
        network.requires_grad_(False)
        for part in masked_parts(network):
            part.requires_grad_(True)

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """What the branch reads, and which tokens are masked."""
        labels, inputs = super().example(recipe, rows)
        return labels, inputs, inputs, torch.ones(inputs.shape[:2], dtype=torch.bool)

    def _begin(self, network: Any) -> None:
        start_from(network, self.options.initial)

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        generator = draws.generator("mask")
        share = float(torch.rand((), generator=generator))
        losses_BM, right_BM = self._guessed(self.networks["var"], batch, self._labels(batch, draws), share, generator)
        loss = losses_BM.mean()
        return Loss(loss, {"loss": loss.detach(), "accuracy": right_BM.mean(), "masked_share": loss.new_tensor(share)})

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Loss and accuracy of a fixed half of the tokens, with the true labels."""
        generator = torch.Generator().manual_seed(0)
        losses_BM, right_BM = self._guessed(network, batch, batch.labels, VALIDATION_SHARE, generator)
        return {"loss": losses_BM.mean(), "accuracy": right_BM.mean()}

    def _guessed(
        self, network: nn.Module, batch: Batch, labels: Tensor, share: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Losses of the masked tokens and whether their argmax is correct, both (B, masked)."""
        tokens_BL, inputs_BLc = self._forced(batch)
        hidden_M = self._hidden(share, generator)
        # Indices are computed on the host, where the mask is: on the device this would synchronise.
        positions = (hidden_M.nonzero().squeeze(1) + self.scales.lengths[0]).to(tokens_BL.device)
        hidden_BM = hidden_M.to(tokens_BL.device).expand(len(tokens_BL), -1)
        logits_BLV = network(labels, inputs_BLc, self._current(tokens_BL, hidden_BM), hidden_BM)
        logits, truth = logits_BLV[:, positions], tokens_BL[:, positions]
        losses = token_losses(logits, truth, label_smoothing=self.options.label_smoothing if network.training else 0.0)
        return losses, (logits.detach().argmax(dim=2) == truth).float()

    def _hidden(self, share: float, generator: torch.Generator) -> Tensor:
        """Mask of the tokens after the first scale, bool (M): this share of each scale, rounded up."""
        parts = []
        for count in self.scales.lengths[1:]:
            hidden = torch.zeros(count, dtype=torch.bool)
            hidden[torch.randperm(count, generator=generator)[: max(1, ceil(share * count))]] = True
            parts.append(hidden)
        return torch.cat(parts)

    @torch.no_grad()
    def _current(self, tokens_BL: Tensor, hidden_BM: Tensor) -> Tensor:
        """Contribution of each scale after the first to the latent, downsampled to that scale, (B, M, c)."""
        first = self.scales.lengths[0]
        hidden = self.scales.split(nn.functional.pad(hidden_BM, (first, 0)))
        with torch.autocast(tokens_BL.device.type, enabled=False):
            parts = [
                current_input(self.tokenizer.quantize, k, tokens, hidden[k] if self.options.clean else None)
                for k, tokens in enumerate(self.scales.split(tokens_BL))
            ]
        return torch.cat(parts[1:], dim=1)

    def preview(self, network: nn.Module) -> Tensor:
        """Eight images with one pass per scale, and the same ones with masked passes."""
        masked = masked_passes("published", self.scales)
        refined = self._run(network, masked=masked, clean=self.options.clean)
        return torch.cat([self._drawn(run, 8) for run in (self._run(network), refined)])
