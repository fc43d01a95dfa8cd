"""Trains ACDiT (arXiv 2412.07720): all blocks of an image in one pass, each denoised given the clean ones before it.

Letters: B images, L tokens in block order, T blocks, c channels of a token.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from var_toolkit.heads.diffusion import STEPS, Diffusion, noisy, squared_error
from var_toolkit.heads.head import Head
from var_toolkit.models.acdit import ACDiT, ACDiTConfig
from var_toolkit.registry import Sampling
from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws, Numbers, derived, without_some
from var_toolkit.training.latent_objective import LatentObjective
from var_toolkit.training.objectives import Loss, Phase, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective


@objective("acdit")
class ACDiTObjective(LatentObjective):
    """Squared error of epsilon, or velocity, of every token; each block of each image has a step of its own.

    Latents are sampled from their posteriors.
    """

    network: ClassVar[type[Any]] = ACDiT
    preview_head: ClassVar[Head] = Diffusion("dpm++", 16)

    @classmethod
    def config_type(cls) -> type:
        return ACDiTConfig

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        self.order_L = cast(Any, self.networks[recipe.objective]).block_order(workplace.team.device)

    def sampling(self) -> Sampling:
        """The default settings of the model."""
        return Sampling(cfg=1.5, denoising_steps=25)

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Labels, clean and noisy tokens, and the step of each block."""
        size = recipe.model.block_side**2
        tokens = torch.zeros(rows, recipe.model.side**2, recipe.model.latent_channels * recipe.model.patch_size**2)
        steps = torch.zeros(rows, recipe.model.side**2 // size)
        return torch.zeros(rows, dtype=torch.long), tokens, tokens, steps

    def phases(self, step: int) -> list[Phase]:
        return [Phase((self.recipe.objective,), self._loss)]

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        labels_B = without_some(batch.labels, draws, self.options.class_dropout, self.recipe.model.num_classes)
        with torch.no_grad(), torch.autocast(labels_B.device.type, enabled=False):
            moments = self._moments_of(batch)
            numbers = draws.numbers("noise")
            latent = self.tokenizer.latents(moments, numbers.normal(*moments.chunk(2, dim=1)[0].shape))
        errors_BT = self._errors(self.networks[self.recipe.objective], labels_B, latent, numbers)
        total, terms = errors_BT.mean(), self._terms(errors_BT.detach())
        return Loss(total, terms)

    def _errors(self, network: nn.Module, labels_B: Tensor, latent: Tensor, numbers: Numbers) -> Tensor:
        """The mean squared error of every block, (B, T)."""
        size = self.recipe.model.block_side**2
        with torch.autocast(labels_B.device.type, enabled=False):
            clean = self.pyramid.maps(latent)[:, self.order_L]
            steps_BT = numbers.whole(STEPS, len(clean), clean.shape[1] // size)
            steps, noise = steps_BT.repeat_interleave(size, dim=1), numbers.normal(*clean.shape)
            states = noisy("linear", clean, noise, steps)
        found = network(labels_B, clean, states, steps_BT)
        with torch.autocast(labels_B.device.type, enabled=False):
            errors = squared_error("linear", self.recipe.model.prediction, found, clean, noise, steps)
        return errors.unflatten(1, (-1, size)).mean(dim=2)

    def _terms(self, errors_BT: Tensor) -> dict[str, Tensor]:
        """The loss, and the mean error of each block."""
        means = {f"error_block_{number}": each.mean() for number, each in enumerate(errors_BT.unbind(1))}
        return {"loss": errors_BT.mean(), **means}

    def _judged(self, network: nn.Module, batch: Batch, number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(derived("validation", number))
        latent = self.tokenizer.latents(self._moments_of(batch))
        return self._terms(self._errors(network, batch.labels, latent, Numbers(latent.device, generator)))
