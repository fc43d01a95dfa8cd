"""Trains a continuous tokenizer, an AutoencoderKL of diffusers (arXiv 2112.10752, appendix G)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit.formats.directory import save_network
from var_toolkit.tokenizers.kl import KLConfig, KLTokenizer
from var_toolkit.training.data_sources import images_of, require_size
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.reconstruction import ReconstructionObjective, ReconstructionOptions, images
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from

MEASURED = 512  # number of images that determine the scaling factor


@dataclass(frozen=True)
class KLOptions(ReconstructionOptions):
    """The weight of the KL divergence from a standard normal, in nats per value of the image."""

    kl: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("kl")


@objective("kl")
class KLObjective(ReconstructionObjective):
    """Reconstruction from a sample of the posterior, with a weak pull towards a standard normal.

    The saved model has the scaling factor that gives latents of training images a standard deviation of 1.
    """

    name = "autoencoder"
    options_type = KLOptions
    options: KLOptions
    autoencoder: KLTokenizer

    @classmethod
    def config_type(cls) -> type:
        return KLConfig

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options = recipe, recipe.objective_options
        tokenizer = self.empty_network().to(workplace.team.device)
        require_size(recipe.data, tokenizer.image_side)
        start_from(tokenizer.autoencoder, self.options.initial)
        self.device = workplace.team.device
        self._open(tokenizer, workplace)
        self.record = nn.Module()
        self.source, self.held_out = images_of(recipe, workplace, flat=True)

    def empty_network(self) -> KLTokenizer:
        return KLTokenizer(self.recipe.model.build())

    def _reconstructed(self, real: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        result = self.networks["autoencoder"](real)
        kl = result.kl.float().mean()
        return result.images, self.options.kl * kl / real[0].numel(), {"kl": kl}

    def _last_weight(self) -> Tensor:
        return self.autoencoder.autoencoder.decoder.conv_out.weight

    def save(self, network: Any, directory: Path) -> None:
        """Save a directory that diffusers can read as well."""
        network.autoencoder.register_to_config(scaling_factor=round(1 / self._spread(network.to(self.device)), 5))
        save_network(network.autoencoder, directory)

    @torch.no_grad()
    def _spread(self, network: KLTokenizer) -> float:
        """Standard deviation of posterior samples over images that are spread over the whole data set."""
        rows = torch.linspace(0, len(self.source) - 1, min(MEASURED, len(self.source))).long().split(32)
        moments = torch.cat([network.moments(images(batch)).cpu() for batch in self.source.batches(rows, 0)])
        means, log_variances = moments.double().chunk(2, dim=1)
        return float((means.var() + log_variances.exp().mean()).sqrt())  # variance of the means plus mean variance
