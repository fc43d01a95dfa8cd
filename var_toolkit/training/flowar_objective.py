"""Trains FlowAR by flow matching on every scale, after the published recipe (arXiv 2412.15205 and its release).

Letters: B images, L tokens, K scales, C channels of the latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.schedule import Schedule
from var_toolkit.data.folders import ClassFolders
from var_toolkit.heads.flow import Flow
from var_toolkit.loading import load_tokenizer
from var_toolkit.models.flowar import FlowAR, FlowARConfig
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling
from var_toolkit.tokenizers.kl import KLTokenizer
from var_toolkit.tokenizers.latent_pyramid import LatentPyramid
from var_toolkit.training.batches import Batch, MomentArray, Source
from var_toolkit.training.code_cache import CHUNK, STEP, array_chunks, cached_moments
from var_toolkit.training.data_sources import (
    FileImages,
    HeldOut,
    class_names_of,
    images_of,
    require_size,
    require_still_life_classes,
    shares,
    still_lifes,
)
from var_toolkit.training.draws import Draws, derived, without_some
from var_toolkit.training.objectives import Loss, Objective, Phase, Workplace
from var_toolkit.training.recipe import FoldersData, Recipe, StillLifesData
from var_toolkit.training.reconstruction import images
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from
from var_toolkit.training.var_objective import require_share, sum_of_factors_

PREVIEW: dict[str, Any] = {"guidance": 1.5, "head": Flow()}


@dataclass(frozen=True)
class FlowAROptions:
    """Settings that are defaults in the published recipe, and the initial weights."""

    class_dropout: float = 0.1
    cache_latents: bool = False  # of folders: encode the centre of each image once, and with `flip` its mirror image
    initial: str | None = None  # directory of weights to start from
    class_embedding: Literal["table", "still-life-factors"] = "table"

    def __post_init__(self) -> None:
        require_share(class_dropout=self.class_dropout)


@objective("flowar")
class FlowARObjective(Objective):
    """Mean squared error of the velocity; each scale is weighted by its number of tokens relative to the last scale.

    Each scale of each image has its own time, uniform in [0, 1]; latents are sampled from their posteriors.
    """

    options_type = FlowAROptions
    log_note = "the loss of a scale that is noise for the network is its weight, tokens over those of the last scale"

    @classmethod
    def config_type(cls) -> type:
        return FlowARConfig

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        if recipe.tokenizer is None:
            raise ValueError(f"{where}: missing key 'tokenizer'; give the directory or hub id of an AutoencoderKL")
        if len(recipe.model.patch_nums) < 2:
            raise ValueError(
                f"{where}: patch_nums is {list(recipe.model.patch_nums)}; training needs at least two scales"
            )
        if recipe.objective_options.class_embedding == "still-life-factors" and recipe.model.num_classes != 1000:
            raise ValueError(f"{where}: class_embedding still-life-factors needs num_classes 1000")
        if recipe.objective_options.cache_latents and isinstance(recipe.data, StillLifesData):
            raise ValueError(f"{where}: cache_latents is for folders; latents of still lifes are always cached")

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options = recipe, recipe.objective_options
        self.scales = Schedule(recipe.model.patch_nums)
        self.tokenizer = self._tokenizer().to(workplace.team.device).requires_grad_(False)
        require_size(recipe.data, self.tokenizer.image_side)
        self.pyramid: LatentPyramid = self.tokenizer.pyramid
        network = self.empty_network()
        network.init_weights()
        if self.options.class_embedding == "still-life-factors":
            sum_of_factors_(network.class_emb.weight)
        start_from(network, self.options.initial)
        self.networks = {"flowar": network.to(workplace.team.device)}
        self.record = nn.Module()
        self.source, self.held_out = self._data(workplace)

    def _tokenizer(self) -> KLTokenizer:
        found = load_tokenizer(str(self.recipe.tokenizer), device="cpu")
        if not isinstance(found, KLTokenizer):
            raise ValueError(f"tokenizer: {self.recipe.tokenizer} has discrete tokens; FlowAR needs an AutoencoderKL")
        if found.channels != self.recipe.model.latent_channels:
            raise ValueError(
                f"model: latent_channels is {self.recipe.model.latent_channels}, but the tokenizer has {found.channels}"
            )
        return KLTokenizer(found.autoencoder, self.scales, self.recipe.model.input_side)

    def empty_network(self) -> FlowAR:
        return FlowAR(self.recipe.model)

    def save(self, network: Any, directory: Path) -> None:
        """Save a model directory, which includes the tokenizer."""
        Pipeline(self.tokenizer, network, Sampling(), self.class_names).save_pretrained(directory)

    def _data(self, workplace: Workplace) -> tuple[Source, HeldOut]:
        recipe, data = self.recipe, self.recipe.data
        if isinstance(data, FoldersData):
            source, held_out = images_of(recipe, workplace, recipe.model.num_classes)
            self.class_names = class_names_of(data, source)
            return (self._folder_moments(data, workplace) if self.options.cache_latents else source), held_out
        assert isinstance(data, StillLifesData)
        require_still_life_classes(recipe.model.num_classes)
        source = self._moments(workplace, data.count, "train")
        self.class_names = class_names_of(data, source)
        if not data.validation_count:
            return source, HeldOut(None, [])
        validation = self._moments(workplace, data.validation_count, "validation")
        return source, HeldOut(validation, shares(len(validation), workplace.team, recipe.batch_size))

    def _moments(self, workplace: Workplace, count: int, split: str) -> MomentArray:
        from var_toolkit.still_life.data_set import VERSION

        shown, labels = still_lifes(workplace, count, split)
        name, leads = f"still-lifes-v{VERSION}-{split}", workplace.team.leads
        chunks = array_chunks(shown)
        found = cached_moments(self.tokenizer, count, chunks, workplace.cache_dir, name, progress=leads)
        return MomentArray(found, labels, workplace.team.device)

    def _folder_moments(self, data: FoldersData, workplace: Workplace) -> MomentArray:
        """Moments of the centre crops of all images, then of their mirror images if `flip` is set."""
        skip = workplace.skip_damaged
        folders = ClassFolders(data.root, data.size, train=False, skip_damaged=skip)
        centres = FileImages(folders, data.workers, torch.device("cpu"))
        count, halves = len(centres), 1 + data.flip

        def chunks(start: int) -> Iterator[Tensor]:
            for mirrored in (False, True)[:halves]:
                first = start - count * mirrored
                if first < count:
                    for part in centres.in_order(max(first, 0), CHUNK):
                        yield part.flip(-1) if mirrored else part

        name, leads = f"folders-{folders.fingerprint}", workplace.team.leads
        found = cached_moments(self.tokenizer, halves * count, chunks, workplace.cache_dir, name, progress=leads)
        return MomentArray(found, folders.labels, workplace.team.device, derived(self.recipe.seed, "mirror"))

    def phases(self, step: int) -> list[Phase]:
        return [Phase(("flowar",), self._loss)]

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Biases and gains have no weight decay, as in the published code."""
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        exempt = [p for name, p in named if p.ndim == 1 or name.endswith(".bias")]
        decayed = [p for name, p in named if not (p.ndim == 1 or name.endswith(".bias"))]
        return [{"params": decayed, "decay": True}, {"params": exempt, "decay": False}]

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        labels_B = without_some(batch.labels, draws, self.options.class_dropout, self.recipe.model.num_classes)
        with torch.no_grad(), torch.autocast(labels_B.device.type, enabled=False):
            moments = self._moments_of(batch)
            latent = self.tokenizer.latents(moments, torch.randn_like(moments.chunk(2, dim=1)[0]))
            noise = torch.randn_like(self.pyramid.maps(latent))
        times_BK = torch.stack([draws.per_image(f"time of scale {k}") for k in range(len(self.scales))], dim=1)
        errors_BL = self._errors(self.networks["flowar"], labels_B, latent, noise, times_BK)
        total, terms = self._weighted(errors_BL)
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    def _moments_of(self, batch: Batch) -> Tensor:
        if batch.moments is not None:
            return batch.moments
        with torch.autocast(batch.labels.device.type, enabled=False):
            return torch.cat([self.tokenizer.moments(part) for part in images(batch).split(STEP)])

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

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Losses over all held-out images, with the same noise and times at every call."""
        rows = [self._judged(network, batch, i) for i, batch in enumerate(self.held_out)]
        return {key: float(torch.stack([row[key] for row in rows]).mean()) for key in rows[0]} if rows else {}

    def _judged(self, network: nn.Module, batch: Batch, number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(derived("validation", number))
        latent = self.tokenizer.latents(self._moments_of(batch))
        shape = (len(latent), self.scales.total, self.tokenizer.channels)
        noise = torch.randn(shape, generator=generator).to(latent.device)
        times = torch.rand(len(latent), len(self.scales), generator=generator).to(latent.device)
        return self._weighted(self._errors(network, batch.labels, latent, noise, times))[1]

    def preview(self, network: Any) -> Tensor | None:
        """Sixteen images of evenly spaced classes, with the same noise at every call.

        None if the latents of an under-trained network are not finite, since that must not end the run.
        """
        run = run_of(self.tokenizer, network, **PREVIEW)
        labels = torch.linspace(0, self.recipe.model.num_classes - 1, 16).round().long()
        device = next(self.tokenizer.parameters()).device
        try:
            latent = decode(run, labels.to(device), Noise(range(16), device)).latent
        except FloatingPointError:
            return None
        with torch.autocast(device.type, enabled=False):
            return self.tokenizer.decode(latent)
