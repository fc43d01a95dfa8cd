"""The tokenizer of D-AR (arXiv 2505.23660): a sequence of tokens whose groups steer the steps of a flow on pixels.

Key-compatible with `D-AR-tokenizer_v1.pt`. The tokens are no map of the image: learned queries read the whole image,
each with those before it. Group g of the tokens conditions step g of the decoder, which carries noise to pixels, so
that the first groups alone give a preview: the step of the last of them goes to the end at once.

Letters: B images, L tokens, P patches of pixels, C width, c channels of a code, G groups, h and w of the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.finite import clamped
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.directory import build, fill
from var_toolkit.formats.state_dicts import Arguments, Tensors, Told, count, require, shape, sizes_of
from var_toolkit.models.layers.rotary import Rotation, rotation_on_grids
from var_toolkit.tokenizers.codebook import CodebookTokenizer
from var_toolkit.tokenizers.files import TokenizerFiles
from var_toolkit.tokenizers.raster_vq import CosineQuantizer, WholeMaps

HEAD_DIM = 64  # of all attention layers, as published
EPS = 1e-6
MLP_RATIO = 4
LONGEST = 10_000  # longest period of the time sinusoids, in thousandths
BETA = 0.25  # weight of the commitment loss


@dataclass(frozen=True)
class PixelFlowVQConfig:
    """Sizes of the tokenizer; the defaults are those of D-AR's at 256 px."""

    vocab_size: int = 16384
    code_dim: int = 8
    side: int = 16  # there are side * side tokens
    groups: int = field(default=8, metadata={"range": (1, 1024)})  # of tokens, and steps of the flow
    image_side: int = field(default=256, metadata={"range": (1, 4096)})
    encoder_dim: int = field(default=768, metadata={"range": (1, 65_536)})
    encoder_depth: int = 8
    encoder_patch: int = field(default=16, metadata={"range": (1, 256)})  # pixels along a side of a patch
    query_dim: int = field(default=8, metadata={"range": (1, 65_536)})  # of the queries before a linear layer
    positions: int = field(default=1024, metadata={"range": (1, 2**20)})  # rows of the tables, at least the tokens
    decoder_dim: int = field(default=768, metadata={"range": (1, 65_536)})
    decoder_depth: int = 8
    flow_dim: int = field(default=768, metadata={"range": (1, 65_536)})
    flow_depth: int = field(default=12, metadata={"range": (1, 1024)})
    flow_patch: int = field(default=8, metadata={"range": (1, 256)})
    data_std: float = field(default=0.6, metadata={"range": (1e-3, 1e3)})  # what pixels are multiplied by
    time_shift: float = field(default=2.0, metadata={"range": (1e-3, 1e3)})

    def __post_init__(self) -> None:
        for name in ("encoder_dim", "decoder_dim", "flow_dim"):
            if getattr(self, name) < 1 or getattr(self, name) % HEAD_DIM:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a multiple of {HEAD_DIM}")
        for name in ("side", "encoder_patch", "flow_patch"):
            if self.image_side % getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)}; it must divide image_side, {self.image_side}")
        if self.tokens % self.groups:
            raise ValueError(f"groups is {self.groups}; it must divide the {self.tokens} tokens, side * side")
        if self.tokens > self.positions:
            raise ValueError(f"positions is {self.positions}; there are {self.tokens} tokens, side * side")

    @property
    def tokens(self) -> int:
        """Number of tokens of an image."""
        return self.side**2

    @property
    def downsample(self) -> int:
        """Pixels along a side of the image for each of the `side` tokens."""
        return self.image_side // self.side


class Attention(nn.Module):
    """Multi-head attention with normed queries and keys, to the tokens themselves or to a memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.q_norm, self.k_norm = nn.LayerNorm(HEAD_DIM, eps=EPS), nn.LayerNorm(HEAD_DIM, eps=EPS)

    def forward(
        self,
        x_BLC: Tensor,
        rotation: Rotation | None = None,
        memory_BMC: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """RoPE turns the queries, and the keys unless they are of the memory."""
        seen = x_BLC if memory_BMC is None else memory_BMC
        q, k = self.q_norm(_heads(self.q(x_BLC))), self.k_norm(_heads(self.k(seen)))
        if rotation is not None:
            q, k = rotation(q), rotation(k) if memory_BMC is None else k
        found = F.scaled_dot_product_attention(q, k, _heads(self.v(seen)), mask, is_causal=causal)
        out: Tensor = self.proj(found.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two layers with SiLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.silu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and with a learned gate for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width), MLP(width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.gate1, self.gate2 = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x_BLC: Tensor, **how: Any) -> Tensor:
        x_BLC = x_BLC + self.gate1 * self.attention(self.norm1(x_BLC), **how)
        return x_BLC + self.gate2 * self.mlp(self.norm2(x_BLC))


class TimeEmbedding(nn.Module):
    """Sinusoids of a time from 0 to 1, as many as channels, followed by an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        """A number -> (C)."""
        weight = cast(nn.Linear, self.mlp[0]).weight
        half = weight.shape[1] // 2
        angles = 1000 * time * LONGEST ** (-torch.arange(half, device=weight.device) / half)
        out: Tensor = self.mlp(torch.cat((angles.cos(), angles.sin())).to(weight.dtype))
        return out


