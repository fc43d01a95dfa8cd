"""What objectives of continuous tokens share: an autoencoder, latents that are encoded once, previews.

Letters: B images, C channels of the latents.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.schedule import Schedule
from var_toolkit.data.folders import ClassFolders
from var_toolkit.heads.head import Head
from var_toolkit.loading import load_tokenizer
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling
from var_toolkit.tokenizers.kl import KLTokenizer
from var_toolkit.tokenizers.latent_pyramid import LatentPyramid
from var_toolkit.training.batches import Batch, MomentArray, Source
from var_toolkit.training.code_cache import CHUNK, STEP, Chunks, array_chunks, cached_moments
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
from var_toolkit.training.draws import derived
from var_toolkit.training.objectives import Objective, Workplace
from var_toolkit.training.recipe import FoldersData, Recipe, StillLifesData
from var_toolkit.training.reconstruction import images
from var_toolkit.training.starting_weights import start_from
from var_toolkit.training.var_objective import require_share, sum_of_factors_


@dataclass(frozen=True)
class LatentOptions:
    """Settings that are defaults in the published recipes, and the initial weights."""

    class_dropout: float = 0.1
    cache_latents: bool = False  # of folders: encode the centre of each image once, and with `flip` its mirror image
    initial: str | None = None  # directory of weights to start from
    class_embedding: Literal["table", "still-life-factors"] = "table"

    def __post_init__(self) -> None:
        require_share(class_dropout=self.class_dropout)


class LatentObjective(Objective):
    """A network on the latents of an AutoencoderKL."""

    options_type = LatentOptions
    network: ClassVar[type[Any]]
    preview_head: ClassVar[Head]
    not_decayed: ClassVar[tuple[str, ...]] = ()  # what names of further parameters without weight decay begin with

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        if recipe.tokenizer is None:
            raise ValueError(f"{where}: missing key 'tokenizer'; give the directory or hub id of an AutoencoderKL")
        if recipe.objective_options.class_embedding == "still-life-factors" and recipe.model.num_classes != 1000:
            raise ValueError(f"{where}: class_embedding still-life-factors needs num_classes 1000")
        if recipe.objective_options.cache_latents and isinstance(recipe.data, StillLifesData):
            raise ValueError(f"{where}: cache_latents is for folders; latents of still lifes are always cached")

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options = recipe, recipe.objective_options
        network = self.empty_network()
        self.scales: Schedule = network.scales
        self.tokenizer = self._tokenizer().to(workplace.team.device).requires_grad_(False)
        require_size(recipe.data, self.tokenizer.image_side)
        self.pyramid: LatentPyramid = self.tokenizer.pyramid
        network.init_weights()
        if self.options.class_embedding == "still-life-factors":
            self.set_factors_(network)
        self.start(network)
        self.networks = {recipe.objective: network.to(workplace.team.device)}
        self.record = nn.Module()
        self.source, self.held_out = self._data(workplace)

    def empty_network(self) -> Any:
        return self.network(self.recipe.model)

    def _tokenizer(self) -> KLTokenizer:
        found = load_tokenizer(str(self.recipe.tokenizer), device="cpu")
        if not isinstance(found, KLTokenizer):
            name = self.network.__name__
            raise ValueError(f"tokenizer: {self.recipe.tokenizer} has discrete tokens; {name} needs an AutoencoderKL")
        if found.channels != self.recipe.model.latent_channels:
            raise ValueError(
                f"model: latent_channels is {self.recipe.model.latent_channels}, but the tokenizer has {found.channels}"
            )
        model = self.recipe.model
        side, patch = getattr(model, "input_side", None), getattr(model, "patch_size", 1)
        last = getattr(self.network, "channel_last_patches", False)
        return KLTokenizer(found.autoencoder, self.scales, side, patch, channel_last=last)

    def set_factors_(self, network: Any) -> None:
        """Initialise the classes as sums of their factors; the null class is the last row."""
        sum_of_factors_(network.class_emb.weight)

    def start(self, network: Any) -> None:
        """Fill the network with the initial weights, if there are any."""
        start_from(network, self.options.initial)

    def sampling(self) -> Sampling:
        """The default settings of the model."""
        return Sampling()

    def save(self, network: Any, directory: Path) -> None:
        """Save a model directory, which includes the tokenizer."""
        Pipeline(self.tokenizer, network, self.sampling(), self.class_names).save_pretrained(directory)

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
        return source, HeldOut(validation, shares(len(validation), workplace.team, recipe.at_a_time))

    def _moments(self, workplace: Workplace, count: int, split: str) -> MomentArray:
        from var_toolkit.still_life.data_set import VERSION

        shown, labels = still_lifes(workplace, count, split)
        return self._stored(count, array_chunks(shown), workplace, f"still-lifes-v{VERSION}-{split}", labels)

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

        name, seed = f"folders-{folders.fingerprint}", derived(self.recipe.seed, "mirror")
        return self._stored(halves * count, chunks, workplace, name, folders.labels, seed)

    def _stored(
        self, count: int, chunks: Chunks, workplace: Workplace, name: str, labels: np.ndarray, seed: int = 0
    ) -> MomentArray:
        """The moments of images, which are computed once."""
        leads = workplace.team.leads
        found = cached_moments(self.tokenizer, count, chunks, workplace.cache_dir, name, progress=leads)
        return MomentArray(found, labels, workplace.team.device, seed)

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Biases and gains have no weight decay, as in the published code."""
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        exempt = {name for name, p in named if p.ndim == 1 or name.endswith(".bias")}
        exempt |= {name for name, _ in named if name.startswith(self.not_decayed)}
        return [
            {"params": [p for name, p in named if name not in exempt], "decay": True},
            {"params": [p for name, p in named if name in exempt], "decay": False},
        ]

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Losses over all held-out images, with the same random numbers at every call."""
        rows = [self._judged(network, batch, i) for i, batch in enumerate(self.held_out)]
        return {key: float(torch.stack([row[key] for row in rows]).mean()) for key in rows[0]} if rows else {}

    @abstractmethod
    def _judged(self, network: nn.Module, batch: Batch, number: int) -> dict[str, Tensor]:
        """The losses of a held-out batch, whose random numbers follow from its number."""

    def _moments_of(self, batch: Batch) -> Tensor:
        if batch.moments is not None:
            return batch.moments
        with torch.autocast(batch.labels.device.type, enabled=False):
            return torch.cat([self.tokenizer.moments(part) for part in images(batch).split(STEP)])

    def preview(self, network: Any) -> Tensor | None:
        """Sixteen images of evenly spaced classes, with the same noise at every call.

        None if the latents of an under-trained network are not finite, since that must not end the run.
        """
        run = run_of(self.tokenizer, network, guidance=1.5, head=self.preview_head)
        labels = torch.linspace(0, self.recipe.model.num_classes - 1, 16).round().long()
        device = next(self.tokenizer.parameters()).device
        try:
            latent = decode(run, labels.to(device), Noise(range(16), device)).latent
        except FloatingPointError:
            return None
        with torch.autocast(device.type, enabled=False):
            return self.tokenizer.decode(latent)
