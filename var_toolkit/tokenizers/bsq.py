"""The multi-scale bitwise tokenizer of Infinity (arXiv 2412.04431, section 3.1).

Key-compatible with `infinity_vae_d16.pth` ... `infinity_vae_d64.pth` and `infinity_vae_d56_f8_14_patchify.pth`.
A latent is the sum over scales of enlarged codes. A code has d channels of +-1 / sqrt(d), so each is one bit, and no
weight belongs to the codes (binary spherical quantisation, arXiv 2406.07548). A token is one cell of the latent, or
with `patchify` 2 x 2 cells, as for Infinity-8B.
Letters: B images, L tokens, K scales, d bits of a cell, D bits of a token, h and w of the finest map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.schedule import Schedule, increasing_sides
from var_toolkit.formats.directory import build, fill
from var_toolkit.formats.state_dicts import Arguments, Tensors, Told, count, require, shape, sizes_of
from var_toolkit.tokenizers.cnn import OTHER_GROUPS, Decoder, Encoder, to_channels_last
from var_toolkit.tokenizers.codebook import CodebookTokenizer
from var_toolkit.tokenizers.files import TokenizerFiles

SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)  # of square images of 1024 px


@dataclass(frozen=True)
class MultiScaleBSQConfig:
    """Sizes of the tokenizer; the defaults are those of `infinity_vae_d32.pth`."""

    codebook_dim: int = field(default=32, metadata={"range": (1, 1024)})  # bits of a cell
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    patchify: bool = False  # whether 2 x 2 cells are one token
    patch_nums: tuple[int, ...] = SIDES  # of the token maps by default; no weight depends on them
    norm_groups: int = 32
    unshuffle: int = field(
        default=1, metadata={"range": (1, 64)}
    )  # side of the blocks of pixels that are one for the network

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        object.__setattr__(self, "patch_nums", increasing_sides(self.patch_nums))
        for name in ("codebook_dim", "ch", "num_res_blocks", "norm_groups", "unshuffle"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if not self.ch_mult or any(self.ch * m % self.norm_groups and self.ch * m % OTHER_GROUPS for m in self.ch_mult):
            raise ValueError(
                f"norm_groups is {self.norm_groups}; it must divide ch * ch_mult, {self.ch} * {self.ch_mult}"
            )

    @property
    def patch(self) -> int:
        """Cells per token along one side."""
        return 2 if self.patchify else 1

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.ch_mult) - 1) * self.unshuffle * self.patch


class Corrected(NamedTuple):
    """What a transformer learns from images whose bits were flipped on the way (`BitPyramid.corrected`)."""

    bits: list[Tensor]  # K maps (B, n_k, D), uint8, to predict
    inputs: Tensor  # of scales 1 .. K-1, (B, L - n_0, D)


class BitPyramid:
    """A schedule of maps of bits. The bits of a token are (B, L, D), uint8."""

    residual = True  # the maps add up, so that the last may be left out

    def __init__(self, scales: Schedule, bits: int, patch: int) -> None:
        self.scales, self.bits, self.patch = scales, bits, patch
        self.grids = tuple((height * patch, width * patch) for height, width in scales.maps)  # of cells

    def embed(self, bits_BLD: Tensor) -> Tensor:
        """Bits -> codes of +-1 / sqrt(d), (B, L, D)."""
        return (bits_BLD.float() * 2 - 1) / sqrt(self.bits)

    def grow(self, latent: Tensor | None, codes_BLD: Tensor, scale: int) -> Tensor:
        """The latent after a scale, (B, d, h, w): the sum of all codes so far, each enlarged to the finest map."""
        added = _resized(self._cells(codes_BLD, scale), self.grids[-1])
        return added if latent is None else latent + added

    def shrink(self, latent_BDhw: Tensor, scale: int) -> Tensor:
        """The input of a scale, (B, n_k, D): the latent of the coarser ones, bilinear at the size of the scale.

        Not by area, although the residuals are: so the published transformers are trained and sampled.
        """
        return self._tokens(_resized(latent_BDhw, self.grids[scale]))

    def pooled(self, rest_BDhw: Tensor, scale: int) -> Tensor:
        """What the bits of a scale are the signs of, (B, d, h_k, w_k): a residual, averaged and of unit length."""
        size = self.grids[scale]
        rest_BDhw = rest_BDhw if rest_BDhw.shape[-2:] == size else F.interpolate(rest_BDhw, size=size, mode="area")
        return F.normalize(rest_BDhw, dim=1)

    def encode(self, features_BDhw: Tensor) -> list[Tensor]:
        """Features, of the size of the finest map -> the bits of K maps (B, n_k, D), uint8."""
        return self.corrected(features_BDhw, []).bits

    def corrected(self, features_BDhw: Tensor, flips: Sequence[Tensor]) -> Corrected:
        """Bits and next inputs when bits are flipped on the way (section 3.3); each flip is bool (B, n_k, D).

        Flips of a scale enter the latent but not the bits of that scale, so the bits of finer ones correct them. Scales
        beyond those given have no flips.
        """
        features, latent = features_BDhw.float(), torch.zeros_like(features_BDhw, dtype=torch.float32)
        bits, inputs = [], [self._tokens(latent)[:, :0]]  # a single scale has no inputs
        for k in range(len(self.scales)):
            found = self._tokens(self.pooled(features - latent, k) > 0)
            bits.append(found.to(torch.uint8))
            latent = self.grow(latent, self.embed(found ^ flips[k] if k < len(flips) else found), k)
            if k + 1 < len(self.scales):
                inputs.append(self.shrink(latent, k + 1))
        return Corrected(bits, torch.cat(inputs, dim=1))

    def unquantised(self, features_BDhw: Tensor) -> Tensor:
        """Features as they are, averaged to the cells of the finest map: (B, n, D), float32, in raster order."""
        features, size = features_BDhw.float(), self.grids[-1]
        return self._tokens(features if features.shape[-2:] == size else F.adaptive_avg_pool2d(features, size))

    def latents(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The latent after every given scale, each (B, d, h, w)."""
        latent, after = None, []
        for k, bits_BLD in enumerate(tokens):
            latent = self.grow(latent, self.embed(bits_BLD), k)
            after.append(latent)
        return after

    def teacher_inputs(self, tokens: Sequence[Tensor]) -> Tensor:
        """Inputs of scales 1 .. K-1 under teacher forcing, (B, L - n_0, D), float32."""
        latents = self.latents(tokens[: max(len(self.scales) - 1, 1)])
        inputs = [self.shrink(latent, k + 1) for k, latent in enumerate(latents[: len(self.scales) - 1])]
        return torch.cat([self._tokens(latents[0])[:, :0], *inputs], dim=1)

    def _cells(self, tokens_BLD: Tensor, scale: int) -> Tensor:
        """Tokens of a scale -> their cells, (B, d, rows, columns)."""
        return F.pixel_shuffle(tokens_BLD.transpose(1, 2).unflatten(2, self.scales.maps[scale]), self.patch)

    def _tokens(self, cells_BDhw: Tensor) -> Tensor:
        """Cells -> tokens in raster order, (B, L, D): bit 4c + 2i + j of a 2 x 2 patch is channel c of cell (i, j)."""
        return F.pixel_unshuffle(cells_BDhw, self.patch).flatten(2).transpose(1, 2)


