"""The FlowAR transformer (arXiv 2412.15205): next-scale prediction of continuous tokens, each map sampled with a flow.

Key-compatible with `FlowAR-S.pth`, `FlowAR-L.pth` and `FlowAR-H.pth`. The transformer predicts features for
every token of a scale from the coarser scales; a small network (`models.flow_head`) maps them to a velocity field
that transports noise to the tokens of the scale.

Letters: R rows (images, twice under guidance), L tokens, C width, K scales, c latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.conditions.condition import labels_of
from var_toolkit.core.cache import KVCache, cache_of, token_span
from var_toolkit.core.layers import Layers
from var_toolkit.core.schedule import Schedule, increasing_sides
from var_toolkit.formats.state_dicts import Arguments, Tensors, count, shape
from var_toolkit.heads.flow import Flow
from var_toolkit.heads.head import Setting
from var_toolkit.models.family import Family
from var_toolkit.models.layers.attention import Attend, RotaryAttention, block_causal, within_pyramid
from var_toolkit.models.layers.by_scale import ByScale
from var_toolkit.models.layers.flow_head import HEAD_DIM, MLP_RATIO, Field, FlowHead
from var_toolkit.models.layers.gated_mlp import GatedMLP, RMSNorm, modulated, ratio_of
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.next_scale import Modulation
from var_toolkit.models.layers.rotary import Rotation, rotation_on_grids
from var_toolkit.models.layers.starting import init_linears_and_norms
from var_toolkit.tokenizers.kl16 import FILES

GRID = 16  # side of the grid of RoPE positions, for any schedule


@dataclass(frozen=True)
class FlowARConfig:
    """Sizes of FlowAR; the defaults are those of FlowAR-S at 256 px."""

    embed_dim: int = 768
    encoder_depth: int = 6
    decoder_depth: int = 6
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    patch_nums: tuple[int, ...] = (1, 2, 4, 8, 16)
    latent_channels: int = 16
    head_depth: int = 2
    head_width: int = 1024
    cross_attention: bool = False
    input_side: int | None = None  # maps are enlarged to this before resizing to the next scale; None: finest
    dropout: float = 0.0  # of attention weights and of the outputs of attention and MLP, in training

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_nums", increasing_sides(self.patch_nums))
        for name in (
            "embed_dim", "encoder_depth", "decoder_depth", "num_heads", "num_classes", "latent_channels", "head_depth",
            "head_width",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(f"embed_dim is {self.embed_dim}; it must be a multiple of 4 * num_heads, {self.num_heads}")
        if self.head_width % HEAD_DIM:
            raise ValueError(f"head_width is {self.head_width}; it must be a multiple of {HEAD_DIM}")
        if int(self.embed_dim * self.mlp_ratio * 2 / 3) < 1:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; it must be large enough for one MLP channel")
        if self.input_side is not None and self.input_side < 1:
            raise ValueError(f"input_side is {self.input_side}; it must be a positive integer or null")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def depth(self) -> int:
        """Number of layers of both stacks."""
        return self.encoder_depth + self.decoder_depth


class Condition(NamedTuple):
    """Everything that depends only on the labels: computed once per run, used at every scale."""

    start_RC: Tensor  # noqa: N815
    blocks: list[Modulation]

    def of_rows(self, rows: Tensor | slice) -> Condition:
        """The condition of some of the rows."""
        return Condition(self.start_RC[rows], [block.of_rows(rows) for block in self.blocks])


class FlowARBlock(nn.Module):
    """Attention and gated MLP, each modulated by the class (AdaLN)."""

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.attn = RotaryAttention(width, config.num_heads, bias=True, dropout=config.dropout)
        self.mlp = GatedMLP(width, int(width * config.mlp_ratio * 2 / 3), config.dropout)
        self.ada_lin = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))

    def modulation(self, class_RC: Tensor) -> Modulation:
        """Class embedding (R, C) -> gates, scales (used as 1 + scale) and shifts, (R, 1, C) each."""
        return Modulation(*self.ada_lin(class_RC).unsqueeze(1).chunk(6, dim=-1))

    def forward(
        self, x_RLC: Tensor, m: Modulation, rotation: Rotation, attend: Attend, cache: KVCache | None, layer: int
    ) -> Tensor:
        h = self.attn(modulated(x_RLC, m.scale1, m.shift1), rotation, attend, cache, layer)
        x_RLC = torch.addcmul(x_RLC, h, m.gate1)
        return torch.addcmul(x_RLC, self.mlp(modulated(x_RLC, m.scale2, m.shift2)), m.gate2)


class FlowAR(ByScale, nn.Module):
    """Labels and the coarser maps -> features of each token of a scale -> the velocity field that generates the map.

    `forward` is the packed training pass; decoding calls `condition` once, then `hidden` and `field` scale by scale
    with a cache. Both are the same computation. The null class of guidance is `num_classes`.
    """

    markov = False
    default_head = Flow()

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__()
        self.config, self.scales = config, Schedule(config.patch_nums)
        width, total = config.embed_dim, self.scales.total
        # Not nn.Embedding(n, c): its initialisation imports torch.compile on the meta device. See init_weights.
        self.class_emb = nn.Embedding.from_pretrained(torch.zeros(config.num_classes + 1, width), freeze=False)
        self.z_proj, self.z_proj_ln = Linear(config.latent_channels, width), RMSNorm(width)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, total, width))
        self.encoder_blocks = nn.ModuleList(FlowARBlock(config) for _ in range(config.encoder_depth))
        self.encoder_norm = RMSNorm(width)
        self.decoder_embed = Linear(width, width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, total, width))
        self.decoder_blocks = nn.ModuleList(FlowARBlock(config) for _ in range(config.decoder_depth))
        self.decoder_norm = RMSNorm(width)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, total, width))
        self.flownet = FlowHead(
            config.latent_channels,
            config.head_width,
            config.head_depth,
            width,
            cross_attention=config.cross_attention,
        )

    @property
    def blocks(self) -> list[FlowARBlock]:
        """The layers of both stacks, in order."""
        return [cast(FlowARBlock, block) for block in chain(self.encoder_blocks, self.decoder_blocks)]

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `rows` rows (`core.cache.cache_of`)."""
        return cache_of(self, rows, capacities)

    def cache_values(self, tokens: int) -> int:
        """Number of cached values per row for `tokens` tokens of one layer."""
        return 2 * tokens * self.config.embed_dim

    def layer_work(self, new: int, context: int) -> int:
        """Multiply-adds per layer and row of `new` tokens that attend to `context` tokens, themselves included."""
        c = self.config
        return round(new * ((4 + 2 * c.mlp_ratio) * c.embed_dim**2 + 2 * context * c.embed_dim))

    def head_work(self, drawn: int) -> int:
        """Multiply-adds of one evaluation of the velocities of `drawn` tokens."""
        c, width = self.config, self.config.head_width
        weights = 4 + 2 * MLP_RATIO + (5 if c.cross_attention else 6)
        attention = 2 * drawn * width * (2 if c.cross_attention else 1)
        return drawn * (c.head_depth * (weights * width**2 + attention) + 2 * width**2 + 2 * width * c.latent_channels)

    def condition(self, given: Given) -> Condition:
        """Labels (`num_classes` is the null class) -> the modulation of every block."""
        start_RC = self.class_emb(labels_of(given, type(self).__name__))
        return Condition(start_RC, [block.modulation(start_RC) for block in self.blocks])

    def hidden(
        self,
        condition: Condition,
        inputs_RLc: Tensor | None,
        *,
        scales: range,
        schedule: Schedule | None = None,
        cache: KVCache | None = None,
        layers: Layers | None = None,
    ) -> Tensor:
        """Features (R, L, C) of the tokens of `scales`, computed in one block-causal pass.

        `inputs_RLc` are the previous maps, resized (`tokenizers.latent_pyramid`); scale 0 has none, since it starts
        from the class. A cache must hold exactly the scales before `scales`; these are appended. ValueError if it does
        not.
        """
        begin, end = token_span(cache, self.scales, scales)
        rotation = self._rotation(scales, self.config.embed_dim // self.config.num_heads)
        dropout = self.config.dropout if self.training else 0.0
        attend = block_causal(self.scales, scales, self.class_emb.weight.device, dropout)
        words = self._embed(condition, inputs_RLc, scales)
        x_RLC = self.z_proj_ln(words + self.encoder_pos_embed_learned[:, begin:end])
        for layer, block in enumerate(self.blocks):
            if layer == self.config.encoder_depth:
                x_RLC = self.decoder_embed(self.encoder_norm(x_RLC)) + self.decoder_pos_embed_learned[:, begin:end]
            x_RLC = block(x_RLC, condition.blocks[layer], rotation, attend, cache, layer)
        if cache is not None:
            cache.advance(end - begin)
        return self.decoder_norm(x_RLC) + self.diffusion_pos_embed_learned[:, begin:end]

    def field_of(self, hidden_RLC: Tensor, at: Setting) -> Field:
        """The velocity field of the scale at a place."""
        return self.field(hidden_RLC, at.scale)

    def field(self, hidden_RLC: Tensor, scale: int) -> Field:
        """The velocity field of one scale from its features (R, L, C)."""
        rotation = self._rotation(range(scale, scale + 1), HEAD_DIM)
        return Field(self.flownet, self.flownet.condition(hidden_RLC, rotation), rotation)

    def forward(self, labels_B: Tensor, inputs_BLc: Tensor, noisy_BLc: Tensor, times_BK: Tensor) -> Tensor:
        """The packed training pass: inputs of scales 1 .. K-1, noisy maps, times -> velocities (B, L, c), float32.

        Every scale of every image has its own time. In the head, tokens attend only to their own scale.
        """
        scales = range(len(self.scales))
        hidden = self.hidden(self.condition(Given(labels=labels_B)), inputs_BLc, scales=scales)
        rotation = self._rotation(scales, HEAD_DIM)
        attend = within_pyramid(self.scales, "block-diagonal")
        levels_L = self.scales.level_ids(hidden.device)
        return self.flownet(
            noisy_BLc, times_BK, self.flownet.condition(hidden, rotation), rotation, attend, levels_L
        ).float()

    def _rotation(self, scales: range, head_dim: int) -> Rotation:
        sides = self.scales.patch_nums[scales.start : scales.stop]
        return rotation_on_grids(sides, GRID, head_dim, self.class_emb.weight.device)

    def _embed(self, condition: Condition, inputs_RLc: Tensor | None, scales: range) -> Tensor:
        parts = []
        if scales.start == 0:
            parts.append(condition.start_RC.unsqueeze(1))
        if inputs_RLc is not None:
            parts.append(self.z_proj(inputs_RLc.to(self.z_proj.weight.dtype)))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def init_weights(self) -> None:
        """The published initialisation, which applies to every linear layer, also to the head's last one."""
        init_linears_and_norms(self)
        for table in (
            self.class_emb.weight,
            self.encoder_pos_embed_learned,
            self.decoder_pos_embed_learned,
            self.diffusion_pos_embed_learned,
        ):
            nn.init.normal_(table, std=0.02)


ARGUMENTS = Arguments(
    renamed={
        "encoder_embed_dim": "embed_dim", "decoder_embed_dim": "embed_dim",
        "encoder_num_heads": "num_heads", "decoder_num_heads": "num_heads",
        "class_num": "num_classes", "vae_embed_dim": "latent_channels", "scale": "patch_nums",
        "diffloss_d": "head_depth", "diffloss_w": "head_width", "cross": "cross_attention",
    },
    ignored=frozenset({
        "attn_dropout", "buffer_size", "img_size", "label_drop_prob", "norm_layer", "patch_size", "proj_dropout",
        "use_checkpoint", "vae_stride",
    }),
)  # fmt: skip
INPUT_SIDE = 16  # to which the published sampler enlarges every map, for any schedule
HEADS = {768: 12, 1024: 16, 1536: 16}  # of the published widths


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a FlowAR."""
    width, channels = shape(tensors, "z_proj.weight", 2)
    shape(tensors, "decoder_embed.weight", 2)
    shape(tensors, "encoder_pos_embed_learned", 3)
    frequencies, cross = "encoder_blocks.0.attn.rope.freqs", "flownet.res_blocks.0.crossattn.q.weight"
    found = {
        "embed_dim": width,
        "encoder_depth": count(tensors, "encoder_blocks."),
        "decoder_depth": count(tensors, "decoder_blocks."),
        "mlp_ratio": ratio_of(width, shape(tensors, "encoder_blocks.0.mlp.fc1_g.weight", 2)[0]),
        "num_classes": shape(tensors, "class_emb.weight", 2)[0] - 1,
        "latent_channels": channels,
        "head_depth": count(tensors, "flownet.res_blocks."),
        "head_width": shape(tensors, "flownet.input_proj.weight", 2)[0],
        "cross_attention": cross in tensors,
    }
    return {**found, **({"num_heads": width // (4 * len(tensors[frequencies]))} if frequencies in tensors else {})}


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines. The class conditions both stacks: equal widths."""
    decoder, encoder = tensors["decoder_embed.weight"].shape
    if decoder != encoder:
        raise ValueError(f"{source} has an encoder {encoder} wide and a decoder {decoder} wide; they must be the same")
    tables = [name for name in tensors if name.endswith("rope.freqs") and not name.startswith("flownet.")]
    if len({len(tensors[name]) for name in tables}) > 1:
        raise ValueError(f"{source} has layers with different numbers of heads; they must be the same")
    if "patch_nums" not in settings:
        settings["patch_nums"] = _doubling(tensors["encoder_pos_embed_learned"].shape[1], source)
    if "num_heads" not in settings and settings["embed_dim"] not in HEADS:
        raise ValueError(f"{source} does not determine the number of heads; give encoder_num_heads by --config")
    return {"num_heads": HEADS.get(settings["embed_dim"]), "input_side": INPUT_SIDE, **settings}


def _doubling(length: int, source: str) -> tuple[int, ...]:
    sides = [1]
    while Schedule(tuple(sides)).total < length:
        sides.append(2 * sides[-1])
    if Schedule(tuple(sides)).total != length:
        raise ValueError(
            f"{source} has {length} tokens, which do not fit scales that double from 1; give patch_nums by --config"
        )
    return tuple(sides)


FAMILY = Family(
    network=FlowAR,
    tokenizer=FILES,
    title="FlowAR",
    paper="2412.15205",
    cfg_off=1.0,
    way="next-scale prediction of continuous tokens: each map is sampled by a flow-matching head",
    required=("class_emb.weight", "z_proj.weight", "encoder_pos_embed_learned", "decoder_embed.weight"),
    dropped=("mask", "rope.freqs"),
    arguments=ARGUMENTS,
    sizes=sizes,
    completed=completed,
)
NETWORKS = {"FlowAR": "backbone"}
MODELS = {
    "stilllife-flowar": {
        "summary": "FlowAR, 3 layers and 3 of the head, continuous tokens, still lifes",
        "embedded": {"tokenizer": "stilllife-kl", "backbone": "stilllife-flowar"},
        "sampling": {"cfg": 2.0},
        "training": {
            "recipes": ("stilllife-flowar",), "images": 416_000, "judged": 1000, "agreement": 92.6, "distance": 29.9,
        },
    },
    "flowar-s": {
        "summary": "FlowAR, 12 layers, continuous tokens, ImageNet",
        "parameters": 172_000_000, "fid": 3.61,
        "files": {"tokenizer": "xwen99/mar-vae-kl16/kl16.ckpt", "backbone": "OliverRen/FlowAR/FlowAR-S.pth"},
        "sizes": {
            "backbone": {
                "embed_dim": 768, "encoder_depth": 6, "decoder_depth": 6, "num_heads": 12, "head_depth": 2,
                "head_width": 1024, "cross_attention": False, "input_side": 16,
            },
        },
        "sampling": {"cfg": 4.3},
    },
    "flowar-l": {
        "like": "flowar-s", "summary": "FlowAR, 16 layers, continuous tokens, ImageNet",
        "parameters": 587_000_000, "fid": 1.9,
        "files": {"backbone": "OliverRen/FlowAR/FlowAR-L.pth"},
        "sizes": {
            "backbone": {
                "embed_dim": 1024, "encoder_depth": 8, "decoder_depth": 8, "num_heads": 16, "head_depth": 12,
                "head_width": 1024, "cross_attention": True, "input_side": 16,
            },
        },
        "sampling": {"cfg": 2.4},
    },
    "flowar-h": {
        "like": "flowar-s", "summary": "FlowAR, 30 layers, continuous tokens, ImageNet",
        "parameters": 1_913_000_000, "fid": 1.65,
        "files": {"backbone": "OliverRen/FlowAR/FlowAR-H.pth"},
        "sizes": {
            "backbone": {
                "embed_dim": 1536, "encoder_depth": 15, "decoder_depth": 15, "num_heads": 16, "head_depth": 12,
                "head_width": 1536, "cross_attention": True, "input_side": 16,
            },
        },
        "sampling": {"cfg": 2.4, "steps": 50, "guidance_interval": (0.0, 0.7)},
    },
}  # fmt: skip
