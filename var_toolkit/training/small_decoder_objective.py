"""Trains a small decoder to make of latents what the decoder of a tokenizer makes of them (after TAESD)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.loading import load_tokenizer
from var_toolkit.tokenizers.small_decoder import SmallDecoder, SmallDecoderConfig, latents_of, marks_of
from var_toolkit.training.batches import Batch, FeatureArray, ImageArray, Source
from var_toolkit.training.code_cache import Stored, array_chunks, cached, codes_of, hash_of
from var_toolkit.training.data_sources import images_of, require_size
from var_toolkit.training.delivery import portable
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.reconstruction import ReconstructionObjective, ReconstructionOptions, images
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from


@objective("small-decoder")
class SmallDecoderObjective(ReconstructionObjective):
    """Distillation: the tokenizer encodes images, both decoders read the latents, and the large one is the model.

    The latents are those of the tokenizer's own codes, as a transformer draws them.
    """

    name = "decoder"
    options_type = ReconstructionOptions
    log_note = "psnr is against the images of the tokenizer's own decoder"

    @classmethod
    def config_type(cls) -> type:
        return SmallDecoderConfig

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        if recipe.tokenizer is None:
            raise ValueError(f"{where}: missing key 'tokenizer'; give the name or the directory of one to distil")

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options, device = recipe, recipe.objective_options, workplace.team.device
        self.tokenizer = load_tokenizer(str(recipe.tokenizer), device="cpu")
        if not getattr(self.tokenizer, "spatial", True):
            raise ValueError(f"tokenizer: {type(self.tokenizer).__name__} has no map of latents, which is decoded here")
        require_size(recipe.data, self.tokenizer.image_side)
        found = latents_of(self.tokenizer.channels, self.tokenizer.latent_pixels)
        if recipe.model.latents != found:
            raise ValueError(
                f"model: latent_channels and widths are for {recipe.model.latents}, but the tokenizer has {found}"
            )
        decoder = self.empty_network()
        start_from(decoder, self.options.initial)
        self.tokenizer.place(device).requires_grad_(False)
        self._open(decoder.to(device), workplace)
        self.record = nn.Module()
        source, self.held_out = images_of(recipe, workplace, flat=True)
        self.source = self._stored(source, workplace)

    @classmethod
    def outline(cls, recipe: Recipe) -> dict[str, nn.Module]:
        """The decoder, whose size the tokenizer does not change, and the discriminator if there is one."""
        return {recipe.objective: SmallDecoder(recipe.model), **cls._critics(recipe)}

    def empty_network(self) -> SmallDecoder:
        known = {"tokenizer": portable(self.recipe.tokenizer), "marks": marks_of(self.tokenizer)}
        return SmallDecoder(replace(self.recipe.model, **known))

    def _stored(self, source: Source, workplace: Workplace) -> Source:
        """Rendered images as their latents and what the tokenizer makes of these, computed once."""
        if not isinstance(source, ImageArray) or not isinstance(source.values, np.memmap):
            return source
        tokenizer, values = self.tokenizer, source.values
        side, factor = tokenizer.image_side // tokenizer.latent_pixels, tokenizer.latent_pixels
        known = hash_of(getattr(tokenizer, "autoencoder", tokenizer).state_dict(), repr(tokenizer.scales))
        name = f"decoded-{Path(str(values.filename)).stem}-{len(values)}-{known}"
        stored = Stored(name, (tokenizer.channels + 3 * factor**2, side, side), np.float16)

        def both(real: Tensor) -> Tensor:
            latent, wanted = self._decoded(real)
            return torch.cat((latent, F.pixel_unshuffle(wanted, factor)), dim=1)

        codes = codes_of(both, array_chunks(values), source.device)
        found = cached(stored, len(values), codes, workplace.cache_dir, progress=workplace.team.leads)
        return FeatureArray(found, source.labels, source.device)

    def _pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.features is None:
            return self._decoded(images(batch))
        channels, factor = self.tokenizer.channels, self.tokenizer.latent_pixels
        latent, wanted = batch.features[:, :channels], batch.features[:, channels:]
        return latent, F.pixel_shuffle(wanted, factor)

    @torch.no_grad()
    def _decoded(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """The latents of images, and what the tokenizer makes of them."""
        latent = self.tokenizer.coded(real)
        return latent, self.tokenizer.decode(latent)

    def _made(self, network: Any, given: Tensor) -> Tensor:
        made: Tensor = network.decode(given)
        return made

    def _reconstructed(self, given: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return self.networks["decoder"](given), given.new_zeros(()), {}

    def _last_weight(self) -> Tensor:
        return self.autoencoder.conv_out.weight
