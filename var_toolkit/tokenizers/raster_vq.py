"""The VQ tokenizer of LlamaGen (arXiv 2406.06525, section 2.1) and of FlexVAR (arXiv 2502.20313, section 3.2).

Codes have unit length, and a token map of any size codes the whole image: LlamaGen draws one map, FlexVAR several, of
which the last is decoded. The two have the same network and the same tensor names.
Letters: B images, L tokens, V vocabulary, C channels of a code, K scales.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.directory import build, fill
from var_toolkit.formats.llamagen_arguments import TOKENIZER_ARGUMENTS
from var_toolkit.formats.state_dicts import Tensors, Told, count, require, shape, sizes_of
from var_toolkit.tokenizers.cnn import Decoder, Encoder, to_channels_last
from var_toolkit.tokenizers.codebook import CodebookTokenizer, Quantized
from var_toolkit.tokenizers.files import TokenizerFiles


@dataclass(frozen=True)
class RasterVQConfig:
    """Sizes of the tokenizer; the defaults are those of VQ-16 at 256 px."""

    vocab_size: int = 16384
    code_dim: int = 8
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    side: int = 16  # of the token map
    beta: float = 0.25
    norm_groups: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        for name in ("vocab_size", "code_dim", "z_channels", "ch", "num_res_blocks", "side", "norm_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if not self.ch_mult or any(self.ch * m % self.norm_groups for m in self.ch_mult):
            raise ValueError(
                f"norm_groups is {self.norm_groups}; it must divide ch * ch_mult, {self.ch} * {self.ch_mult}"
            )

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.ch_mult) - 1)


class CosineQuantizer(nn.Module):
    """A codebook on the unit sphere: features and codes are L2-normalised; the nearest code has the largest cosine."""

    def __init__(self, vocab_size: int, channels: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        # Not nn.Embedding(n, c): its initialisation imports torch.compile on the meta device. Training sets it.
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(vocab_size, channels), freeze=False)

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Token ids -> codes of unit length (B, L, C)."""
        return F.normalize(self.embedding(tokens_BL), dim=-1)

    def nearest(self, target_BLC: Tensor) -> Tensor:
        """The tokens whose codes have the largest cosine with the given vectors, (B, L)."""
        return (F.normalize(target_BLC, dim=-1) @ self.codebook().T).argmax(dim=-1)

    def targets_and_errors(self, features_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors to quantise (N, C) and their squared distances to the nearest codes (N,)."""
        target = F.normalize(_sequence(features_BChw), dim=-1)
        return target.flatten(0, 1), (target - self.embed(self.nearest(target))).square().sum(-1).flatten()

    def codebook(self) -> Tensor:
        """All codes, of unit length, (V, C)."""
        return F.normalize(self.embedding.weight.detach(), dim=-1)

    def forward(self, features_BChw: Tensor) -> Quantized:
        """Quantise for training: straight-through latent, loss and tokens, in float32."""
        side = features_BChw.shape[-2:]
        target = F.normalize(_sequence(features_BChw.float()), dim=-1)
        tokens_BL = self.nearest(target)
        codes = self.embed(tokens_BL)
        loss = F.mse_loss(codes, target.detach()) + self.beta * F.mse_loss(codes.detach(), target)
        straight = target + (codes - target).detach()
        return Quantized(straight.transpose(1, 2).unflatten(2, side), loss, [tokens_BL])


class WholeMaps:
    """A schedule of token maps, each of which codes the whole image: the latent resized, not what coarser maps left."""

    def __init__(self, quantizer: CosineQuantizer, scales: Schedule) -> None:
        self.quantizer, self.scales = quantizer, scales

    @property
    def embedding(self) -> nn.Embedding:
        """The codebook as it is stored, of any length."""
        return self.quantizer.embedding

    def codebook(self) -> Tensor:
        """All codes, (V, C)."""
        return self.quantizer.codebook()

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Token ids -> codes (B, L, C)."""
        return self.quantizer.embed(tokens_BL)

    def nearest(self, codes_BLC: Tensor) -> Tensor:
        """The tokens whose codes have the largest cosine with the given vectors, (B, L)."""
        return self.quantizer.nearest(codes_BLC)

    def encode(self, features_BChw: Tensor) -> list[Tensor]:
        """Features, at least as large as the finest map -> K token maps (B, n_k), int64, in raster order."""
        features = features_BChw.float()
        return [self.quantizer.nearest(_sequence(_averaged(features, size))) for size in self.scales.maps]

    def grow(self, latent: Tensor | None, codes_BLC: Tensor, scale: int) -> Tensor:
        """The latent after a scale, (B, C, h, w): its own map, which replaces the one before."""
        return codes_BLC.transpose(1, 2).unflatten(2, self.scales.maps[scale])

    def shrink(self, latent_BChw: Tensor, scale: int) -> Tensor:
        """The map before a scale, bicubic to its size, as a sequence (B, n_k, C); codes are not normalised again."""
        return _sequence(F.interpolate(latent_BChw, size=self.scales.maps[scale], mode="bicubic"))

    def latents(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The latent after every given scale, each (B, C, h, w) of its own size."""
        return [self.grow(None, self.embed(found), k) for k, found in enumerate(tokens)]

    def teacher_inputs(self, tokens: Sequence[Tensor]) -> Tensor:
        """Inputs of scales 1 .. K-1 under teacher forcing, (B, L - n_0, C), float32."""
        latents = self.latents(tokens)
        inputs = [self.shrink(latent, k + 1) for k, latent in enumerate(latents[: len(self.scales) - 1])]
        return torch.cat([_sequence(latents[0])[:, :0], *inputs], dim=1)  # a single scale has no inputs


class RasterVQ(CodebookTokenizer):
    """Images to token maps and back, by default to one map. Images are float in [-1, 1], (B, 3, h, w)."""

    def __init__(self, config: RasterVQConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = Schedule((config.side,))
        shape = (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels, config.norm_groups)
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)
        self.quantize = CosineQuantizer(config.vocab_size, config.code_dim, config.beta)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)
        to_channels_last(self)

    def meaning(self) -> dict[str, Tensor]:
        """Tensors that identify the tokens: parts of models with equal ones can be combined."""
        return {"embedding": self.quantize.embedding.weight}

    def pyramid_of(self, schedule: Schedule) -> WholeMaps:
        """The pyramid of a schedule: any, since no weight depends on it."""
        return WholeMaps(self.quantize, schedule)

    def for_schedule(self, schedule: Schedule) -> RasterVQ:
        """The same weights with another default schedule."""
        other = copy(self)
        other.config, other.scales = replace(self.config, side=schedule.finest), schedule
        return other


def _sequence(latent_BChw: Tensor) -> Tensor:
    return latent_BChw.flatten(2).transpose(1, 2)


def _averaged(latent_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    return latent_BChw if latent_BChw.shape[-2:] == size else F.interpolate(latent_BChw, size=size, mode="area")


REQUIRED = ("encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight")
USAGE = "quantize.codebook_used"  # statistics of code usage in training
LEVEL = re.compile(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.(res|attn|downsample|upsample)\.")
MIDDLE = {".mid.0.": ".mid.block_1.", ".mid.1.": ".mid.attn_1.", ".mid.2.": ".mid.block_2."}
QKV = re.compile(r"^(.*\.)q(\.weight|\.bias)$")


def empty_tokenizer(settings: Mapping[str, Any], source: str) -> nn.Module:
    """A tokenizer without weights."""
    return build(RasterVQ, settings, source)


def tokenizer_from_tensors(
    tensors: Tensors, given: Mapping[str, Any], patch_nums: tuple[int, ...], source: str
) -> nn.Module:
    """The tokenizer of a published state dict. It works for any side of the map, so the backbone's is used."""
    told = Told.read(given, RasterVQConfig, TOKENIZER_ARGUMENTS, "the configuration of the tokenizer")
    require(tensors, REQUIRED, source)
    settings = told.merged({**sizes_of(_tokenizer_sizes, tensors, source), "side": patch_nums[-1]})
    network = build(RasterVQ, settings, source)
    fill(network, dict(_renamed(tensors, len(settings["ch_mult"]))), source)
    return network.float().eval()


def _tokenizer_sizes(tensors: Tensors) -> dict[str, Any]:
    vocabulary, channels = shape(tensors, "quantize.embedding.weight", 2)
    ch = shape(tensors, "encoder.conv_in.weight", 4)[0]
    levels = range(count(tensors, "encoder.conv_blocks."))
    return {
        "vocab_size": vocabulary,
        "code_dim": channels,
        "z_channels": shape(tensors, "encoder.conv_out.weight", 4)[0],
        "ch": ch,
        "ch_mult": tuple(shape(tensors, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] // ch for i in levels),
        "num_res_blocks": count(tensors, "encoder.conv_blocks.0.res."),
    }


def _renamed(tensors: Tensors, levels: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors under our names; ours have one convolution for queries, keys and values, the files have three."""
    together = {name: [f"{m[1]}{part}{m[2]}" for part in "qkv"] for name in tensors if (m := QKV.match(name))}
    together = {name: parts for name, parts in together.items() if all(part in tensors for part in parts)}
    merged = {part for parts in together.values() for part in parts}
    for name, tensor in tensors.items():
        if name in together:
            found = QKV.sub(r"\1qkv\2", name)
            yield _our_name(found, levels), torch.cat([tensors[part] for part in together[name]])
        elif name not in merged and name != USAGE:
            yield _our_name(name, levels), tensor


def _our_name(name: str, levels: int) -> str:
    if (found := LEVEL.match(name)) is not None:
        half, level, kind = found[1], int(found[2]), {"res": "block"}.get(found[3], found[3])
        # The files count the decoder's levels from the coarsest, we count from the finest.
        place = f"down.{level}" if half == "encoder" else f"up.{levels - 1 - level}"
        return f"{half}.{place}.{kind}.{name[found.end() :]}"
    for theirs, ours in MIDDLE.items():
        name = name.replace(theirs, ours)
    return name


FILES = TokenizerFiles("RasterVQ", "one map of discrete tokens", REQUIRED, tokenizer_from_tensors, empty_tokenizer)
NETWORKS = {"RasterVQ": "tokenizer"}
MODELS = {
    "stilllife-raster-vq": {
        "summary": "tokenizer of still lifes with one map, 16 x 16",
        "embedded": {"tokenizer": "stilllife-raster-vq"},
    },
}  # fmt: skip
