"""A scorer of latents learns which images of a model come out right, from their coarse scales (after LSRS).

The model draws images of all classes; a classifier judges them; the scorer sees the latent after each of its scales and
predicts the judge's probability. LSRS has released no weights: its search is theirs, loss and network are ours.
Letters: B images, N images in all, L tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.bind import Run, run_of
from var_toolkit.guidance import weight
from var_toolkit.heads.categorical import Categorical
from var_toolkit.images import to_uint8
from var_toolkit.models.latent_scorer import LatentScorer, LatentScorerConfig
from var_toolkit.models.var import VAR
from var_toolkit.registry import Sampling
from var_toolkit.still_life.classifier import StillLifeClassifier
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.training.batches import Batch, TokenArray
from var_toolkit.training.code_cache import Stored, cached, hash_of
from var_toolkit.training.data_sources import HeldOut, require_still_life_classes, shares
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import NO_BLOCKS, Loss, Objective, Phase, Workplace
from var_toolkit.training.recipe import Recipe, SamplesData
from var_toolkit.training.registry import objective
from var_toolkit.training.sample_cache import cached_samples
from var_toolkit.training.starting_weights import network_from
from var_toolkit.training.var_objective import sum_of_factors_

AT_A_TIME = 128  # images that are decoded and judged together


@dataclass(frozen=True, kw_only=True)
class LatentScorerOptions:
    """The model whose images are scored, how it draws them, and what judges them."""

    teacher: str  # directory or name of a VAR
    judge: str = "stilllife-classifier"
    cfg: float = 1.5
    top_k: int = 900
    top_p: float = 0.96

    def __post_init__(self) -> None:
        Categorical(top_k=self.top_k, top_p=self.top_p)  # raises ValueError


class Judged(TokenArray):
    """Tokens of images, with the probability of their classes by a judge."""

    def __init__(self, tokens: np.ndarray, labels: np.ndarray, judged: np.ndarray, device: torch.device) -> None:
        super().__init__(tokens, labels, device)
        self.judged = judged

    def _batch(self, numbers: Tensor, places: Tensor, epoch: int) -> Batch:
        judged = torch.from_numpy(self.judged[places.numpy(), 0]).to(self.device)
        return super()._batch(numbers, places, epoch)._replace(judged=judged)


@objective("latent-scorer")
class LatentScorerObjective(Objective):
    """Binary cross-entropy with the judge's probability, the mean over the scales."""

    options_type = LatentScorerOptions
    data_kinds = ("samples",)
    refused = NO_BLOCKS
    log_note = (
        "order is the share of pairs of images that are scored in the order in which they are judged; "
        "0.5 is no better than guessing"
    )

    @classmethod
    def config_type(cls) -> type:
        return LatentScorerConfig

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        if recipe.tokenizer is None:
            raise ValueError(f"{where}: missing key 'tokenizer'; give the directory of the model's tokenizer")

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options, self.team = recipe, recipe.objective_options, workplace.team
        require_still_life_classes(recipe.model.num_classes)
        device, run = self.team.device, self.teacher_run()
        judge = network_from(self.options.judge, StillLifeClassifier, what="judge").to(device).requires_grad_(False)
        network = self.empty_network()
        sum_of_factors_(nn.init.normal_(network.class_emb.weight).data)
        self.networks = {"scorer": network.to(device)}
        self.record = nn.Module()
        self.pyramid = run.pyramid
        data = recipe.data
        assert isinstance(data, SamplesData)
        self.source = self._judged_samples(run, judge, data.count, "train", workplace.cache_dir)
        held_out = None
        if data.validation_count:
            held_out = self._judged_samples(run, judge, data.validation_count, "validation", workplace.cache_dir)
        parts = [] if held_out is None else shares(len(held_out), self.team, recipe.at_a_time)
        self.held_out = HeldOut(held_out, parts)

    def teacher_run(self) -> Run:
        """How the model draws. ValueError if the sizes of the scorer are not those of its latents."""
        o, device = self.options, self.team.device
        teacher = network_from(o.teacher, VAR, what="teacher").to(device).requires_grad_(False)
        tokenizer = network_from(str(self.recipe.tokenizer), MultiScaleVQ, what="tokenizer").to(device)
        model, schedule = self.recipe.model, tokenizer.scales
        sizes = {
            "latent_channels": tokenizer.channels,
            "side": schedule.finest,
            "num_classes": teacher.config.num_classes,
        }
        for name, wanted in sizes.items():
            if getattr(model, name) != wanted:
                raise ValueError(f"model: {name} is {getattr(model, name)}, but the teacher draws with {wanted}")
        if model.scales[-1] >= len(schedule) - 1:
            raise ValueError(f"model: scales is {list(model.scales)}; the last must be below {len(schedule) - 1}")
        guidance = weight({}, Sampling(cfg=o.cfg), teacher)
        return run_of(tokenizer.requires_grad_(False), teacher, guidance=guidance, head=Categorical(o.top_k, o.top_p))

    def _judged_samples(self, run: Run, judge: nn.Module, count: int, split: str, directory: Path) -> Judged:
        """Images of the model and what the judge says of them, computed once."""
        leads = self.team.leads
        tokens, labels = cached_samples(run, count, split, directory, progress=leads)
        known = hash_of({**run.tokenizer.state_dict(), **judge.state_dict()}, hash_of({"tokens": torch.tensor(tokens)}))
        stored = Stored(f"judged-{split}-{count}-{known}", (1,), np.float32, "judging")

        def judged(start: int) -> Iterator[Tensor]:
            for at in range(start, count, AT_A_TIME):
                maps = self._maps(torch.from_numpy(np.array(tokens[at : at + AT_A_TIME])).long(), len(run.schedule))
                yield _probability(run, judge, maps, torch.from_numpy(labels[at : at + AT_A_TIME])).cpu()[:, None]

        return Judged(tokens, labels, cached(stored, count, judged, directory, progress=leads), self.team.device)

    def _maps(self, tokens_BL: Tensor, count: int) -> list[Tensor]:
        """The first maps of some tokens."""
        lengths = self.pyramid.scales.lengths
        return list(tokens_BL.to(self.team.device).split(list(lengths), dim=1))[:count]

    def empty_network(self) -> LatentScorer:
        return LatentScorer(self.recipe.model)

    def phases(self, step: int) -> list[Phase]:
        return [Phase(("scorer",), self._loss)]

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        loss, terms = self._compared(self.networks["scorer"], batch)
        return Loss(loss, {"loss": loss.detach(), **terms})

    def _compared(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and how often each scale orders two images as the judge does."""
        assert batch.tokens is not None
        assert batch.judged is not None
        scales, losses, terms = self.recipe.model.scales, [], {}
        for scale, latent in enumerate(self._latents(batch.tokens, scales[-1] + 1)):
            if scale in scales:
                logits_B = network(latent, batch.labels, scale)
                losses.append(F.binary_cross_entropy_with_logits(logits_B, batch.judged))
                terms[f"order_{scale}"] = in_order(logits_B.detach(), batch.judged)
        return torch.stack(losses).mean(), terms

    @torch.no_grad()
    def _latents(self, tokens_BL: Tensor, count: int) -> Iterator[Tensor]:
        """The latents after the first scales, (B, C, h, w)."""
        latent = None
        for scale, tokens in enumerate(self._maps(tokens_BL, count)):
            latent = self.pyramid.grow(latent, self.pyramid.embed(tokens), scale)
            yield latent

    def validate(self, network: nn.Module) -> dict[str, float]:
        found = [self._compared(network, batch) for batch in self.held_out]
        every = [{"loss": loss, **terms} for loss, terms in found]
        return {name: float(torch.stack([one[name] for one in every]).mean()) for name in every[0]} if every else {}


def in_order(scores_B: Tensor, judged_B: Tensor) -> Tensor:
    """The share of pairs of images with different judgements whose scores have the same order; ties count as half."""
    apart_BB = judged_B[:, None] > judged_B
    right_BB = (scores_B[:, None] > scores_B) + 0.5 * (scores_B[:, None] == scores_B)
    return (right_BB * apart_BB).sum() / apart_BB.sum().clamp(min=1)


@torch.inference_mode()
def _probability(run: Run, judge: Any, maps: list[Tensor], labels_B: Tensor) -> Tensor:
    """The judge's probability of the classes of some images, given as all their token maps, (B,)."""
    pyramid, latent = run.pyramid, None
    for scale, tokens in enumerate(maps):
        latent = pyramid.grow(latent, pyramid.embed(tokens), scale)
    images = to_uint8((run.tokenizer.decode(latent) + 1) / 2) / 127.5 - 1
    found: Tensor = judge.probability(images, labels_B.to(images.device))
    return found
