"""Trains Infinity with bitwise self-correction (arXiv 2412.04431, section 3.3), and a text encoder along with it.

Letters: B images, L tokens, D bits of a token, K scales.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Asked, Request
from var_toolkit.conditions.words import WordEncoder, WordEncoderConfig, vocabulary
from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.bits import Bits, bit_losses, log_odds
from var_toolkit.models.infinity import Infinity, InfinityConfig
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling
from var_toolkit.tokenizers.bsq import MultiScaleBSQ
from var_toolkit.training.batches import Batch, FeatureArray, ImageArray, Source
from var_toolkit.training.code_cache import cached_features
from var_toolkit.training.data_sources import HeldOut, images_of, require_size
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import Loss, Objective, Phase, Workplace
from var_toolkit.training.recipe import Recipe, ScenesData
from var_toolkit.training.reconstruction import images
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import network_from, start_from
from var_toolkit.training.var_objective import decay_groups, require_share

READ = 4000  # captions from which the words are gathered
SHOWN = 16  # images of a preview
SAMPLING = Sampling(cfg=3.0, top_k=0, top_p=0.97, temperature=0.5)  # as published for Infinity-2B


@dataclass(frozen=True)
class InfinityOptions:
    """Settings that are defaults in the published recipe, the sizes of the text encoder, and the initial weights."""

    caption_dropout: float = 0.1
    flips: float = 0.3  # largest probability that a bit is flipped; each scale of a step draws its own; 0: off
    reweight: bool = True  # the weight of a scale in the loss grows with its side, not with its tokens
    adaln_gamma: float = 1e-3  # initial scale of the gates; published 5e-6, for 32 layers
    text_depth: int = 2
    text_heads: int = 4
    words: tuple[str, ...] | None = None  # that the encoder knows; those of the captions if none are given
    initial: str | None = None  # model directory of weights to start from
    text_encoder: str | None = None  # of another model, used as it is: CoDe's two models read one prompt

    def __post_init__(self) -> None:
        require_share(caption_dropout=self.caption_dropout)
        if not 0 <= self.flips <= 1:
            raise ValueError(f"flips is {self.flips}; it must be a probability from 0 to 1")
        own = {"words": None, "text_depth": 2, "text_heads": 4}
        if self.text_encoder is not None and (odd := [name for name in own if getattr(self, name) != own[name]]):
            raise ValueError(f"text_encoder brings its own {odd[0]}; leave out {', '.join(odd)}")


class TextToImage(nn.Module):
    """The two networks that are trained as one: captions and what else the backbone reads -> logits."""

    backbone: Infinity
    encoder: WordEncoder

    def __init__(self, backbone: Infinity, encoder: WordEncoder) -> None:
        super().__init__()
        self.backbone, self.encoder = backbone, encoder

    def forward(self, captions: Sequence[str], *given: Tensor) -> Tensor:
        prompt = self.encoder(captions)
        return self.backbone(prompt.features, prompt.mask, *given)


@objective("infinity")
class InfinityObjective(Objective):
    """Cross-entropy of every bit, given coarser scales in which some bits are wrong."""

    options_type: ClassVar[type] = InfinityOptions
    data_kinds: ClassVar[tuple[str, ...]] = ("scenes", "captions")
    network_type: ClassVar[type[Infinity]] = Infinity
    sampling: ClassVar[Sampling] = SAMPLING  # of the model that is delivered
    log_note = "accuracy is the share of bits that are predicted; an untrained network has half of them"

    @classmethod
    def config_type(cls) -> type:
        return InfinityConfig

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        if recipe.tokenizer is None:
            raise ValueError(f"{where}: missing key 'tokenizer'; give the directory of a trained tokenizer of bits")

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options = recipe, recipe.objective_options
        self.tokenizer = self._open_tokenizer().to(workplace.team.device)
        self.scales: Schedule = self.tokenizer.scales
        self.source, self.held_out = self._data(workplace)
        self.encoder_sizes = self._encoder_sizes()
        network = self.empty_network()
        network.backbone.init_weights(adaln_gamma=self.options.adaln_gamma)
        network.encoder.init_weights()
        if self.options.text_encoder is not None:
            network.encoder.load_state_dict(self._given_encoder().state_dict())
        if self.options.initial is not None:
            self._begin(network, self.options.initial)
        self.reader, self.told = network.encoder, not workplace.team.leads
        self.networks = {"infinity": network.to(workplace.team.device)}
        self.record = nn.Module()

    def _begin(self, network: TextToImage, initial: str) -> None:
        """Fill the networks with the weights to start from."""
        start_from(network.backbone, initial)
        if self.options.text_encoder is None:
            start_from(network.encoder, initial)

    def _known_words(self) -> tuple[str, ...]:
        """The words of the text encoder: those that the texts may have."""
        return _words(self.recipe, self.source)

    @classmethod
    def outline(cls, recipe: Recipe) -> dict[str, nn.Module]:
        """The transformer and the encoder, without the embeddings of words that are not listed."""
        model, o = recipe.model, recipe.objective_options
        words = o.words or ("a",)
        sizes = WordEncoderConfig(words, model.text_channels, o.text_depth, o.text_heads, model.text_longest)
        encoder = WordEncoder(sizes).requires_grad_(o.text_encoder is None)
        return {recipe.objective: TextToImage(cls.network_type(model), encoder)}

    def _open_tokenizer(self) -> MultiScaleBSQ:
        """The tokenizer of the recipe, with the schedule of the model. ValueError if the sizes do not fit."""
        found = network_from(str(self.recipe.tokenizer), MultiScaleBSQ, what="tokenizer")
        try:
            tokenizer = found.for_tokens(Schedule(self.recipe.model.patch_nums), self.recipe.model.token_bits)
        except ValueError as error:
            raise ValueError(f"model: token_bits does not fit the tokenizer: {error}") from None
        require_size(self.recipe.data, tokenizer.image_side)
        return tokenizer.requires_grad_(False).eval()

    def _given_encoder(self) -> WordEncoder:
        """The text encoder of another model. ValueError if the transformer cannot read what it says."""
        model, found = self.recipe.model, network_from(str(self.options.text_encoder), WordEncoder, what="text_encoder")
        sizes = (found.config.width, found.config.longest)
        if sizes != (model.text_channels, model.text_longest):
            raise ValueError(
                f"model: text_channels {model.text_channels} and text_longest {model.text_longest} do not fit "
                f"text_encoder {self.options.text_encoder}, which has {sizes[0]} and {sizes[1]}"
            )
        return found

    def _encoder_sizes(self) -> WordEncoderConfig:
        model, o = self.recipe.model, self.options
        if o.text_encoder is not None:
            return self._given_encoder().config
        words = o.words or self._known_words()
        return WordEncoderConfig(words, model.text_channels, o.text_depth, o.text_heads, model.text_longest)

    def empty_network(self) -> TextToImage:
        encoder = WordEncoder(self.encoder_sizes)
        if self.options.text_encoder is not None:
            encoder.requires_grad_(False)
        return TextToImage(self.network_type(self.recipe.model), encoder)

    @staticmethod
    def adapted(network: TextToImage) -> nn.Module:
        """The transformer, without its text encoder."""
        return network.backbone

    def save(self, network: Any, directory: Path) -> None:
        """Save a model directory, which includes the tokenizer and the text encoder."""
        pipe = Pipeline(self.tokenizer, network.backbone, self.sampling, text_encoder=network.encoder)
        pipe.save_pretrained(directory)

    def _data(self, workplace: Workplace) -> tuple[Source, HeldOut]:
        """Images with captions; where they are in an array, their latents in place of them, computed once."""
        source, held_out = images_of(self.recipe, workplace)
        if held_out.source is not None:
            held_out = HeldOut(self._latents(held_out.source, workplace), held_out.rows)
        return self._latents(source, workplace), held_out

    def _latents(self, source: Source, workplace: Workplace) -> Source:
        if not isinstance(source, ImageArray) or not isinstance(source.values, np.memmap):
            return source
        name, leads = Path(str(source.values.filename)).stem, workplace.team.leads
        found = cached_features(self.tokenizer, source.values, workplace.cache_dir, name, progress=leads)
        return FeatureArray(found, source.labels, source.device, source.caption)

    def phases(self, step: int) -> list[Phase]:
        return [Phase(("infinity",), self._loss)]

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        return decay_groups(network)

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        flips = random_flips(self.scales, self.recipe.model.token_bits, self.options.flips, draws)
        bits_BLD, inputs_BLD = self._forced(batch, flips)
        dropped_B = draws.per_image("caption dropout") < self.options.caption_dropout
        logits_BLV = self.networks["infinity"](self._texts(batch), *self._shown(batch), inputs_BLD, dropped_B)
        losses_BL = bit_losses(logits_BLV, bits_BLD)
        loss = (losses_BL * self._weights(losses_BL.device)).sum(1).mean()
        return Loss(loss, {"loss": loss.detach(), **self._by_scale(losses_BL.detach(), logits_BLV.detach(), bits_BLD)})

    @torch.no_grad()
    def _forced(self, batch: Batch, flips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Bits to predict (B, L, D) and teacher inputs (B, L - n_0, D)."""
        with torch.autocast(batch.labels.device.type, enabled=False):
            features = self.tokenizer.features(images(batch)) if batch.features is None else batch.features
            found = self.tokenizer.pyramid.corrected(features, flips)
        return torch.cat(found.bits, dim=1), found.inputs

    def _texts(self, batch: Batch) -> tuple[str, ...]:
        """What the text encoder can read of the captions; the first time that it is not all, one line says so."""
        given = _captions(batch)
        texts = tuple(map(self.reader.readable, given))
        odd = [one for one, text in zip(given, texts, strict=True) if one != text]
        if odd and not self.told:
            longest = self.reader.config.longest - 1
            print(
                f"caption {odd[0][:200]!r} has words that are left out, here and in others: the text encoder reads at "
                f"most {longest} words of those that it knows",
                file=sys.stderr,
            )
            self.told = True
        return texts

    def _shown(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the backbone reads besides the text and the teacher inputs."""
        return ()

    def _weights(self, device: torch.device) -> Tensor:
        return token_weights(self.scales, self.options.reweight).to(device)

    def _by_scale(self, losses_BL: Tensor, logits_BLV: Tensor, bits_BLD: Tensor) -> dict[str, Tensor]:
        """The share of right bits, and per scale the loss and that share."""
        right_BL = ((log_odds(logits_BLV) > 0) == bits_BLD.bool()).float().mean(2)
        terms = {"accuracy": right_BL.mean()}
        for k, (losses, right) in enumerate(
            zip(self.scales.split(losses_BL), self.scales.split(right_BL), strict=True)
        ):
            terms |= {f"loss_scale_{k}": losses.mean(), f"accuracy_scale_{k}": right.mean()}
        return terms

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss and accuracy over all held-out images, without flips and with every caption."""
        rows = [self._judged(network, batch) for batch in self.held_out]
        return {key: float(torch.stack([row[key] for row in rows]).mean()) for key in rows[0]} if rows else {}

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        bits_BLD, inputs_BLD = self._forced(batch, [])
        logits_BLV = network(self._texts(batch), *self._shown(batch), inputs_BLD)
        losses_BL = bit_losses(logits_BLV, bits_BLD)
        loss = (losses_BL * self._weights(losses_BL.device)).sum(1).mean()
        return {"loss": loss, **self._by_scale(losses_BL, logits_BLV, bits_BLD)}

    def preview(self, network: Any) -> Tensor | None:
        """What the first held-out captions draw, with the same noise at every call."""
        first = self.held_out.first()
        return None if first is None else self._drawn(network, first)

    @torch.no_grad()
    def _drawn(self, network: Any, batch: Batch) -> Tensor:
        """What the first captions of a batch draw, (B, 3, h, w)."""
        prompt = network.encoder.encode(self._texts(batch)[:SHOWN])
        head = Bits(top_p=self.sampling.top_p, temperature=0.5)
        run = run_of(self.tokenizer, network.backbone, guidance=2.0, head=head)
        asked = self._asked(network.backbone.request(prompt), batch)
        noise = Noise(range(len(prompt)), prompt.features.device)
        return self.tokenizer.decode(decode(run, asked, noise).latent)

    def _asked(self, request: Request, batch: Batch) -> Asked:
        """What the first images of a batch are drawn from, of the request of their texts."""
        return request


def random_flips(scales: Schedule, bits: int, most: float, draws: Draws) -> list[Tensor]:
    """Which bits of a step are flipped, one map (B, n_k, D) for each scale.

    As published, the probability of each scale is a whole number of percent, uniform up to `most`, and the same for all
    images of a batch.
    """
    if not most:
        return []
    generator = draws.generator("flips")
    percent = torch.randint(int(100 * most) + 1, (len(scales),), generator=generator) / 100
    flips = []
    for k, tokens in enumerate(scales.lengths):
        uniform = torch.rand(draws.batch_size, tokens, bits, generator=generator)[draws.rows]
        flips.append((uniform < percent[k]).to(draws.device))
    return flips


def token_weights(scales: Schedule, reweight: bool) -> Tensor:
    """The weight of each token in the loss, (L): equal, or by the inverse of the square root of its scale's tokens."""
    weights = torch.cat([torch.full((n,), n**-0.5 if reweight else 1.0) for n in scales.lengths])
    return weights / weights.sum()


def _captions(batch: Batch) -> tuple[str, ...]:
    """The captions of a batch of images that have some."""
    if batch.captions is None:
        raise ValueError("data: the images have no captions; use data of kind scenes or captions")
    return batch.captions


def _words(recipe: Recipe, source: Source) -> tuple[str, ...]:
    """The words that captions may have: those of the grammar of scenes, or of the first captions."""
    if isinstance(recipe.data, ScenesData):
        from var_toolkit.still_life.captions import vocabulary as words_of_scenes

        return words_of_scenes()
    caption = getattr(source, "caption", None)
    if caption is None:
        raise ValueError("objective_options: words is missing; list the words that captions may have")
    return vocabulary(caption(number, 0) for number in range(min(len(source), READ)))