class FlowBlock(nn.Module):
    """Attention and MLP, modulated by the time and by what each patch reads of the tokens (cross-attention)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.cross_attn, self.mlp = Attention(width), Attention(width), MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x_BPC: Tensor, memory_BMC: Tensor, time: Tensor, rotation: Rotation) -> Tensor:
        read = self.cross_attn(_plain_norm(x_BPC), rotation, _plain_norm(self.cond_embed(memory_BMC)))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(self.time_embed(time) + read).chunk(6, -1)
        x_BPC = x_BPC + gate1 * self.attention(torch.addcmul(shift1, _plain_norm(x_BPC), 1 + scale1), rotation)
        return x_BPC + gate2 * self.mlp(torch.addcmul(shift2, _plain_norm(x_BPC), 1 + scale2))


class PixelField(nn.Module):
    """The velocity of noisy pixels, given the features of a group of tokens."""

    def __init__(self, width: int, depth: int, patch: int, cond_width: int) -> None:
        super().__init__()
        self.patch = patch
        self.cond_mlp = nn.Linear(cond_width, width)
        self.conv_in, self.conv_out = nn.Conv2d(3 * patch**2, width, 1), nn.Conv2d(width, 3 * patch**2, 1)
        self.blocks = nn.ModuleList(FlowBlock(width) for _ in range(depth))

    def forward(self, x_B3hw: Tensor, time: Tensor, cond_BMC: Tensor) -> Tensor:
        """Noisy pixels, a time, features (B, M, C) -> velocities (B, 3, h, w), in the dtype of the weights."""
        memory = _plain_norm(self.cond_mlp(cond_BMC))
        x = self.conv_in(F.pixel_unshuffle(x_B3hw.to(memory.dtype), self.patch))
        size = x.shape[-2:]
        rotation = rotation_on_grids((size[0],), size[0], HEAD_DIM, x.device)
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, memory, time, rotation)
        found: Tensor = self.conv_out(_plain_norm(x).transpose(1, 2).unflatten(2, size))
        return F.pixel_shuffle(found, self.patch)


class PixelFlow(nn.Module):
    """Noise -> pixels, a step for each group of tokens, by the method of Adams and Bashforth of order 2.

    As published, its coefficients are those of equal steps, although the shifted times are not equally spaced.
    """

    def __init__(self, config: PixelFlowVQConfig) -> None:
        super().__init__()
        self.groups, self.data_std, self.time_shift = config.groups, config.data_std, config.time_shift
        self.net = PixelField(config.flow_dim, config.flow_depth, config.flow_patch, config.decoder_dim)

    def times(self, groups: int, device: torch.device) -> Tensor:
        """The times between the steps of the first groups, float32 (groups + 1)."""
        even = torch.arange(groups + 1, device=device) / self.groups
        even[-1] = 1
        return even / (even + self.time_shift * (1 - even))

    def forward(self, noise_B3hw: Tensor, cond_BLC: Tensor, groups: int) -> Tensor:
        """Standard normal noise, and the features of the first groups of tokens -> images about [-1, 1], float32."""
        times, x, before = self.times(groups, cond_BLC.device), noise_B3hw.float(), None
        for step, cond in enumerate(cond_BLC.chunk(groups, dim=1)):
            velocity = self.net(x, times[step], cond).float()
            slope = velocity if before is None else 1.5 * velocity - 0.5 * before
            x, before = x + (times[step + 1] - times[step]) * slope, velocity
        return x / self.data_std


class TokenSequence(WholeMaps):
    """A schedule of one map, whose tokens are one sequence: their latent is (B, c, 1, L)."""

    def __init__(self, quantizer: CosineQuantizer, scales: Schedule, groups: int) -> None:
        super().__init__(quantizer, scales)
        # How many tokens are known after each group; what is known then can be decoded.
        self.groups = tuple(scales.total // groups * (group + 1) for group in range(groups))

    def encode(self, features_Bc1L: Tensor) -> list[Tensor]:
        """Features -> the one sequence of tokens (B, L), int64."""
        return [self.quantizer.nearest(features_Bc1L.float().flatten(2).transpose(1, 2))]

    def grow(self, latent: Tensor | None, codes_BLc: Tensor, scale: int) -> Tensor:
        """The latent of the codes of the tokens so far, (B, c, 1, L)."""
        return codes_BLc.transpose(1, 2).unsqueeze(2)


class PixelFlowVQ(CodebookTokenizer):
    """Images to sequences of tokens and back. Images are float in [-1, 1], (B, 3, h, w)."""

    spatial = False  # no token belongs to a part of the image

    def __init__(self, config: PixelFlowVQConfig) -> None:
        super().__init__()
        self.config, self.scales = config, Schedule((config.side,))
        wide, narrow = config.encoder_dim, config.code_dim
        self.encoder_layers = nn.ModuleList(Block(wide) for _ in range(config.encoder_depth))
        self.decoder_layers = nn.ModuleList(Block(config.decoder_dim) for _ in range(config.decoder_depth))
        self.patchify = nn.Conv2d(3, wide, config.encoder_patch, stride=config.encoder_patch)
        self.quant_in_conv = nn.Conv2d(wide, narrow, 1, bias=False)
        self.quant_out_conv = nn.Conv2d(narrow, config.decoder_dim, 1, bias=False)
        self.quantize = CosineQuantizer(config.vocab_size, narrow, BETA)
        self.query_embedding, self.decoder_embedding = (
            nn.Embedding.from_pretrained(torch.zeros(config.positions, width), freeze=False)
            for width in (config.query_dim, config.decoder_dim)
        )
        self.query_linear = nn.Linear(config.query_dim, wide)
        self.diff_decoder = PixelFlow(config)

    def meaning(self) -> dict[str, Tensor]:
        """Tensors that identify the tokens: parts of models with equal ones can be combined."""
        return {"embedding": self.quantize.embedding.weight}

    def pyramid_of(self, schedule: Schedule) -> TokenSequence:
        """The sequence of tokens. ValueError for a schedule that it has not."""
        super().pyramid_of(schedule)
        return TokenSequence(self.quantize, schedule, self.config.groups)

    @property
    def channels(self) -> int:
        """Number of channels of a code."""
        return self.config.code_dim

    @property
    def image_side(self) -> int:
        """Height and width, in pixels, of the images."""
        return self.config.image_side

    def start(self, noise: Noise) -> Tensor:
        """The noise that the decoder carries to pixels, standard normal (B, 3, h, w), of each image's own seed."""
        side = self.image_side
        return noise.normal(Stream.PIXELS, 0, side, 3 * side).unflatten(2, (3, side)).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latent_Bc1L: Tensor, start_B3hw: Tensor | None = None) -> Tensor:
        """The codes of the first groups of tokens -> images in [-1, 1], float32 (B, 3, h, w).

        `start_B3hw` is standard normal noise; without it that of seed 0, the same for all images.
        """
        return clamped(self._decode_latent(latent_Bc1L, start_B3hw).float())

    def conditions(self, latent_Bc1L: Tensor) -> Tensor:
        """The codes of the first tokens -> what they tell the flow, (B, L, C): each knows those before it."""
        latent = latent_Bc1L.to(self.quant_out_conv.weight.dtype)
        x = self.quant_out_conv(latent).flatten(2).transpose(1, 2)
        x = x + self.decoder_embedding.weight[: x.shape[1]]
        for layer in self.decoder_layers:
            x = layer(x, causal=True)
        return _plain_norm(x)

    def _decode_latent(self, latent_Bc1L: Tensor, start_B3hw: Tensor | None = None) -> Tensor:
        each = self.config.tokens // self.config.groups
        groups = latent_Bc1L.shape[-1] // each
        if groups == 0:
            raise ValueError(f"a latent of {latent_Bc1L.shape[-1]} tokens cannot be decoded; a group has {each}")
        if start_B3hw is None:
            start_B3hw = self.start(Noise([0] * len(latent_Bc1L), latent_Bc1L.device))
        images: Tensor = self.diff_decoder(start_B3hw, self.conditions(latent_Bc1L[..., : groups * each]), groups)
        return images

    def _encoded(self, images: Tensor) -> Tensor:
        patches = self.patchify(images.to(self.patchify.weight.dtype))
        side, tokens = patches.shape[-1], self.config.tokens
        queries = self.query_linear(self.query_embedding.weight[:tokens]).expand(len(images), -1, -1)
        x = torch.cat((_plain_norm(patches.flatten(2).transpose(1, 2)), queries), dim=1)
        cos, sin = rotation_on_grids((side,), side, HEAD_DIM, x.device)
        rotation = Rotation(F.pad(cos, (0, 0, 0, tokens), value=1.0), F.pad(sin, (0, 0, 0, tokens)))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        mask[:, : side**2] = True  # patches are seen by all, a query by itself and those after it
        for layer in self.encoder_layers:
            x = layer(x, rotation=rotation, mask=mask)
        found: Tensor = self.quant_in_conv(_plain_norm(x[:, -tokens:]).transpose(1, 2).unsqueeze(2))
        return found


