"""Trains FlowAR by flow matching on every scale, after the published recipe (arXiv 2412.15205 and its release).

Letters: B images, L tokens, K scales, C channels of the latents.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.flow import Flow
from var_toolkit.models.flowar import FlowAR, FlowARConfig
from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws, derived, without_some
from var_toolkit.training.latent_objective import LatentObjective
from var_toolkit.training.objectives import Loss, Phase
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective


@objective("flowar")
class FlowARObjective(LatentObjective):
    """Mean squared error of the velocity; each scale is weighted by its number of tokens relative to the last scale.

    Each scale of each image has its own time, uniform in [0, 1]; latents are sampled from their posteriors.
    """

    network: ClassVar[type[Any]] = FlowAR
    preview_head = Flow()
    log_note = "the loss of a scale that is noise for the network is its weight, tokens over those of the last scale"

    @classmethod
    def config_type(cls) -> type:
        return FlowARConfig

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        if len(recipe.model.patch_nums) < 2:
            raise ValueError(
                f"{where}: patch_nums is {list(recipe.model.patch_nums)}; training needs at least two scales"
            )

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Labels, inputs of the scales after the first, noisy maps and the time of each scale."""
        scales = Schedule(recipe.model.patch_nums)
        noisy = torch.zeros(rows, scales.total, recipe.model.latent_channels)
        inputs = noisy[:, scales.lengths[0] :]
        return torch.zeros(rows, dtype=torch.long), inputs, noisy, torch.zeros(rows, len(scales))

    def phases(self, step: int) -> list[Phase]:
        return [Phase((self.recipe.objective,), self._loss)]

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        labels_B = without_some(batch.labels, draws, self.options.class_dropout, self.recipe.model.num_classes)
        with torch.no_grad(), torch.autocast(labels_B.device.type, enabled=False):
            moments = self._moments_of(batch)
            numbers = draws.numbers("noise")
            latent = self.tokenizer.latents(moments, numbers.normal(*moments.chunk(2, dim=1)[0].shape))
            noise = numbers.normal(*self.pyramid.maps(latent).shape)
        times_BK = torch.stack([draws.per_image(f"time of scale {k}") for k in range(len(self.scales))], dim=1)
        errors_BL = self._errors(self.networks[self.recipe.objective], labels_B, latent, noise, times_BK)
        total, terms = self._weighted(errors_BL)
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    def _errors(
        self, network: nn.Module, labels_B: Tensor, latent: Tensor, noise_BLC: Tensor, times_BK: Tensor
    ) -> Tensor:
        """Mean squared error of the velocity of every token, (B, L)."""
        with torch.autocast(labels_B.device.type, enabled=False):
            data, inputs = self.pyramid.maps(latent), self.pyramid.teacher_inputs(latent)
            time = times_BK[:, self.scales.level_ids().to(times_BK.device)].unsqueeze(-1)
            noisy = (1 - time) * data + time * noise_BLC
        velocity = network(labels_B, inputs, noisy, times_BK)
        return (velocity - (noise_BLC - data)).square().mean(dim=-1)

    def _weighted(self, errors_BL: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the mean error of each scale."""
        means = [part.mean() for part in self.scales.split(errors_BL)]
        weights = [length / self.scales.lengths[-1] for length in self.scales.lengths]
        total = torch.stack([weight * mean for weight, mean in zip(weights, means, strict=True)]).sum()
        return total, {"loss": total, **{f"error_scale_{k}": mean for k, mean in enumerate(means)}}

    def _judged(self, network: nn.Module, batch: Batch, number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(derived("validation", number))
        latent = self.tokenizer.latents(self._moments_of(batch))
        shape = (len(latent), self.scales.total, self.tokenizer.channels)
        noise = torch.randn(shape, generator=generator).to(latent.device)
        times = torch.rand(len(latent), len(self.scales), generator=generator).to(latent.device)
        return self._weighted(self._errors(network, batch.labels, latent, noise, times))[1]
