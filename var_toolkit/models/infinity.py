"""Infinity (arXiv 2412.04431): next-scale prediction of bits from text, at 15 aspect ratios.

Key-compatible with `infinity_2b_reg.pth`, `infinity_125M_256x256.pth` and the shards of Infinity-8B.
Letters: B images, R rows (images, twice under guidance), T text tokens, L tokens, C width, D bits of a token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log, sqrt
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.conditions.condition import Request, text_of
from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.conditions.text import TextInput, as_one_length
from var_toolkit.core.cache import KVCache, cache_of, token_span
from var_toolkit.core.filters import guide
from var_toolkit.core.layers import Layers
from var_toolkit.core.pruning import PrunedPass, Sublayer, sublayers, whole
from var_toolkit.core.schedule import Schedule, increasing_sides
from var_toolkit.formats.state_dicts import Arguments, Tensors, count, shape
from var_toolkit.heads.bits import Bits
from var_toolkit.heads.head import Head
from var_toolkit.models.family import Family
from var_toolkit.models.layers.aspect_ratios import schedule_ending, whole_schedule
from var_toolkit.models.layers.attention import Attend, Constants, MemoryAttention, SelfAttention, constants_of
from var_toolkit.models.layers.by_scale import ByScale
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.next_scale import (
    FeedForward,
    HeadNorm,
    ModulatedBlock,
    Modulation,
    drop_rates,
    in_a_row,
    level_embeddings,
    modulation_of,
    through_layers,
)
from var_toolkit.models.layers.rotary import Rotation, rotation_on_places
from var_toolkit.registry import published
from var_toolkit.tokenizers.bsq import FILES, SIDES

FEW, MANY = {"range": (1, 4096)}, {"range": (1, 65_536)}


@dataclass(frozen=True)
class InfinityConfig:
    """Sizes of Infinity; the defaults are those of `infinity_2b_reg.pth`.

    With `aspect_ratios` it draws the published schedules and others that begin like them; without, `patch_nums` alone,
    whose tokens have positions on a grid of `reference_side` rows and columns.
    """

    depth: int = 32
    embed_dim: int = 2048
    num_heads: int = 16
    mlp_ratio: float = 4.0
    token_bits: int = field(default=32, metadata=FEW)
    text_channels: int = field(default=2048, metadata=MANY)
    text_longest: int = field(default=512, metadata=MANY)
    patch_nums: tuple[int, ...] = SIDES  # of the maps that are drawn by default
    aspect_ratios: bool = True
    reference_side: int = field(default=64, metadata=FEW)
    levels: int = field(default=15, metadata=FEW)  # scales that the network can tell apart
    norm_eps: float = 1e-6
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_nums", increasing_sides(self.patch_nums))
        for name in ("depth", "embed_dim", "num_heads", "token_bits", "text_channels", "text_longest", "levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        for name, heads in (("num_heads", self.num_heads), ("text_channels over 128", self.pool_heads)):
            if self.embed_dim % heads:
                raise ValueError(f"embed_dim is {self.embed_dim}; it must be a multiple of {name}, {heads}")
        if self.embed_dim // self.num_heads % 4:
            raise ValueError(
                f"embed_dim over num_heads is {self.embed_dim // self.num_heads}; RoPE asks for multiples of 4"
            )
        if self.patch_nums[0] != 1 or len(self.patch_nums) > self.levels:
            raise ValueError(
                f"patch_nums is {list(self.patch_nums)}; it must begin with 1 and have at most {self.levels}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it must be at least 0 and below 1")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers: a multiple of 256, but for small networks."""
        exact = round(self.embed_dim * self.mlp_ratio)
        return round(exact / 256) * 256 or exact

    @property
    def pool_heads(self) -> int:
        """Heads of the attention that pools the text."""
        return max(1, self.text_channels // (64 if self.embed_dim > 4096 else 128))


class Condition(NamedTuple):
    """Everything that depends only on the text: computed once per run, used at every scale."""

    start_RC: Tensor  # noqa: N815
    blocks: list[Modulation]
    head_scale: Tensor  # one plus scale, (R, 1, C)
    head_shift: Tensor
    cross: Tensor  # keys and values of every block, (R, N, 2, H, T, D)
    cross_mask: Tensor  # (R, T), bool

    def of_rows(self, rows: Tensor | slice) -> Condition:
        """The condition of some of the rows."""
        blocks = [block.of_rows(rows) for block in self.blocks]
        rest = (self.head_scale, self.head_shift, self.cross, self.cross_mask)
        return Condition(self.start_RC[rows], blocks, *(part[rows] for part in rest))


class TextPool(nn.Module):
    """One learned query that attends to all text tokens: the vector of a text. Keys have no bias."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.heads, width = config.pool_heads, config.embed_dim
        self.mat_q = nn.Parameter(torch.zeros(1, self.heads, width // self.heads))
        self.mat_kv = Linear(config.text_channels, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)

    def forward(self, text_RTC: Tensor, mask_RT: Tensor) -> Tensor:
        found = self.mat_kv.with_bias(text_RTC, torch.cat((torch.zeros_like(self.v_bias), self.v_bias)))
        k, v = rearrange(found, "r t (two h d) -> two r h t d", two=2, h=self.heads)
        q = self.mat_q[:, :, None].expand(len(k), -1, -1, -1).to(k.dtype)
        pooled = F.scaled_dot_product_attention(q, k, v, mask_RT[:, None, None])
        return self.proj(pooled.flatten(1))


class TextBlock(ModulatedBlock):
    """Self-attention, cross-attention to the text, MLP; the first and the last are modulated by the pooled text."""

    def __init__(self, config: InfinityConfig, drop_path: float) -> None:
        width = config.embed_dim
        super().__init__(width, config.norm_eps, drop_path)
        self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / sqrt(width))
        self.sa = SelfAttention(width, config.num_heads, l2_norm=True)
        self.ca_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.ca = MemoryAttention(width, config.num_heads)
        self.ffn = FeedForward(width, config.hidden)

    def modulation(self, shared_R16C: Tensor, attention: Constants | None) -> Modulation:
        """The values that all blocks share -> those of this block."""
        return modulation_of(shared_R16C + self.ada_gss, attention)

    def forward(
        self,
        x_RLC: Tensor,
        m: Modulation,
        memory: tuple[Tensor, Tensor],
        rotation: Rotation,
        attend: Attend,
        cache: KVCache | None = None,
        layer: int = 0,
        run: Sublayer = whole,
    ) -> Tensor:
        def attended(x_RLC: Tensor, kept_RL: Tensor | None) -> Tensor:
            own = rotation if kept_RL is None else rotation.at(kept_RL)
            found: Tensor = self.sa(self._modulated(x_RLC, m.scale1, m.shift1), attend, cache, layer, own, m.attention)
            return found

        def of_text(x_RLC: Tensor, _: Tensor | None) -> Tensor:
            found: Tensor = self.ca(self.ca_norm(x_RLC), *memory)
            return found

        def fed_forward(x_RLC: Tensor, _: Tensor | None) -> Tensor:
            found: Tensor = self.ffn(self._modulated(x_RLC, m.scale2, m.shift2))
            return found

        h = run(x_RLC, "sa", attended)
        x_RLC = torch.addcmul(x_RLC, self._stochastic_depth(h), m.gate1)
        x_RLC = x_RLC + self._stochastic_depth(run(x_RLC, "ca", of_text))
        h = run(x_RLC, "ffn", fed_forward)
        return torch.addcmul(x_RLC, self._stochastic_depth(h), m.gate2)


class Infinity(ByScale, nn.Module):
    """Text and the tokenizer's inputs -> logits for the bits of each scale.

    `forward` is the packed training pass; decoding calls `request` and `condition` once, then `hidden` and `logits`
    scale by scale with a cache. Both are the same computation.
    """

    config: InfinityConfig
    markov = False
    has_subnets = True
    mixes_within = True
    default_head: Head = Bits()
    sublayers: tuple[str, ...] = ("sa", "ca", "ffn")

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config, width = config, config.embed_dim
        self.scales = Schedule(config.patch_nums)
        self.cfg_uncond = nn.Parameter(torch.zeros(config.text_longest, config.text_channels))
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.text_norm = nn.RMSNorm(config.text_channels, eps=1e-6)
        self.text_pool = TextPool(config)
        self.text_proj_for_ca = nn.Sequential(
            Linear(config.text_channels, width), nn.GELU(approximate="tanh"), Linear(width, width)
        )
        # Not nn.Embedding(n, c): its initialisation imports torch.compile on the meta device.
        self.lvl_embed = nn.Embedding.from_pretrained(torch.zeros(config.levels, width), freeze=False)
        self.word_embed = nn.Linear(config.token_bits, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(TextBlock(config, rate) for rate in drop_rates(config.depth, config.drop_path))
        self.head_nm = HeadNorm(width)
        self.head = Linear(width, 2 * config.token_bits)

    @property
    def text(self) -> TextInput:
        """The text that it reads."""
        return TextInput(self.config.text_channels, self.config.text_longest)

    @property
    def _blocks(self) -> list[TextBlock]:
        return [cast(TextBlock, block) for block in self.blocks]

    def guidance_ramp(self, schedule: Schedule) -> tuple[float, ...]:
        """Guidance is the same at every scale."""
        return (1.0,) * len(schedule)

    def schedule_for(self, height: int, width: int) -> Schedule:
        """The schedule that ends with a map of this size: a published one, or one that begins like those."""
        return schedule_ending(height, width) if self.config.aspect_ratios else super().schedule_for(height, width)

    def require_schedule(self, schedule: Schedule) -> None:
        """ValueError unless positions are known for the schedule."""
        if not self.config.aspect_ratios:
            super().require_schedule(schedule)
        elif whole_schedule(schedule) is None or len(schedule) > self.config.levels:
            raise ValueError(
                f"schedule is {schedule}; Infinity draws schedules that begin like one of its aspect ratios, such as "
                f"{schedule_ending(16, 16)}; give size instead"
            )

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `rows` rows (`core.cache.cache_of`)."""
        return cache_of(self, rows, capacities)

    def cache_values(self, tokens: int) -> int:
        """Number of cached values per row for `tokens` tokens of one layer."""
        return 2 * tokens * self.config.embed_dim

    def layer_work(self, new: int, context: int) -> int:
        """Multiply-adds per layer and row of `new` tokens that attend to `context` tokens, themselves included.

        Those of cross-attention to the text are left out: its keys and values are computed once, and it is short.
        """
        c = self.config
        return new * (6 * c.embed_dim**2 + 2 * c.embed_dim * c.hidden + 2 * context * c.embed_dim)

    def head_work(self, drawn: int) -> int:
        """Multiply-adds of the logits of `drawn` tokens."""
        return drawn * self.config.embed_dim * 2 * self.config.token_bits

    def request(self, prompt: PromptEmbeds, null: PromptEmbeds | None = None) -> Request:
        """What images of some prompts are drawn from, computed once for all scales.

        Without a `null` prompt the null twin of a prompt of n tokens is the first n of the learned features.
        """
        if null is not None:
            prompt, null = as_one_length(prompt, null)
            texts, masks = (prompt.features, null.features), (prompt.mask, null.mask)
        else:
            texts, masks = (prompt.features, self._null_text(prompt.features)), (prompt.mask, prompt.mask)
        both, count = self._given(torch.cat(texts), torch.cat(masks)), len(prompt)  # each weight is read once
        return Request(both.of_rows(slice(count)), both.of_rows(slice(count, None)))

    def _null_text(self, like_RTC: Tensor) -> Tensor:
        """The learned features, as many as a text has, (R, T, C)."""
        return self.cfg_uncond[: like_RTC.shape[1]].to(like_RTC.dtype).expand_as(like_RTC)

    def _given(self, text_RTC: Tensor, mask_RT: Tensor) -> Given:
        normed = self.text_norm(text_RTC)
        memory = self.text_proj_for_ca(normed)
        cross = torch.stack([block.ca.keys_and_values(memory) for block in self._blocks], dim=1)
        return Given(pooled=self.text_pool(normed, mask_RT), cross=cross, cross_mask=mask_RT)

    def condition(self, given: Given) -> Condition:
        """The parts of a request -> the modulation of every block and of the head, and what cross-attention reads."""
        pooled, cross, mask = text_of(given, "Infinity")
        shared = self.shared_ada_lin(pooled).view(-1, 1, 6, self.config.embed_dim)
        constants = constants_of([block.sa for block in self._blocks])
        blocks = [block.modulation(shared, own) for block, own in zip(self._blocks, constants, strict=True)]
        head_scale, head_shift = self.head_nm(pooled)
        return Condition(pooled, blocks, head_scale, head_shift, cross, mask)

    def hidden(
        self,
        condition: Condition,
        inputs_RLD: Tensor | None,
        *,
        scales: range,
        schedule: Schedule | None = None,
        cache: KVCache | None = None,
        layers: Layers | None = None,
        pruned: PrunedPass | None = None,
        mixed: tuple[int, float] | None = None,
    ) -> Tensor:
        """Features (R, L, C) of the tokens of `scales`, computed in one block-causal pass.

        `inputs_RLD` are the tokenizer's inputs of these scales; scale 0 has none, since it starts from the text. A
        cache must hold exactly the scales before `scales`; these are appended. ValueError if it does not. Layers that
        `layers` skip compute only the first scales (`through_layers`); in a `pruned` pass layers compute some tokens.
        After the layer of `mixed` both halves of the rows have the features that guidance of its weight makes of them.
        """
        schedule = schedule or self.scales
        begin, end = token_span(cache, schedule, scales)
        x_RLC = self._embed(condition, inputs_RLD, scales, schedule)
        cos, sin = self._rotation(scales, schedule, x_RLC.device)

        def step(x_RLC: Tensor, layer: int, attend: Attend) -> Tensor:
            count, memory = x_RLC.shape[1], (condition.cross[:, layer], condition.cross_mask)
            modulation, rotation = condition.blocks[layer], Rotation(cos[:count], sin[:count])
            run = sublayers(pruned, layer)
            found: Tensor = self.blocks[layer](x_RLC, modulation, memory, rotation, attend, cache, layer, run)
            return guide(found, mixed[1]).repeat(2, 1, 1) if mixed is not None and mixed[0] == layer else found

        x_RLC = through_layers(step, x_RLC, len(self.blocks), scales, schedule, layers)
        if cache is not None:
            cache.advance(end - begin)
        return x_RLC

    def logits(self, condition: Condition, hidden_RLC: Tensor) -> Tensor:
        """Features -> logits (R, L, 2 D), float32."""
        normed = F.layer_norm(hidden_RLC, (self.config.embed_dim,), eps=self.config.norm_eps)
        return self.head(torch.addcmul(condition.head_shift, normed, condition.head_scale)).float()

    def forward(
        self,
        text_BTC: Tensor,
        mask_BT: Tensor,
        inputs_BLD: Tensor,
        dropped_B: Tensor | None = None,
        schedule: Schedule | None = None,
    ) -> Tensor:
        """The packed training pass: text, teacher inputs of scales 1 .. K-1 -> logits (B, L, 2 D), float32.

        Images that are `dropped`, bool, are trained without their text. `schedule` is the network's own by default.
        """
        schedule = schedule or self.scales
        condition = self._read(text_BTC, mask_BT, dropped_B)
        hidden = self.hidden(condition, inputs_BLD, scales=range(len(schedule)), schedule=schedule)
        return self.logits(condition, hidden)

    def _read(self, text_BTC: Tensor, mask_BT: Tensor, dropped_B: Tensor | None) -> Condition:
        """The condition of texts, the learned null text in place of those that are dropped."""
        if dropped_B is not None:
            text_BTC = torch.where(dropped_B[:, None, None], self._null_text(text_BTC), text_BTC)
        return Infinity.condition(self, self._given(text_BTC, mask_BT))

    def _embed(self, condition: Condition, inputs_RLD: Tensor | None, scales: range, schedule: Schedule) -> Tensor:
        parts = []
        if scales.start == 0:
            parts.append(condition.start_RC.unsqueeze(1) + self.pos_start)
        if inputs_RLD is not None:
            parts.append(self.word_embed(inputs_RLD.to(self.word_embed.weight.dtype)))
        return in_a_row(parts) + level_embeddings(self.lvl_embed, schedule, scales)

    def _rotation(self, scales: range, schedule: Schedule, device: torch.device) -> Rotation:
        """RoPE of the tokens of some scales, on the grid of the largest image of that aspect ratio."""
        maps = schedule.maps[scales.start : scales.stop]
        return rotation_on_places(maps, self._grid(schedule), self.config.embed_dim // self.config.num_heads, device)

    def _grid(self, schedule: Schedule) -> tuple[int, int]:
        """Rows and columns on which tokens have positions: the largest map of that aspect ratio."""
        whole = whole_schedule(schedule) if self.config.aspect_ratios else None
        return whole.maps[-1] if whole is not None else (self.config.reference_side,) * 2

    @torch.no_grad()
    def init_weights(self, *, adaln_gamma: float = 5e-6, head: float = 0.02) -> None:
        """The published initialisation: `adaln_gamma` scales the gates of residual branches, `head` the last layer."""
        std, depth = sqrt(1 / (3 * self.config.embed_dim)), self.config.depth
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        for learned in (self.pos_start, self.text_pool.mat_q):
            nn.init.trunc_normal_(learned, std=std)
        nn.init.normal_(self.cfg_uncond, std=self.config.text_channels**-0.5)
        self.head.weight.mul_(head)
        cast(nn.Linear, self.head_nm.ada_lin[1]).weight.mul_(1e-3)
        for block in self._blocks:
            for last in (block.sa.proj, block.ca.proj, block.ffn.fc2):
                last.weight.div_(sqrt(2 * depth))
            block.ada_gss[:, :, :2].mul_(adaln_gamma)
            block.ada_gss[:, :, 2:].mul_(1e-3)
            block.sa.scale_mul_1H11.fill_(log(4))


CHUNKED = re.compile(r"^block_chunks\.(\d+)\.module\.(\d+)\.")
DROPPED = ("zero_k_bias",)
REQUIRED = ("text_norm.weight", "cfg_uncond", "word_embed.weight", "shared_ada_lin.1.weight", "head.weight")
ARGUMENTS = Arguments(
    renamed={"text_maxlen": "text_longest", "d_vae": "token_bits"},
    ignored=frozenset({
        "block_chunks", "shared_aln", "fused_norm", "rope2d_each_sa_layer", "rope2d_normalized_by_hw",
        "add_lvl_embeding_only_first_block", "use_bit_label", "pad_to_multiplier", "customized_flash_attn",
        "cond_drop_rate", "inference_mode", "apply_spatial_patchify",
    }),
)  # fmt: skip


def counted_through(tensors: Tensors) -> Tensors:
    """The tensors with blocks numbered from the first to the last; the files number them within chunks."""
    each = count(tensors, "block_chunks.0.module.")
    return {CHUNKED.sub(lambda m: f"blocks.{int(m[1]) * each + int(m[2])}.", name): t for name, t in tensors.items()}


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of an Infinity."""
    width, bits = shape(tensors, "word_embed.weight", 2)
    longest, channels = shape(tensors, "cfg_uncond", 2)
    return {
        "depth": count(tensors, "blocks."),
        "embed_dim": width,
        "num_heads": shape(tensors, "blocks.0.sa.scale_mul_1H11", 4)[1],
        "mlp_ratio": shape(tensors, "blocks.0.ffn.fc1.weight", 2)[0] / width,
        "token_bits": bits,
        "text_channels": channels,
        "text_longest": longest,
        "levels": shape(tensors, "lvl_embed.weight", 2)[0],
    }


def completed_as(family: str, usual: tuple[int, ...]) -> Callable[[dict[str, Any], Tensors, str], dict[str, Any]]:
    """How sizes are completed by the maps of the family's published model with that file name, else of that width."""

    def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
        if "patch_nums" not in settings:
            known = [found for _, found in published(family)]
            named = [one for one in known if Path(one.files["backbone"][1]).name in Path(source).parts[-2:]]
            alike = [one for one in known if one.configs["backbone"]["embed_dim"] == settings["embed_dim"]]
            configs = [one.configs["backbone"]["patch_nums"] for one in (*named, *alike)]
            settings["patch_nums"] = next(iter(configs), usual)
        return settings

    return completed


FAMILY = Family(
    network=Infinity,
    tokenizer=FILES,
    title="Infinity",
    paper="2412.04431",
    cfg_off=1,
    way="next-scale prediction of bits: each map of bits is predicted from all coarser ones and the text",
    required=REQUIRED,
    dropped=DROPPED,
    unchunked=counted_through,
    renamed=lambda name: name.replace("text_proj_for_sos.ca.", "text_pool."),
    arguments=ARGUMENTS,
    sizes=sizes,
    completed=completed_as("infinity", SIDES),
)
NETWORKS = {"Infinity": "backbone"}
MODELS = {
    "scenes-infinity": {
        "summary": "Infinity, 6 layers, scenes from text", "resolution": 128, "class_names": "none",
        "embedded": {"tokenizer": "scenes-tokenizer", "backbone": "scenes-infinity", "text_encoder": "scenes-words"},
        "sampling": {"cfg": 3.0, "top_k": 0, "top_p": 0.97, "temperature": 0.5},
        "training": {"recipes": ("scenes-infinity",), "images": 631_000},
    },
    "scenes-infinity-small": {
        "like": "scenes-infinity", "summary": "Infinity, 3 layers, scenes from text",
        "embedded": {
            "tokenizer": "scenes-tokenizer", "backbone": "scenes-infinity-small", "text_encoder": "scenes-words",
        },
        "training": {"recipes": ("scenes-infinity-small",), "images": 64_000},
    },
    "scenes-code-4": {
        "like": "scenes-infinity", "summary": "CoDe: the deep one for 4 scales, then the small one",
        "embedded": {
            "tokenizer": "scenes-tokenizer", "backbone": "scenes-infinity", "refiner": "scenes-infinity-small",
            "text_encoder": "scenes-words",
        },
        "draft_scales": 4,
        "training": {"recipes": ("scenes-infinity", "scenes-infinity-small")},
    },
    "infinity-125m": {
        "summary": "Infinity, 12 layers, text to image",
        "parameters": 125_000_000, "license": "mit", "class_names": "none",
        "files": {
            "tokenizer": "FoundationVision/Infinity/infinity_vae_d16.pth",
            "backbone": "FoundationVision/Infinity/infinity_125M_256x256.pth",
        },
        "sizes": {
            "tokenizer": {"codebook_dim": 16, "patch_nums": (1, 2, 4, 6, 8, 12, 16)},
            "backbone": {
                "depth": 12, "embed_dim": 768, "num_heads": 8, "token_bits": 16,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16),
            },
        },
        "sampling": {"cfg": 3.0, "top_p": 0.97, "temperature": 0.5},
        "text_encoder": {"source": "google/flan-t5-xl", "kind": "t5", "license": "apache-2.0"},
    },
    "infinity-2b": {
        "like": "infinity-125m", "summary": "Infinity, 32 layers, text to image", "resolution": 1024,
        "parameters": 2_200_000_000,
        "files": {
            "tokenizer": "FoundationVision/Infinity/infinity_vae_d32reg.pth",
            "backbone": "FoundationVision/Infinity/infinity_2b_reg.pth",
        },
        "sizes": {
            "tokenizer": {"codebook_dim": 32, "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)},
            "backbone": {
                "depth": 32, "embed_dim": 2048, "num_heads": 16, "token_bits": 32,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
            },
        },
        "sampling": {"cfg": 4.0},
    },
    "infinity-8b": {
        "like": "infinity-2b", "summary": "Infinity, 40 layers, text to image",
        "parameters": 8_380_000_000,
        "files": {
            "tokenizer": "FoundationVision/Infinity/infinity_vae_d56_f8_14_patchify.pth",
            "backbone": "FoundationVision/Infinity/infinity_8b_weights/",
        },
        "sizes": {
            "tokenizer": {
                "codebook_dim": 14, "ch_mult": (1, 2, 4, 4), "patchify": True,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
            },
            "backbone": {
                "depth": 40, "embed_dim": 3584, "num_heads": 28, "token_bits": 56,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
            },
        },
        "sampling": {"cfg": 3.0, "temperature": 1.0},
    },
    "infinity-8b-512": {
        "like": "infinity-8b", "summary": "Infinity, 40 layers, 512 px, text to image", "resolution": 512,
        "files": {"backbone": "FoundationVision/Infinity/infinity_8b_512x512_weights/"},
        "sizes": {
            "tokenizer": {
                "codebook_dim": 14, "ch_mult": (1, 2, 4, 4), "patchify": True,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32),
            },
            "backbone": {
                "depth": 40, "embed_dim": 3584, "num_heads": 28, "token_bits": 56,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32),
            },
        },
    },
}  # fmt: skip