def _heads(x_BLC: Tensor) -> Tensor:
    return x_BLC.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)


def _plain_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


REQUIRED = ("patchify.weight", "quantize.embedding.weight", "diff_decoder.net.conv_in.weight")
# Statistics of code usage, and what a loss of training reads of the decoder (REPA).
ONLY_TRAINING = ("quantize.codebook_used", "diff_decoder.net.repa_out.")
# The only values that our network supports; the published code has more.
FIXED: dict[str, Any] = {
    "query_low_rank": True, "vq_enable": True, "in_dim": 3, "out_dim": 3, "mlp_head": False,
    "share_time_encoding": False, "rope_base_len": 10000, "output_resolution": 0,
}  # fmt: skip


def _prepared(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The published configuration for `Told`: flat, with the number of tokens as a side."""
    inner = given.get("diff_decoder", {})
    if not isinstance(inner, Mapping):
        raise ValueError(f"{source}: diff_decoder is {inner!r}; it must be a mapping")
    renamed = {"dim": "flow_dim", "patch_size": "flow_patch", "depth": "flow_depth", "cond_dim": "decoder_dim"}
    flat: dict[str, Any] = {name: value for name, value in given.items() if name != "diff_decoder"}
    flat |= {renamed.get(str(name), str(name)): value for name, value in inner.items()}
    for name, value in FIXED.items():
        if flat.get(name, value) != value:
            raise ValueError(f"{source} says {name} is {flat[name]!r}; only {value!r} is supported")
    tokens = flat.pop("num_all_queries", None)
    if tokens is not None:
        if not isinstance(tokens, int) or tokens < 1 or isqrt(tokens) ** 2 != tokens:
            raise ValueError(f"{source} says num_all_queries is {tokens!r}; it must be a square, such as 256")
        flat["side"] = isqrt(tokens)
    each, groups = flat.pop("queries_per_step", None), flat.get("num_query_groups", PixelFlowVQConfig.groups)
    if None not in (each, tokens) and each * groups != tokens:
        raise ValueError(f"{source} says queries_per_step is {each!r}; only {tokens} / {groups} is supported")
    return flat


ARGUMENTS = Arguments(
    renamed={
        "encoder_patch_size": "encoder_patch", "num_encoder_layers": "encoder_depth", "vq_dim": "code_dim",
        "num_decoder_layers": "decoder_depth", "vq_codebook_size": "vocab_size", "num_query_groups": "groups",
        "num_denoising_steps": "groups", "sampling_resolution": "image_side",
    },
    ignored=frozenset({*FIXED, "grad_checkpointing", "repa_layer", "cfg"}),
    prepared=_prepared,
)  # fmt: skip


def empty_tokenizer(settings: Mapping[str, Any], source: str) -> nn.Module:
    """A tokenizer without weights."""
    return build(PixelFlowVQ, settings, source)


def tokenizer_from_tensors(
    tensors: Tensors, given: Mapping[str, Any], patch_nums: tuple[int, ...], source: str
) -> nn.Module:
    """The tokenizer of a published state dict, with as many tokens as the backbone draws."""
    told = Told.read(given, PixelFlowVQConfig, ARGUMENTS, "the configuration of the tokenizer")
    require(tensors, REQUIRED, source)
    settings = told.merged({**sizes_of(_sizes, tensors, source), "side": patch_nums[-1]})
    network = build(PixelFlowVQ, settings, source)
    fill(network, {name: t for name, t in tensors.items() if not name.startswith(ONLY_TRAINING)}, source)
    return network.float().eval()


def _sizes(tensors: Tensors) -> dict[str, Any]:
    vocabulary, channels = shape(tensors, "quantize.embedding.weight", 2)
    encoder_dim, _, encoder_patch, _ = shape(tensors, "patchify.weight", 4)
    flow_dim, pixels, _, _ = shape(tensors, "diff_decoder.net.conv_in.weight", 4)
    positions, query_dim = shape(tensors, "query_embedding.weight", 2)
    return {
        "vocab_size": vocabulary,
        "code_dim": channels,
        "encoder_dim": encoder_dim,
        "encoder_patch": encoder_patch,
        "encoder_depth": count(tensors, "encoder_layers."),
        "query_dim": query_dim,
        "positions": positions,
        "decoder_dim": shape(tensors, "decoder_embedding.weight", 2)[1],
        "decoder_depth": count(tensors, "decoder_layers."),
        "flow_dim": flow_dim,
        "flow_depth": count(tensors, "diff_decoder.net.blocks."),
        "flow_patch": isqrt(pixels // 3),
    }


FILES = TokenizerFiles("PixelFlowVQ", "a sequence of tokens", REQUIRED, tokenizer_from_tensors, empty_tokenizer)
NETWORKS = {"PixelFlowVQ": "tokenizer"}
