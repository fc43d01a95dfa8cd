"""The GPT of LlamaGen (arXiv 2406.06525): next-token prediction over one token map in raster order.

Key-compatible with `c2i_B_256.pt` ... `c2i_3B_384.pt`. The class is at position 0, token i at position 1 + i.

Letters: R rows (images, twice under guidance), L tokens, C width, V vocabulary, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition, labels_of
from var_toolkit.core.cache import KVCache, RaggedCache, cache_of
from var_toolkit.core.plan import Tokens
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.llamagen_arguments import ARGUMENTS
from var_toolkit.formats.state_dicts import Tensors, count, shape
from var_toolkit.heads.categorical import Categorical
from var_toolkit.models.family import Family
from var_toolkit.models.layers.attention import Attend
from var_toolkit.models.layers.by_scale import OwnSchedule
from var_toolkit.models.layers.gated_mlp import RMSNorm
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.raster_layers import RasterAttention, RasterMLP
from var_toolkit.models.layers.raster_positions import Branches, additions_at, rotation_and_attend, rotation_with_class
from var_toolkit.models.layers.rotary import Rotation
from var_toolkit.tokenizers.raster_vq import FILES

Cache = TypeVar("Cache", bound=KVCache)
EPS = 1e-5
HIDDEN_MULTIPLE = 256
# Layers, heads and width of the published sizes.
PUBLISHED = {"b": (12, 12, 768), "l": (24, 16, 1024), "xl": (36, 20, 1280), "xxl": (48, 24, 1536), "3b": (24, 32, 3200)}


def usual_hidden(width: int) -> int:
    """The published width of the MLP: 8/3 of the width, rounded up to a multiple of 256."""
    return -(-int(8 * width / 3) // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE


@dataclass(frozen=True)
class RasterSizes:
    """Sizes of the transformer apart from its condition; the defaults are those of LlamaGen-B at 256 px."""

    depth: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_hidden: int | None = None  # None: `usual_hidden`
    vocab_size: int = 16384
    side: int = 16  # of the token map
    dropout: float = 0.0  # of token embeddings and of the outputs of attention and MLP, in training

    def __post_init__(self) -> None:
        for name in ("depth", "embed_dim", "num_heads", "vocab_size", "side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(f"embed_dim is {self.embed_dim}; it must be a multiple of 4 * num_heads, {self.num_heads}")
        if self.mlp_hidden is not None and self.mlp_hidden < 1:
            raise ValueError(f"mlp_hidden is {self.mlp_hidden}; it must be a positive integer or null")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @classmethod
    def published(cls, size: str, **changes: object) -> Self:
        """A published size: b, l, xl, xxl or 3b."""
        depth, heads, width = PUBLISHED[size]
        return cls(**{"depth": depth, "num_heads": heads, "embed_dim": width, **changes})  # type: ignore[arg-type]

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return self.mlp_hidden or usual_hidden(self.embed_dim)

    @property
    def tokens(self) -> int:
        """Number of tokens of an image."""
        return self.side**2


@dataclass(frozen=True)
class RasterGPTConfig(RasterSizes):
    """Sizes of LlamaGen's GPT of classes."""

    num_classes: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; it must be a positive integer")


class RasterBlock(nn.Module):
    """Attention and MLP, each preceded by a norm."""

    def __init__(self, config: RasterSizes) -> None:
        super().__init__()
        width = config.embed_dim
        self.attention = RasterAttention(width, config.num_heads, config.dropout)
        self.feed_forward = RasterMLP(width, config.hidden, config.dropout)
        self.attention_norm, self.ffn_norm = RMSNorm(width, EPS), RMSNorm(width, EPS)

    def forward(self, x_RLC: Tensor, rotation: Rotation, attend: Attend, cache: KVCache | None, layer: int) -> Tensor:
        x_RLC = x_RLC + self.attention(self.attention_norm(x_RLC), rotation, attend, cache, layer)
        return x_RLC + self.feed_forward(self.ffn_norm(x_RLC))