def _resized(map_BDhw: Tensor, size: tuple[int, int]) -> Tensor:
    return map_BDhw if map_BDhw.shape[-2:] == size else F.interpolate(map_BDhw, size=size, mode="bilinear")


class Quantized(NamedTuple):
    """The result of the quantiser in training."""

    latent: Tensor  # (B, d, h, w), with straight-through gradients
    commitment: Tensor
    entropy: Tensor
    tokens: list[Tensor]  # K maps (B, n_k, D), uint8


class BitQuantizer(nn.Module):
    """Signs of normalised residuals. It has no weights."""

    def __init__(self, scales: Schedule, bits: int, patch: int) -> None:
        super().__init__()
        self.scales, self.bits, self.patch = scales, bits, patch

    def pyramid(self, schedule: Schedule) -> BitPyramid:
        """The pyramid of a schedule."""
        return BitPyramid(schedule, self.bits, self.patch)

    def forward(self, features_BDhw: Tensor, sharpness: float) -> Quantized:
        """Quantise for training, in float32.

        `commitment` is the squared distance between the features and the latent, `entropy` the mean of `entropy_gap`
        over the scales. The distance after coarser scales, which VAR adds, would pull features to what few bits say.
        """
        features, pyramid = features_BDhw.float(), self.pyramid(self.scales)
        target, latent, tokens = features.detach(), torch.zeros_like(features), []
        entropy = features.new_zeros(())
        for k in range(len(self.scales)):
            unit = pyramid.pooled(features - latent, k)
            tokens.append(pyramid._tokens(unit > 0).to(torch.uint8))
            latent = pyramid.grow(latent, pyramid.embed(tokens[-1]), k)
            entropy = entropy + entropy_gap(unit, sharpness)
        straight = features + (latent - target)
        return Quantized(straight, F.mse_loss(features, latent), entropy / len(self.scales), tokens)


