"""Trains Hi-MAR (arXiv 2505.20288): both phases in one step, after the paper, since the published code cannot train.

Letters: B images, P pivots, L tokens, N hidden ones, M copies of each, c channels of a token.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.diffusion import STEPS, Diffusion, losses, noisy, squared_error
from var_toolkit.models.himar import HiMAR, HiMARConfig, Masked
from var_toolkit.models.layers.masked_order import taken
from var_toolkit.registry import Sampling
from var_toolkit.tokenizers.kl import KLTokenizer
from var_toolkit.tokenizers.latent_pyramid import sequence
from var_toolkit.training.batches import Batch, MomentArray
from var_toolkit.training.code_cache import STEP, Chunks, cached_moments
from var_toolkit.training.draws import Draws, Numbers, derived, without_some
from var_toolkit.training.mar_objective import MARObjective, MAROptions, mask_ratio, visible
from var_toolkit.training.objectives import Loss, Phase, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.reconstruction import images
from var_toolkit.training.registry import objective
from var_toolkit.training.var_objective import require_share

WEIGHTS = (2.0, 0.75)  # of the losses of the phases, besides their shares of the tokens


@dataclass(frozen=True)
class HiMAROptions(MAROptions):
    """MAR's, and how many images pass the features of their pivots to phase 2; the others pass placeholders."""

    passed: float = 0.25  # the share of images at the end of the warm-up, which begins at 0
    passed_warmup: float = 0.125  # of the steps of the run: 100 of 800 epochs

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(passed=self.passed, passed_warmup=self.passed_warmup)


class SmallImages(KLTokenizer):
    """An autoencoder that reads images of any larger size, made smaller with bicubic interpolation."""

    def moments(self, images: Tensor) -> Tensor:
        """Unscaled mean and log variance of the posteriors of the smaller images, (B, 2C, h, w)."""
        size = (self.image_side, self.image_side)
        return super().moments(F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(-1, 1))


class Side(NamedTuple):
    """A phase of a step: what the network is asked, with the noise and the data of the states."""

    asked: Masked
    noise: Tensor
    clean: Tensor


