"""STAR (arXiv 2406.10797): VAR from text, without AdaLN; text enters by the first token and by cross-attention.

Key-compatible with the published transformers of 256, 512 and 1024 px. Those with a second head that redraws the last
scales ("sampler") are not supported. The published program adds the cross-attention of the first row of a batch to all
rows; here each row has its own, so that an image does not depend on its batch.

Letters: R rows (images, twice under guidance), T text tokens, L tokens, C width, c latent channels, X text channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import log
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.conditions.condition import Condition, Request, text_of
from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.conditions.text import TextInput, as_one_length
from var_toolkit.core.cache import KVCache, cache_of, token_span
from var_toolkit.core.layers import Layers
from var_toolkit.core.pruning import PrunedPass, Sublayer, sublayers, whole
from var_toolkit.core.schedule import SCHEDULES, Schedule, increasing_sides
from var_toolkit.entries import TextSource
from var_toolkit.formats.next_scale_files import with_heads
from var_toolkit.formats.state_dicts import Arguments, Tensors, count, shape
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.head import Head
from var_toolkit.models.family import Family
from var_toolkit.models.layers.attention import MAX_LOG_SCALE, Attend, Constants, SelfAttention, constants_of
from var_toolkit.models.layers.by_scale import ByScale
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.next_scale import FeedForward, in_a_row, level_embeddings, through_layers
from var_toolkit.models.layers.rotary import Rotation, rotation_on_span
from var_toolkit.tokenizers.multiscale_vq import FILES

EPS = 1e-6


@dataclass(frozen=True)
class STARConfig:
    """Sizes of the transformer, and of the text that it reads; the defaults are those of 16 layers at 256 px."""

    depth: int = 16
    embed_dim: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    patch_nums: tuple[int, ...] = SCHEDULES["256"]
    vocab_size: int = 4096
    latent_channels: int = 32
    text_channels: int = field(default=1024, metadata={"range": (1, 65_536)})
    text_longest: int = field(default=77, metadata={"range": (1, 4096)})
    rope_norm: float = field(default=64.0, metadata={"range": (1e-3, 1e6)})  # position of the last row and column
    rope_theta: float = field(default=10_000.0, metadata={"range": (1e-3, 1e9)})

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_nums", increasing_sides(self.patch_nums))
        for name in ("depth", "embed_dim", "num_heads", "vocab_size", "latent_channels", "text_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(f"embed_dim is {self.embed_dim}; it must be a multiple of 4 * num_heads, {self.num_heads}")


class NormedMemoryAttention(nn.Module):
    """Cross-attention with queries and keys of unit length, whose keys and values are computed once."""

    def __init__(self, width: int, heads: int, channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = Linear(width, width, bias=False)
        self.mat_kv = Linear(channels, 2 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), log(4.0)))
        self.proj = Linear(width, width)

    def keys_and_values(self, text_RTX: Tensor) -> Tensor:
        """Keys and values of a text, (R, 2, H, T, D)."""
        bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
        found = self.mat_kv.with_bias(text_RTX, bias)
        k, v = rearrange(found, "r t (two h d) -> two r h t d", two=2, h=self.heads)
        return torch.stack((F.normalize(k.float(), dim=-1).to(v.dtype), v), dim=1)

    def forward(self, x_RLC: Tensor, memory_R2HTD: Tensor, mask_RT: Tensor) -> Tensor:
        """Attend to the text tokens for which the mask, bool, is true."""
        q = self.mat_q.with_bias(x_RLC, self.q_bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q = F.normalize(q.float(), dim=-1) * self.scale_mul_1H11.float().clamp(max=MAX_LOG_SCALE).exp()
        k, v = memory_R2HTD.to(x_RLC.dtype).unbind(1)
        found = F.scaled_dot_product_attention(q.to(v.dtype), k, v, mask_RT[:, None, None], scale=1.0)
        return self.proj(found.transpose(1, 2).flatten(2))


class STARBlock(nn.Module):
    """Self-attention, cross-attention to the text and MLP, each after the same plain norm."""

    def __init__(self, config: STARConfig) -> None:
        super().__init__()
        self.width = config.embed_dim
        self.attn = SelfAttention(self.width, config.num_heads, l2_norm=True)
        self.cross_attn = NormedMemoryAttention(self.width, config.num_heads, config.text_channels)
        self.ffn = FeedForward(self.width, round(self.width * config.mlp_ratio))

    def forward(
        self,
        x_RLC: Tensor,
        memory: tuple[Tensor, Tensor],
        rotation: Rotation,
        attend: Attend,
        cache: KVCache | None = None,
        layer: int = 0,
        constants: Constants | None = None,
        run: Sublayer = whole,
    ) -> Tensor:
        def attended(x_RLC: Tensor, kept_RL: Tensor | None) -> Tensor:
            own = rotation if kept_RL is None else rotation.at(kept_RL)
            found: Tensor = self.attn(self._normed(x_RLC), attend, cache, layer, own, constants)
            return found

        x_RLC = x_RLC + run(x_RLC, "attn", attended)
        x_RLC = x_RLC + run(x_RLC, "cross_attn", lambda x_RLC, _: self.cross_attn(self._normed(x_RLC), *memory))
        return x_RLC + run(x_RLC, "ffn", lambda x_RLC, _: self.ffn(self._normed(x_RLC)))

    def _normed(self, x_RLC: Tensor) -> Tensor:
        return F.layer_norm(x_RLC, (self.width,), eps=EPS)


class TextMemory(NamedTuple):
    """Everything that depends only on the text: computed once per run, used at every scale."""

    start: Tensor  # (R, C)
    cross: Tensor  # keys and values of every block, (R, N, 2, H, T, D)
    mask: Tensor  # (R, T), bool
    attention: list[Constants] | list[None]  # of every block

    def of_rows(self, rows: Tensor | slice) -> TextMemory:
        """The memory of some of the rows."""
        return TextMemory(self.start[rows], self.cross[rows], self.mask[rows], self.attention)


class STAR(ByScale, nn.Module):
    """Text and the tokenizer's inputs -> logits for the tokens of each scale."""

    config: STARConfig
    markov = False
    default_head: Head = Categorical()
    sublayers = ("attn", "cross_attn", "ffn")

    def __init__(self, config: STARConfig) -> None:
        super().__init__()
        self.config, width = config, config.embed_dim
        self.scales = Schedule(config.patch_nums)
        self.encoder_proj = nn.Linear(config.text_channels, width)
        self.pos_start = nn.Parameter(torch.zeros(1, self.scales.lengths[0], width))
        # Not nn.Embedding(n, c): its initialisation imports torch.compile on the meta device.
        self.lvl_embed = nn.Embedding.from_pretrained(torch.zeros(len(self.scales), width), freeze=False)
        self.word_embed = nn.Linear(config.latent_channels, width)
        self.blocks = nn.ModuleList(STARBlock(config) for _ in range(config.depth))
        self.head_logits = Linear(width, config.vocab_size)

    @property
    def text(self) -> TextInput:
        """The text that it reads; its null twin is the empty prompt."""
        c = self.config
        return TextInput(c.text_channels, c.text_longest, pooled=c.text_channels, learned_null=False)

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `rows` rows (`core.cache.cache_of`)."""
        return cache_of(self, rows, capacities)

    def cache_values(self, tokens: int) -> int:
        """Number of cached values per row for `tokens` tokens of one layer."""
        return 2 * tokens * self.config.embed_dim

    def layer_work(self, new: int, context: int) -> int:
        """Multiply-adds per layer and row of `new` tokens that attend to `context` tokens, themselves included.

        Those of cross-attention to the text are left out: it is short.
        """
        c = self.config
        return round(new * ((6 + 2 * c.mlp_ratio) * c.embed_dim**2 + 2 * context * c.embed_dim))

    def head_work(self, drawn: int) -> int:
        """Multiply-adds of the logits of `drawn` tokens."""
        return drawn * self.config.embed_dim * self.config.vocab_size

    def request(self, prompt: PromptEmbeds, null: PromptEmbeds | None = None) -> Request:
        """What images of some prompts are drawn from. ValueError without features of a null prompt."""
        if null is None:
            raise ValueError("STAR has learned no null text; give the features of an empty negative prompt")
        prompt, null = as_one_length(prompt, null)
        return Request(self._given(prompt), self._given(null))

    def _given(self, prompt: PromptEmbeds) -> Condition:
        cross = torch.stack([block.cross_attn.keys_and_values(prompt.features) for block in self._blocks], dim=1)
        return Condition(pooled=prompt.pooled, cross=cross, cross_mask=prompt.mask)

    @property
    def _blocks(self) -> list[STARBlock]:
        return [cast(STARBlock, block) for block in self.blocks]

    def condition(self, given: Condition) -> TextMemory:
        """The parts of a request -> the first token, and what cross-attention reads."""
        pooled, cross, mask = text_of(given, "STAR")
        constants = constants_of([block.attn for block in self._blocks])
        return TextMemory(self.encoder_proj(pooled), cross, mask, constants)

    def hidden(
        self,
        condition: TextMemory,
        inputs_RLc: Tensor | None,
        *,
        scales: range,
        schedule: Schedule | None = None,
        cache: KVCache | None = None,
        layers: Layers | None = None,
        pruned: PrunedPass | None = None,
    ) -> Tensor:
        """Features (R, L, C) of the tokens of `scales`, computed in one block-causal pass.

        `inputs_RLc` are the tokenizer's inputs of these scales; scale 0 has none, since it starts from the text. A
        cache must hold exactly the scales before `scales`; these are appended. ValueError if it does not. In a
        `pruned` pass layers compute some tokens.
        """
        begin, end = token_span(cache, self.scales, scales)
        x_RLC = self._embed(condition, inputs_RLc, scales)
        rotation = Rotation(*(table[begin:end] for table in self.rotation()))

        def step(x_RLC: Tensor, layer: int, attend: Attend) -> Tensor:
            memory = (condition.cross[:, layer], condition.mask)
            own = Rotation(*(table[: x_RLC.shape[1]] for table in rotation))
            constants = condition.attention[layer]
            run = sublayers(pruned, layer)
            found: Tensor = self.blocks[layer](x_RLC, memory, own, attend, cache, layer, constants, run)
            return found

        x_RLC = through_layers(step, x_RLC, len(self.blocks), scales, self.scales, layers)
        if cache is not None:
            cache.advance(end - begin)
        return x_RLC

    def logits(self, condition: TextMemory, hidden_RLC: Tensor) -> Tensor:
        """Features -> logits (R, L, V), float32."""
        return self.head_logits(F.layer_norm(hidden_RLC, (self.config.embed_dim,), eps=EPS)).float()

    def forward(self, condition: Condition, inputs_BLc: Tensor) -> Tensor:
        """The packed pass: a condition, teacher inputs of scales 1 .. K-1 -> logits (B, L, V), float32."""
        found = self.condition(condition)
        return self.logits(found, self.hidden(found, inputs_BLc, scales=range(len(self.scales))))

    def rotation(self) -> Rotation:
        """RoPE of every token: the rows and columns of every scale reach from 0 to the same position."""
        return known_rotation(self.config, self.head_logits.weight.device)

    def _embed(self, condition: TextMemory, inputs_RLc: Tensor | None, scales: range) -> Tensor:
        parts = [condition.start.unsqueeze(1) + self.pos_start] if scales.start == 0 else []
        if inputs_RLc is not None:
            parts.append(self.word_embed(inputs_RLc.to(self.word_embed.weight.dtype)))
        return in_a_row(parts) + level_embeddings(self.lvl_embed, self.scales, scales)


@lru_cache(maxsize=8)
def known_rotation(config: STARConfig, device: torch.device) -> Rotation:
    """RoPE of all scales, computed once."""
    with torch.inference_mode(False):  # training could not use an inference tensor
        head_dim = config.embed_dim // config.num_heads
        return rotation_on_span(config.patch_nums, config.rope_norm, head_dim, device, config.rope_theta)


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a STAR."""
    width, channels = shape(tensors, "word_embed.weight", 2)
    return {
        "depth": count(tensors, "blocks."),
        "embed_dim": width,
        "num_heads": shape(tensors, "blocks.0.attn.scale_mul_1H11", 4)[1],
        "mlp_ratio": shape(tensors, "blocks.0.ffn.fc1.weight", 2)[0] / width,
        "latent_channels": channels,
        "vocab_size": shape(tensors, "head_logits.weight", 2)[0],
        "text_channels": shape(tensors, "encoder_proj.weight", 2)[1],
    }


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by the schedule, of which the tensors tell the number of scales alone: 256 or 1024 px."""
    if "head_logits2.weight" in tensors:
        raise ValueError(f"{source} has the second head of STAR's sampler, which is not supported; give a plain model")
    scales = shape(tensors, "lvl_embed.weight", 2)[0]
    known = [sides for sides in (SCHEDULES["256"], SCHEDULES["1024"]) if len(sides) == scales]
    if "patch_nums" not in settings and not known:
        raise ValueError(f"{source} has {scales} scales, as no published schedule; give patch_nums by --config")
    return with_heads({"patch_nums": known[0] if known else None, **settings}, tensors, source)


FAMILY = Family(
    network=STAR,
    tokenizer=FILES,
    title="STAR",
    paper="2406.10797",
    text_encoder=TextSource(
        source="stabilityai/stable-diffusion-2-1/text_encoder",
        kind="clip",
        tokenizer="stabilityai/stable-diffusion-2-1/tokenizer",
        license="openrail++",
    ),
    way="next-scale prediction from text: each token map is predicted from all coarser ones and the text",
    required=("encoder_proj.weight", "head_logits.weight", "word_embed.weight", "blocks.0.cross_attn.mat_kv.weight"),
    dropped=("zero_k_bias", "class_emb.weight"),  # the class embedding is a relic of VAR and never read
    arguments=Arguments(
        renamed={"v_patch_nums": "patch_nums", "in_dim_cross": "text_channels"},
        ignored=frozenset({"num_classes", "norm_eps", "attn_l2_norm", "shared_aln", "enable_cross", "train_mode"}),
    ),
    sizes=sizes,
    completed=completed,
)
NETWORKS = {"STAR": "backbone"}