def entropy_gap(unit_BDhw: Tensor, sharpness: float) -> Tensor:
    """The entropy of each bit of each cell less the entropy of the bit over all cells, in nats, summed over bits.

    Bits are independent, so the sum is linear in their number. The probability of a bit follows from the distances to
    its two codes: sigmoid(4 sharpness value / sqrt(d)). Low where bits are certain and equally often 0 and 1.
    """
    logits = unit_BDhw * (4 * sharpness / sqrt(unit_BDhw.shape[1]))
    each = _entropy(logits).mean((0, 2, 3))
    share = logits.sigmoid().mean((0, 2, 3)).clamp(1e-6, 1 - 1e-6)
    return (each - _entropy(torch.logit(share))).sum()


def _entropy(logits: Tensor) -> Tensor:
    """Of a bit that is 1 with probability sigmoid(logits), in nats."""
    return F.softplus(logits) - logits * logits.sigmoid()


class Reconstruction(NamedTuple):
    """The result of a training pass."""

    images: Tensor  # (B, 3, h, w), about [-1, 1]
    commitment: Tensor
    entropy: Tensor
    tokens: list[Tensor]  # K maps (B, n_k, D), uint8


class MultiScaleBSQ(CodebookTokenizer):
    """Images to a pyramid of maps of bits and back, at any schedule. Images are float in [-1, 1], (B, 3, h, w)."""

    def __init__(self, config: MultiScaleBSQConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = Schedule(config.patch_nums)
        shape = (config.ch, config.ch_mult, config.num_res_blocks, config.codebook_dim, config.norm_groups)
        pixels = 3 * config.unshuffle**2
        self.encoder = Encoder(*shape, pixel_channels=pixels, attention=False)
        self.decoder = Decoder(*shape, pixel_channels=pixels, attention=False)
        self.quantize = BitQuantizer(self.scales, config.codebook_dim, config.patch)
        to_channels_last(self)

    @property
    def channels(self) -> int:
        """Number of channels of the latents, d."""
        return self.config.codebook_dim

    @property
    def latent_side(self) -> int:
        """Height and width of the latents of images of the default size."""
        return self.scales.finest * self.config.patch

    @property
    def token_bits(self) -> int:
        """Bits of a token, D."""
        return self.channels * self.quantize.patch**2

    def meaning(self) -> dict[str, Tensor]:
        """Tensors that identify the tokens: parts of models with equal ones can be combined."""
        return {"encoder.conv_out": self.encoder.conv_out.weight}

    def pyramid_of(self, schedule: Schedule) -> BitPyramid:
        """The pyramid of a schedule: any, since no weight depends on it."""
        return self.quantize.pyramid(schedule)

    def for_tokens(self, schedule: Schedule, bits: int) -> MultiScaleBSQ:
        """The same weights with another default schedule, and with tokens of `bits`: those of one cell or of 2 x 2.

        ValueError if tokens of these cells never have so many bits.
        """
        if bits not in (self.channels, 4 * self.channels):
            raise ValueError(f"cells of {self.channels} bits make no tokens of {bits} bits")
        other = copy(self)
        other.config = replace(self.config, patch_nums=schedule.patch_nums, patchify=bits != self.channels)
        other.scales = schedule
        other._modules = {**self._modules, "quantize": BitQuantizer(schedule, self.channels, other.config.patch)}
        return other

    def forward(self, images: Tensor, sharpness: float = 100.0) -> Reconstruction:  # type: ignore[override]
        """Reconstruct for training, with gradients through the straight-through estimator."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            found = self.quantize(features, sharpness)
        return Reconstruction(self._decode_latent(found.latent), found.commitment, found.entropy, found.tokens)

    def _encoded(self, images: Tensor) -> Tensor:
        blocks = F.pixel_unshuffle(images, self.config.unshuffle)
        return self.encoder(blocks.to(self.encoder.conv_in.weight.dtype, memory_format=torch.channels_last))

    def _decode_latent(self, latent_BChw: Tensor) -> Tensor:
        latent = latent_BChw.to(self.decoder.conv_in.weight.dtype, memory_format=torch.channels_last)
        return F.pixel_shuffle(self.decoder(latent), self.config.unshuffle)


REQUIRED = ("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight", "encoder.mid.block_1.conv1.conv.weight")
WRAPPED = re.compile(r"\.(?:conv|norm)(\.weight|\.bias)$")  # convolutions and norms lie in wrappers in the files
DROPPED = "lfq.mask"  # powers of two, by which indices would be computed
ARGUMENTS = Arguments(renamed={"base_ch": "ch"}, ignored=frozenset({"patch_size", "codebook_size"}))


def empty_tokenizer(settings: Mapping[str, Any], source: str) -> nn.Module:
    """A tokenizer without weights."""
    return build(MultiScaleBSQ, settings, source)


def tokenizer_from_tensors(
    tensors: Tensors, given: Mapping[str, Any], patch_nums: tuple[int, ...], source: str
) -> nn.Module:
    """The tokenizer of a published state dict. It works for any schedule, so the backbone's is used."""
    told = Told.read(given, MultiScaleBSQConfig, ARGUMENTS, "the configuration of the tokenizer")
    require(tensors, REQUIRED, source)
    settings = told.merged({**sizes_of(_tokenizer_sizes, tensors, source), "patch_nums": patch_nums})
    network = build(MultiScaleBSQ, settings, source)
    renamed = {WRAPPED.sub(r"\1", name): tensor for name, tensor in tensors.items() if not name.endswith(DROPPED)}
    fill(network, renamed, source)
    return network.float().eval()


def _tokenizer_sizes(tensors: Tensors) -> dict[str, Any]:
    ch = shape(tensors, "encoder.conv_in.conv.weight", 4)[0]
    levels = range(count(tensors, "encoder.down."))
    return {
        "codebook_dim": shape(tensors, "encoder.conv_out.conv.weight", 4)[0],
        "ch": ch,
        "ch_mult": tuple(shape(tensors, f"encoder.down.{i}.block.0.conv1.conv.weight", 4)[0] // ch for i in levels),
        "num_res_blocks": count(tensors, "encoder.down.0.block."),
    }


FILES = TokenizerFiles("MultiScaleBSQ", "bits", REQUIRED, tokenizer_from_tensors, empty_tokenizer)
NETWORKS = {"MultiScaleBSQ": "tokenizer"}
