"""Trains MAR: hidden tokens are denoised given the visible ones, after the published recipe (arXiv 2406.11838).

Letters: B images, L tokens, N hidden ones, M copies of each, c channels of a token.
"""

from dataclasses import dataclass
from math import ceil
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from var_toolkit.heads.diffusion import STEPS, Diffusion, losses, noisy
from var_toolkit.models.mar import DEFAULT_ITERATIONS, MAR, MARConfig
from var_toolkit.registry import Sampling
from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws, derived, without_some
from var_toolkit.training.latent_objective import LatentObjective, LatentOptions
from var_toolkit.training.objectives import Loss, Phase
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from
from var_toolkit.training.var_objective import require_share, sum_of_factors_

RATIOS = NormalDist(1.0, 0.25)  # of hidden tokens, cut off below the smallest and above 1


@dataclass(frozen=True)
class MAROptions(LatentOptions):
    """Also how tokens are hidden and denoised."""

    mask_ratio_min: float = 0.7  # the smallest share of hidden tokens
    diffusion_copies: int = 4  # how often each hidden token is denoised, at steps of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(mask_ratio_min=self.mask_ratio_min)
        if self.diffusion_copies < 1:
            raise ValueError(f"diffusion_copies is {self.diffusion_copies}; it must be 1 or more")


def mask_ratio(uniform: float, smallest: float) -> float:
    """The share of hidden tokens that a uniform number means: normal, cut off at both ends."""
    low, high = RATIOS.cdf(smallest), RATIOS.cdf(1.0)
    return RATIOS.inv_cdf(low + uniform * (high - low))


def visible(tokens: int, ratio: float) -> int:
    """How many of some tokens are visible where a share of them is hidden, one or more."""
    return tokens - max(1, min(tokens, ceil(tokens * ratio)))


@objective("mar")
class MARObjective(LatentObjective):
    """Squared error of the head's prediction, and the bound from which its variance learns, of hidden tokens.

    One share of hidden tokens for the whole batch; latents are sampled from their posteriors. The published code
    denoises visible tokens, too, and gives them the weight 0; here they are left out.
    """

    options_type = MAROptions
    network: ClassVar[type[Any]] = MAR
    preview_head = Diffusion("ddpm", 50)
    not_decayed: ClassVar[tuple[str, ...]] = ("diffloss.",)
    log_note = "the loss soon changes little, while images go on to improve"

    @classmethod
    def config_type(cls) -> type:
        return MARConfig

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """A batch in which as many tokens are hidden as can be."""
        model, o = recipe.model, recipe.objective_options
        channels, tokens = model.latent_channels * model.patch_size**2, model.side**2
        order = torch.arange(tokens).expand(rows, -1)
        steps = torch.zeros(o.diffusion_copies, rows, tokens)
        data, states = torch.zeros(rows, tokens, channels), torch.zeros(*steps.shape, channels)
        return torch.zeros(rows, dtype=torch.long), data, order, 0, states, steps

    def set_factors_(self, network: MAR) -> None:
        """Initialise the classes as sums of their factors; the null class has a tensor of its own."""
        table = torch.cat((network.class_emb.weight.detach(), network.fake_latent.detach()))
        sum_of_factors_(table)
        network.class_emb.weight.data.copy_(table[:-1])

    def start(self, network: MAR) -> None:
        """Fill the network with the initial weights, if there are any, which must be of as many classes."""
        start_from(network, self.options.initial, same_classes=True)

    def sampling(self) -> Sampling:
        """The default settings of the model."""
        return Sampling(steps=min(DEFAULT_ITERATIONS, self.scales.total))

    def phases(self, step: int) -> list[Phase]:
        return [Phase(("mar",), self._loss)]

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        labels_B = without_some(batch.labels, draws, self.options.class_dropout, self.recipe.model.num_classes)
        with torch.no_grad(), torch.autocast(labels_B.device.type, enabled=False):
            moments = self._moments_of(batch)
            numbers = draws.numbers("noise")
            latent = self.tokenizer.latents(moments, numbers.normal(*moments.chunk(2, dim=1)[0].shape))
        share = float(torch.rand((), generator=draws.generator("mask ratio")))
        order_BL = numbers.uniform(len(latent), self.scales.total).argsort(dim=1)
        known, shape = self._known(share), (self.options.diffusion_copies, len(latent))
        steps = numbers.whole(STEPS, *shape, self.scales.total - known, axis=1)
        noise = numbers.normal(*steps.shape, self._channels, axis=1)
        total, terms = self._parts(self.networks["mar"], labels_B, latent, order_BL, known, steps, noise)
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    @property
    def _channels(self) -> int:
        return self.recipe.model.latent_channels * self.recipe.model.patch_size**2

    def _known(self, share: float) -> int:
        """How many tokens are visible, for a uniform number."""
        ratio = mask_ratio(share, self.options.mask_ratio_min)
        return visible(self.scales.total, ratio)

    def _parts(
        self,
        network: nn.Module,
        labels_B: Tensor,
        latent: Tensor,
        order_BL: Tensor,
        known: int,
        steps_MBN: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms by name."""
        config = self.recipe.model
        with torch.autocast(labels_B.device.type, enabled=False):
            data = self.pyramid.maps(latent)
            hidden = data.gather(1, order_BL[:, known:].unsqueeze(-1).expand(-1, -1, self._channels))
            clean = hidden.expand_as(noise)
            states = noisy("cosine", clean, noise, steps_MBN)
        output = network(labels_B, data, order_BL, known, states, steps_MBN)
        with torch.autocast(labels_B.device.type, enabled=False):
            error, bound = losses("cosine", config.prediction, output, clean, states, noise, steps_MBN)
            total = (error + bound).mean()
        return total, {"loss": total, "error": error.mean(), "bound": bound.mean()}

    def _judged(self, network: nn.Module, batch: Batch, number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(derived("validation", number))
        latent = self.tokenizer.latents(self._moments_of(batch))
        known = self._known(float(torch.rand((), generator=generator)))
        order = torch.rand(len(latent), self.scales.total, generator=generator).argsort(dim=1)
        steps = torch.randint(STEPS, (1, len(latent), self.scales.total - known), generator=generator)
        noise = torch.randn(*steps.shape, self._channels, generator=generator)
        parts: list[Any] = [part.to(latent.device) for part in (order, steps, noise)]
        return self._parts(network, batch.labels, latent, parts[0], known, *parts[1:])[1]