class ClassEmbedding(nn.Module):
    """One row per class, and one for the null class of guidance."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)


class Prefix(NamedTuple):
    """What comes before the tokens of the image."""

    tokens: Tensor  # (R, T, C)

    def of_rows(self, rows: Tensor | slice) -> Prefix:
        """The prefix of some of the rows."""
        return Prefix(self.tokens[rows])


class RasterTransformer(OwnSchedule, nn.Module):
    """The tokens so far -> logits of the next token. What they are conditioned on is at position 0."""

    config: RasterSizes
    markov = False
    has_subnets = False
    default_head = Categorical(temperature_first=True)

    def __init__(self, config: RasterSizes, cls_embedding: nn.Module) -> None:
        super().__init__()
        self.config, self.scales = config, Schedule((config.side,))
        self.cls_embedding = cls_embedding  # of the condition
        width = config.embed_dim
        self.tok_embeddings = nn.Embedding.from_pretrained(torch.zeros(config.vocab_size, width), freeze=False)
        self.tok_dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(RasterBlock(config) for _ in range(config.depth))
        self.norm = RMSNorm(width, EPS)
        self.output = Linear(width, config.vocab_size, bias=False)

    @property
    def blocks(self) -> list[RasterBlock]:
        """The layers, in order."""
        return [cast(RasterBlock, block) for block in self.layers]

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `rows` rows (`core.cache.cache_of`)."""
        return _with_prefix(cache_of(self, rows, capacities))

    def places(self, schedule: Schedule) -> tuple[Tokens, ...]:
        """What its steps draw: the tokens of the map one after another."""
        return (Tokens(0, schedule.total),)

    def guidance_ramp(self, schedule: Schedule) -> tuple[float, ...]:
        """What guidance is multiplied with: the same at every token."""
        return (1.0,)

    def new_ragged_cache(self, rows: int, capacity: int) -> RaggedCache:
        """An empty cache of `capacity` tokens per row, whose rows may differ in length."""
        return _with_prefix(cast(RaggedCache, cache_of(self, rows, [capacity] * self.config.depth, RaggedCache)))

    def cache_values(self, tokens: int) -> int:
        """Number of cached values per row for `tokens` tokens of one layer."""
        return 2 * tokens * self.config.embed_dim

    def layer_work(self, new: int, context: int) -> int:
        """Multiply-adds per layer and row of `new` causal tokens, the last of which attends to `context` tokens."""
        c = self.config
        seen = context - (new - 1) / 2  # on average
        return round(new * (4 * c.embed_dim**2 + 3 * c.embed_dim * c.hidden + 2 * seen * c.embed_dim))

    def head_work(self, drawn: int) -> int:
        """Multiply-adds of the logits of `drawn` tokens."""
        return drawn * self.config.embed_dim * self.config.vocab_size

    def next_hidden(
        self,
        prefix_RTC: Any,
        tokens_RL: Tensor,
        *,
        cache: KVCache | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """Features of the prefix, if it is given, and of the tokens that follow those in the cache, (R, T + L, C).

        The features at position i predict token i of the image. The new positions are appended to the cache. If the
        new tokens are not one sequence, `branches` gives their positions and mask.
        """
        parts = [] if prefix_RTC is None else [prefix_RTC]
        x_RLC = self.tok_dropout(torch.cat([*parts, self.tok_embeddings(tokens_RL)], dim=1))
        rotation, attend = rotation_and_attend(self.rotation(), cache, x_RLC.shape[1], branches)
        additions = additions_at(cache, x_RLC.shape[1], branches)
        for layer, block in enumerate(self.blocks):
            x_RLC = x_RLC + additions[layer] if layer in additions else x_RLC
            x_RLC = block(x_RLC, rotation, attend, cache, layer)
        if cache is not None:
            cache.advance(x_RLC.shape[1])
        return x_RLC

    def logits(self, condition: Any, hidden_RLC: Tensor) -> Tensor:
        """Features -> logits (R, L, V), float32; the condition has no further influence on them."""
        return self.next_logits(hidden_RLC)

    def next_logits(self, hidden_RLC: Tensor) -> Tensor:
        """Features -> logits (R, L, V), float32."""
        return self.output(self.norm(hidden_RLC)).float()

    def rotation(self) -> Rotation:
        """RoPE of every position. As published, those of the class are zero, so that its query and key are zero."""
        c = self.config
        return rotation_with_class(c.side, c.embed_dim // c.num_heads, self.output.weight.device)

    @torch.no_grad()
    def init_weights(self) -> None:
        """The published initialisation: normal with standard deviation 0.02, and an output layer of zeros."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        nn.init.zeros_(self.output.weight)


class RasterGPT(RasterTransformer):
    """Labels and the tokens so far -> logits of the next token. The null class of guidance is `num_classes`."""

    config: RasterGPTConfig
    cls_embedding: ClassEmbedding

    def __init__(self, config: RasterGPTConfig) -> None:
        super().__init__(config, ClassEmbedding(config.num_classes + 1, config.embed_dim))

    @property
    def class_emb(self) -> nn.Embedding:
        """The class embeddings."""
        return self.cls_embedding.embedding_table

    def prefix(self, labels_R: Tensor) -> Tensor:
        """The token of the class before those of the image, (R, 1, C)."""
        return self.class_emb(labels_R).unsqueeze(1)

    def condition(self, given: Condition) -> Prefix:
        """Labels (`num_classes` is the null class) -> what comes before the tokens of the image."""
        return Prefix(self.prefix(labels_of(given, type(self).__name__)))

    def forward(self, labels_B: Tensor, tokens_BL: Tensor) -> Tensor:
        """The training pass: labels (B), all tokens but the last (B, L) -> logits of all tokens (B, L + 1, V)."""
        return self.next_logits(self.next_hidden(self.prefix(labels_B), tokens_BL))


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a RasterGPT."""
    classes = shape(tensors, "cls_embedding.embedding_table.weight", 2)[0] - 1
    return {"num_classes": classes, **transformer_sizes(tensors)}


def transformer_sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes apart from those of the condition."""
    vocabulary, width = shape(tensors, "output.weight", 2)
    return {
        "embed_dim": width,
        "depth": count(tensors, "layers."),
        "mlp_hidden": shape(tensors, "layers.0.feed_forward.w1.weight", 2)[0],
        "vocab_size": vocabulary,
    }


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines: heads and MLP width."""
    width, heads = settings["embed_dim"], {width: heads for _, heads, width in PUBLISHED.values()}
    if settings["mlp_hidden"] == usual_hidden(width):
        settings["mlp_hidden"] = None
    return {"num_heads": heads.get(width, max(width // 64, 1)), **settings}


FAMILY = Family(
    network=RasterGPT,
    tokenizer=FILES,
    title="LlamaGen",
    paper="2406.06525",
    cfg_off=1.0,
    way="next-token prediction: one token after another, row by row",
    required=("cls_embedding.embedding_table.weight", "tok_embeddings.weight", "output.weight"),
    dropped=("freqs_cis",),
    arguments=ARGUMENTS,
    sizes=sizes,
    completed=completed,
)
NETWORKS = {"RasterGPT": "backbone"}
# The figures at 384 px are for images shrunk to 256.
MODELS = {
    "stilllife-gpt": {
        "summary": "LlamaGen's GPT, 6 layers, token by token, still lifes",
        "embedded": {"tokenizer": "stilllife-raster-vq", "backbone": "stilllife-gpt"},
        "sampling": {"cfg": 2.0, "top_k": 0, "top_p": 0.0},
        "draft_models": {
            "draft": "stilllife-gpt-small", "early-exit": "stilllife-gpt-exit", "eagle": "stilllife-gpt-eagle",
            "medusa": "stilllife-gpt-medusa", "hydra": "stilllife-gpt-hydra",
        },
        "training": {"recipes": ("stilllife-gpt",), "images": 125_000, "judged": 500, "agreement": 56.8},
    },
    "stilllife-gpt-small": {
        "summary": "the same with 2 layers, which drafts for it without guidance",
        "embedded": {"tokenizer": "stilllife-raster-vq", "backbone": "stilllife-gpt-small"},
        "sampling": {"cfg": 1.0, "top_k": 0, "top_p": 0.0},
        "training": {"recipes": ("stilllife-gpt-small",)},
    },
    "llamagen-b": {
        "summary": "LlamaGen, 12 layers, token by token, ImageNet",
        "parameters": 111_000_000, "license": "mit", "fid": 5.46,
        "files": {
            "tokenizer": "FoundationVision/LlamaGen/vq_ds16_c2i.pt",
            "backbone": "FoundationVision/LlamaGen/c2i_B_256.pt",
        },
        "sizes": {"backbone": {"depth": 12, "num_heads": 12, "embed_dim": 768, "side": 16}},
        "sampling": {"cfg": 2.0, "top_k": 0, "top_p": 0.0},
    },
    "llamagen-l": {
        "like": "llamagen-b", "summary": "LlamaGen, 24 layers, token by token, ImageNet",
        "parameters": 343_000_000, "fid": 3.8,
        "files": {"backbone": "FoundationVision/LlamaGen/c2i_L_256.pt"},
        "sizes": {"backbone": {"depth": 24, "num_heads": 16, "embed_dim": 1024, "side": 16}},
    },
    "llamagen-b-384": {
        "like": "llamagen-b", "resolution": 384,
        "fid": 6.09,
        "files": {"backbone": "FoundationVision/LlamaGen/c2i_B_384.pt"},
        "sizes": {"backbone": {"depth": 12, "num_heads": 12, "embed_dim": 768, "side": 24}},
    },
    "llamagen-l-384": {
        "like": "llamagen-b", "summary": "LlamaGen, 24 layers, token by token, ImageNet", "resolution": 384,
        "parameters": 343_000_000, "fid": 3.07,
        "files": {"backbone": "FoundationVision/LlamaGen/c2i_L_384.pt"},
        "sizes": {"backbone": {"depth": 24, "num_heads": 16, "embed_dim": 1024, "side": 24}},
    },
    "llamagen-xl": {
        "like": "llamagen-b", "summary": "LlamaGen, 36 layers, token by token, ImageNet", "resolution": 384,
        "parameters": 775_000_000, "fid": 2.62,
        "files": {"backbone": "FoundationVision/LlamaGen/c2i_XL_384.pt"},
        "sizes": {"backbone": {"depth": 36, "num_heads": 20, "embed_dim": 1280, "side": 24}},
        "sampling": {"cfg": 1.75},
    },
    "llamagen-xxl": {
        "like": "llamagen-b", "summary": "LlamaGen, 48 layers, token by token, ImageNet", "resolution": 384,
        "parameters": 1_411_000_000, "fid": 2.34,
        "files": {"backbone": "FoundationVision/LlamaGen/c2i_XXL_384.pt"},
        "sizes": {"backbone": {"depth": 48, "num_heads": 24, "embed_dim": 1536, "side": 24}},
        "sampling": {"cfg": 1.75},
    },
    "llamagen-3b": {
        "like": "llamagen-b", "summary": "LlamaGen, 24 layers, token by token, ImageNet", "resolution": 384,
        "parameters": 3_097_000_000, "fid": 2.18,
        "files": {"backbone": "FoundationVision/LlamaGen/c2i_3B_384.pt"},
        "sizes": {"backbone": {"depth": 24, "num_heads": 32, "embed_dim": 3200, "side": 24}},
        "sampling": {"cfg": 1.65},
    },
    "cca-llamagen-b": {
        "like": "llamagen-b-384", "summary": "CCA, LlamaGen, 12 layers, needs no guidance, ImageNet", "fid": 7.04,
        "files": {"backbone": "ChenDRAG/CCA_LlamaGen/CCA_LlamaGen_Guidance_Free/c2i_B_384_CCA_0005000.pt"},
        "sampling": {"cfg": 1.0},
    },
    "cca-llamagen-l": {
        "like": "llamagen-l-384", "summary": "CCA, LlamaGen, 24 layers, needs no guidance, ImageNet", "fid": 3.43,
        "files": {"backbone": "ChenDRAG/CCA_LlamaGen/CCA_LlamaGen_Guidance_Free/c2i_L_384_CCA_0005000.pt"},
        "sampling": {"cfg": 1.0},
    },
    "cca-llamagen-xl": {
        "like": "llamagen-xl", "summary": "CCA, LlamaGen, 36 layers, needs no guidance, ImageNet", "fid": 3.1,
        "files": {"backbone": "ChenDRAG/CCA_LlamaGen/CCA_LlamaGen_Guidance_Free/c2i_XL_384_CCA_0005000.pt"},
        "sampling": {"cfg": 1.0},
    },
    "cca-llamagen-xxl": {
        "like": "llamagen-xxl", "summary": "CCA, LlamaGen, 48 layers, needs no guidance, ImageNet", "fid": 3.12,
        "files": {"backbone": "ChenDRAG/CCA_LlamaGen/CCA_LlamaGen_Guidance_Free/c2i_XXL_384_CCA_0005000.pt"},
        "sampling": {"cfg": 1.0},
    },
    "cca-llamagen-3b": {
        "like": "llamagen-3b", "summary": "CCA, LlamaGen, 24 layers, needs no guidance, ImageNet", "fid": 2.69,
        "files": {"backbone": "ChenDRAG/CCA_LlamaGen/CCA_LlamaGen_Guidance_Free/c2i_3B_384_CCA_0005000.pt"},
        "sampling": {"cfg": 1.0},
    },
}  # fmt: skip


def _with_prefix(cache: Cache) -> Cache:
    """A cache whose first slot is that of the class."""
    cache.prefix = 1
    return cache
