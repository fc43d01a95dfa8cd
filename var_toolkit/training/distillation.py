"""What all trained proposers of a next-token model share: the target as a frozen teacher, and samples of the target.

FastDraft's recipe (arXiv 2411.11055): the proposer trains on samples of the target, here with guidance and filters.
Letters: B images, R rows (2B under guidance, conditional rows first), L tokens, V vocabulary, C width.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from var_toolkit.core.bind import Run, run_of
from var_toolkit.core.filters import filter_top_k_top_p
from var_toolkit.formats.directory import save_network
from var_toolkit.formats.frequent_codes import write_frequent
from var_toolkit.guidance import weight
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.registry import Sampling
from var_toolkit.training.acceptance import acceptance, soft_cross_entropy, tvd_plus_plus
from var_toolkit.training.batches import Batch, Source, TokenArray
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import WHOLE_BATCH, Loss, Workplace
from var_toolkit.training.raster_gpt_objective import RasterGPTObjective
from var_toolkit.training.recipe import Recipe, SamplesData
from var_toolkit.training.sample_cache import cached_samples
from var_toolkit.training.starting_weights import network_from


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """The target, its sampling settings (`core.plan.Step`), and the initial weights."""

    teacher: str  # directory or name of a RasterGPT
    cfg: float = 2.0  # as LlamaGen counts: 1 is off
    top_k: int = 0
    top_p: float = 0.0
    initial: str | None = None  # directory of weights to start from


@dataclass(frozen=True, kw_only=True)
class MatchingOptions(DistillationOptions):
    """The loss between the distributions of proposer and target (`training.acceptance`)."""

    loss: Literal["cross-entropy", "tvd++"] = "cross-entropy"


class DistillationObjective(RasterGPTObjective):
    """A proposer learns the target's next-token distribution, on samples of the target or on a data set."""

    data_kinds: ClassVar[tuple[str, ...]] = (*RasterGPTObjective.data_kinds, "samples")
    log_note = (
        "acceptance is the probability that the target accepts a draft, and the value to watch; "
        "loss does not reach 0, because the target itself is uncertain"
    )

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        options = recipe.objective_options
        teacher = network_from(options.teacher, RasterGPT, what="teacher").to(workplace.team.device)
        self._require_target(recipe.model, teacher)  # first, because sampling the data may take hours
        self.teacher = teacher.eval().requires_grad_(False)
        head = replace(self.teacher.default_head, top_k=options.top_k, top_p=options.top_p)
        self.target = TokenSampling(self.teacher, head, weight({}, Sampling(cfg=options.cfg), teacher))
        super().__init__(recipe, workplace)

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """None: the loss goes through the target as well."""

    @abstractmethod
    def _require_target(self, model: Any, teacher: RasterGPT) -> None:
        """ValueError if the proposer cannot draft for this teacher."""

    @property
    def classes(self) -> int:
        return self.teacher.config.num_classes

    def target_run(self) -> Run:
        """How the target draws the samples."""
        return run_of(self.tokenizer, self.teacher, guidance=self.target.guidance, head=self.target.head)

    def _codes(self, workplace: Workplace, count: int, split: str) -> Source:
        if not isinstance(self.recipe.data, SamplesData):
            return super()._codes(workplace, count, split)
        team = workplace.team
        tokens, labels = cached_samples(self.target_run(), count, split, workplace.cache_dir, progress=team.leads)
        return TokenArray(tokens, labels, team.device)

    @torch.no_grad()
    def _taught(self, labels: Tensor, seen_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The target's features (R, L, C) and its guided and filtered logits (B, L, V), -inf where filtered."""
        if self.target.rows == 2:
            labels, seen_BL = torch.cat((labels, torch.full_like(labels, self.classes))), seen_BL.repeat(2, 1)
        features_RLC = self.teacher.next_hidden(self.teacher.prefix(labels), seen_BL)
        logits, positions = self.teacher.next_logits(features_RLC), torch.zeros_like(seen_BL[:1, :1])
        return features_RLC, self.target.choices(logits, positions)

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        loss, terms = self._compared(self.networks["var"], batch, draws)
        return Loss(loss, {"loss": loss.detach(), **terms})

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        loss, terms = self._compared(network, batch, None)
        return {"loss": loss, **terms}

    @abstractmethod
    def _compared(self, network: nn.Module, batch: Batch, draws: Draws | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what the log has of it, such as acceptance; without draws the same at every call."""

    def save(self, network: nn.Module, directory: Path) -> None:
        """Save the proposer, and the codes by how often it has learnt them (`methods.speculative.vocab_trim`)."""
        self._save(network, directory)
        if isinstance(self.source, TokenArray):
            counts = np.bincount(self.source.values.ravel(), minlength=self.recipe.model.vocab_size)
            write_frequent(directory, np.argsort(-counts, kind="stable").tolist())

    def _save(self, network: nn.Module, directory: Path) -> None:
        """Save a head alone."""
        save_network(network, directory)

    def _acceptance(self, draft_BLV: Tensor, target_BLV: Tensor) -> Tensor:
        """The mean acceptance probability of drafts that are sampled with the target's filters."""
        filtered = filter_top_k_top_p(draft_BLV.detach(), top_k=self.target.head.top_k, top_p=self.target.head.top_p)
        return acceptance(filtered, target_BLV).mean()


class MatchingObjective(DistillationObjective):
    """The proposer's conditional row learns the target's guided distribution.

    So a proposer needs no unconditional row, which halves the cost of a draft. `_drafted` gives its logits.
    """

    options_type = MatchingOptions

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        if recipe.objective_options.loss == "tvd++" and recipe.accumulate > 1:
            raise ValueError(f"{where}: loss tvd++ takes no accumulate: {WHOLE_BATCH['accumulate']}; remove it")

    @abstractmethod
    def _drafted(self, network: nn.Module, labels: Tensor, seen_BL: Tensor) -> Tensor:
        """The proposer's logits of every token, (B, L, V)."""

    def _compared(self, network: nn.Module, batch: Batch, draws: Draws | None) -> tuple[Tensor, dict[str, Tensor]]:
        _, seen_BL = self._forced(batch)
        _, target_BLV = self._taught(batch.labels, seen_BL)
        draft_BLV = self._drafted(network, batch.labels, seen_BL)
        if self.options.loss == "tvd++":
            loss = tvd_plus_plus(draft_BLV, target_BLV)
        else:
            loss = soft_cross_entropy(draft_BLV, target_BLV).mean()
        return loss, {"acceptance": self._acceptance(draft_BLV, target_BLV)}

    def _run(self, network: nn.Module, **settings: Any) -> Run:
        """Sampling from the proposer alone, without guidance."""
        return run_of(self.tokenizer, cast(RasterGPT, network), head=self.target.head, **settings)