@objective("himar")
class HiMARObjective(MARObjective):
    """MAR's loss of hidden pivots, and the squared error of the map head over the map, visible tokens counted as 0.

    Both phases have one share of hidden tokens for the whole batch: MAR's, and cos(pi u / 2). A map has one step of
    diffusion for all its tokens.
    """

    options_type = HiMAROptions
    network = HiMAR
    preview_head, not_decayed = Diffusion("dpm++", 16), ("diffloss.", "cond_diffloss.")

    @classmethod
    def config_type(cls) -> type:
        return HiMARConfig

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        self.steps = recipe.total_steps(len(self.source))

    def _tokenizer(self) -> KLTokenizer:
        found = super()._tokenizer()
        self.small = SmallImages(found.autoencoder, Schedule((self.recipe.model.pivot_side,)))
        return found

    def sampling(self) -> Sampling:
        """The default settings of the model."""
        return Sampling(steps=4)

    def _stored(
        self, count: int, chunks: Chunks, workplace: Workplace, name: str, labels: np.ndarray, seed: int = 0
    ) -> MomentArray:
        """The moments of images and of small ones."""
        found, leads = super()._stored(count, chunks, workplace, name, labels, seed), workplace.team.leads
        small = cached_moments(self.small, count, chunks, workplace.cache_dir, f"{name}-bicubic", progress=leads)
        return MomentArray(found.values, labels, found.device, seed, small)

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Both phases with as many hidden tokens as can be."""
        channels, copies, sides = recipe.model.latent_channels, recipe.objective_options.diffusion_copies, []
        for number, side in enumerate((recipe.model.pivot_side, recipe.model.side)):
            data, order = torch.zeros(rows, side**2, channels), torch.arange(side**2).expand(rows, -1)
            steps = torch.zeros(copies, rows, 1 if number else side**2)
            sides.append(Masked(data, order, 0, torch.zeros(copies, *data.shape), steps))
        return torch.zeros(rows, dtype=torch.long), *sides, torch.ones(rows, dtype=torch.bool)

    def phases(self, step: int) -> list[Phase]:
        return [Phase(("himar",), self._loss)]

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        labels_B = without_some(batch.labels, draws, self.options.class_dropout, self.recipe.model.num_classes)
        numbers, shares = draws.numbers("noise"), torch.rand(2, generator=draws.generator("mask ratio")).tolist()
        pivots, tokens = self._sides(batch, shares, self.options.diffusion_copies, numbers, sampled=True)
        passed_B = draws.per_image("passed features") < self._passed(draws.step)
        total, terms = self._both(self.networks["himar"], labels_B, pivots, tokens, passed_B)
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    def _passed(self, step: int) -> float:
        """The share of images whose pivots pass their features, at a step."""
        warmup = self.options.passed_warmup * self.steps
        return self.options.passed * min(1.0, step / warmup if warmup else 1.0)

    def _sides(
        self, batch: Batch, shares: list[float], copies: int, numbers: Numbers, *, sampled: bool
    ) -> tuple[Side, Side]:
        """Masks and noisy states; latents are sampled from their posteriors, or the means of these."""
        with torch.no_grad(), torch.autocast(numbers.device.type, enabled=False):
            data = []
            for moments in (self._small_moments_of(batch), self._moments_of(batch)):
                noise = numbers.normal(*moments.chunk(2, dim=1)[0].shape) if sampled else None
                data.append(sequence(self.tokenizer.latents(moments, noise)))
            ratios = mask_ratio(shares[0], self.options.mask_ratio_min), cos(pi / 2 * shares[1])
            known = [visible(each.shape[1], ratio) for each, ratio in zip(data, ratios, strict=True)]
            pivots = self._side(data[0], known[0], copies, numbers, whole=False)
            return pivots, self._side(data[1], known[1], copies, numbers, whole=True)

    def _small_moments_of(self, batch: Batch) -> Tensor:
        if batch.small_moments is not None:
            return batch.small_moments
        return torch.cat([self.small.moments(part) for part in images(batch).split(STEP)])

    def _side(self, data_BLc: Tensor, known: int, copies: int, numbers: Numbers, *, whole: bool) -> Side:
        """A phase, with states of the whole map or of hidden tokens."""
        order_BL = numbers.uniform(*data_BLc.shape[:2]).argsort(dim=1)
        one = data_BLc if whole else taken(data_BLc, order_BL[:, known:])
        steps = numbers.whole(STEPS, copies, len(one), 1 if whole else one.shape[1], axis=1)
        noise = numbers.normal(copies, *one.shape, axis=1)
        clean = one.expand_as(noise)
        return Side(Masked(data_BLc, order_BL, known, noisy("cosine", clean, noise, steps), steps), noise, clean)

    def _both(
        self, network: nn.Module, labels_B: Tensor, pivots: Side, tokens: Side, passed_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms by name."""
        first, second = network(labels_B, pivots.asked, tokens.asked, passed_B)
        prediction, counts = self.recipe.model.prediction, self.scales.lengths
        with torch.autocast(labels_B.device.type, enabled=False):
            (_, _, _, states, steps), noise, clean = pivots
            error, bound = losses("cosine", prediction, first, clean, states, noise, steps)
            of_map = squared_error("cosine", prediction, second, tokens.clean, tokens.noise, tokens.asked.steps)
            hidden = tokens.asked.order_BL[:, tokens.asked.known :].expand(len(of_map), -1, -1)
            of_hidden = of_map.gather(2, hidden)
            parts = (error + bound).mean(), of_hidden.sum() / of_map.numel()
            weights = [weight * count / sum(counts) for weight, count in zip(WEIGHTS, counts, strict=True)]
            total = weights[0] * parts[0] + weights[1] * parts[1]
        terms = {"error_pivots": error.mean(), "bound_pivots": bound.mean(), "error_map": of_hidden.mean()}
        return total, {"loss": total, **terms}

    def _judged(self, network: nn.Module, batch: Batch, number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(derived("validation", number))
        numbers, shares = Numbers(batch.labels.device, generator), torch.rand(2, generator=generator).tolist()
        pivots, tokens = self._sides(batch, shares, 1, numbers, sampled=False)
        passed_B = torch.ones_like(batch.labels, dtype=torch.bool)  # as in sampling
        return self._both(network, batch.labels, pivots, tokens, passed_B)[1]
