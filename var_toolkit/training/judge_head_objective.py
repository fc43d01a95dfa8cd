"""Trains the judge of Judge Decoding (arXiv 2501.19309) for LlamaGen's GPT.

Published is a linear head on frozen features that learns from some 30,000 labelled tokens of answers in words. What a
right token of an image is the paper leaves open. Our choice: the image's own token and the codes nearest to it, as the
tokenizer sees them; drafts are the target's own draws from the tokens before, under guidance.

Letters: B images, L tokens, V vocabulary, C width, k codes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.filters import pick
from var_toolkit.formats.directory import save_network
from var_toolkit.methods.speculative.lantern import neighbours
from var_toolkit.models.judge_head import JudgeHead
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.training.batches import Batch
from var_toolkit.training.distillation import DistillationObjective, DistillationOptions
from var_toolkit.training.draws import Draws, Numbers, derived
from var_toolkit.training.objectives import NO_BLOCKS, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from
from var_toolkit.training.var_objective import require_equal


@dataclass(frozen=True, kw_only=True)
class JudgeHeadOptions(DistillationOptions):
    """The share of an image's tokens that drafts replace, and how many codes besides a token are as right."""

    replaced: float = 0.5
    near: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.replaced <= 1:
            raise ValueError(f"replaced is {self.replaced}; it must be above 0, and 1 at most")
        if self.near < 0:
            raise ValueError(f"near is {self.near}; it must be 0 or more")


@objective("judge-head")
class JudgeHeadObjective(DistillationObjective):
    """Cross-entropy of right and wrong, over the drafts that replace some tokens of images.

    The other tokens are all right, and would teach the judge to accept everything.
    """

    options_type = JudgeHeadOptions
    network_type = JudgeHead
    refused = NO_BLOCKS
    log_note = "right_accepted and wrong_accepted are the shares of right and of wrong drafts that the judge accepts"

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        codes_VC = self.tokenizer.pyramid.codebook().detach()
        near = self.options.near
        self.right_Vk = torch.arange(len(codes_VC), device=codes_VC.device).unsqueeze(1)
        if near:
            self.right_Vk = torch.cat((self.right_Vk, neighbours(codes_VC, near)), dim=1)  # raises ValueError

    def _require_target(self, model: Any, teacher: RasterGPT) -> None:
        ours, theirs = model.embed_dim, teacher.config.embed_dim
        if ours != theirs:
            raise ValueError(f"model: embed_dim is {ours}, but the teacher has {theirs}; they must be equal")

    def _require_fit(self, tokenizer: Any) -> None:
        require_equal(self.teacher.config, tokenizer, {"vocab_size": "vocab_size"})

    def _begin(self, network: Any) -> None:
        nn.init.zeros_(network.linear.weight)
        nn.init.zeros_(network.linear.bias)
        start_from(network, self.options.initial)

    def _compared(self, network: nn.Module, batch: Batch, draws: Draws | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what is accepted; without draws of the same drafts every time."""
        fixed = Numbers(batch.labels.device, torch.Generator().manual_seed(derived("validation")))
        numbers = fixed if draws is None else draws.numbers("drafts")
        features_BLC, right_BL, drafted_BL = self._examples(batch, numbers)
        odds_BL = network(features_BLC)
        losses_BL = F.binary_cross_entropy_with_logits(odds_BL, right_BL.float(), reduction="none")
        loss = (losses_BL * drafted_BL).mean() / self.options.replaced  # whose expectation is the mean over drafts
        accepted_BL = (odds_BL.detach() > 0).float()
        terms = {
            f"{name}_accepted": (accepted_BL * of).sum() / of.sum().clamp(min=1)
            for name, of in (("right", drafted_BL & right_BL), ("wrong", drafted_BL & ~right_BL))
        }
        return loss, terms

    @torch.no_grad()
    def _examples(self, batch: Batch, numbers: Numbers) -> tuple[Tensor, Tensor, Tensor]:
        """Features at the tokens of images, but the last; which tokens are right, and which are drafts."""
        tokens_BL, seen_BL = self._forced(batch)
        target_BLV = self._taught(batch.labels, seen_BL)[1]
        uniform = numbers.uniform(2, *tokens_BL.shape, axis=1)
        drafts_BL = pick(self.target.head.probabilities(target_BLV), uniform[0])
        drafted_BL = uniform[1] < self.options.replaced
        mixed_BL = torch.where(drafted_BL, drafts_BL, tokens_BL)[:, :-1]
        right_BL = (self.right_Vk[seen_BL] == mixed_BL.unsqueeze(-1)).any(-1)
        features_BLC = self.teacher.next_hidden(self.teacher.prefix(batch.labels), mixed_BL)[:, 1:]
        return features_BLC, right_BL, drafted_BL[:, :-1]

    def preview(self, network: nn.Module) -> None:
        """None: a judge draws nothing."""

    def save(self, network: nn.Module, directory: Path) -> None:
        """Save only the judge."""
        save_network(network, directory)
