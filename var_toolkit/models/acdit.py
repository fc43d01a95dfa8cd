"""ACDiT (arXiv 2412.07720): blocks of continuous tokens one after another, each denoised by the whole network.

Key-compatible with the `model` of `ACDiT-XL-img.pt` and `ACDiT-H-img.pt`. A block sees the clean blocks before it.
Clean tokens pass the layers without modulation, so their keys and values depend on neither class nor time: they are
computed once, for each image and not for each half of guidance, and cached.

Letters: B images, R rows (images, twice under guidance), L tokens, K tokens of a block, T blocks, C width, H heads,
D head width, c channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import isqrt, pi
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.conditions.condition import labels_of
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Group
from var_toolkit.core.schedule import Schedule
from var_toolkit.core.sketch import Sketch
from var_toolkit.entries import Sampling
from var_toolkit.formats.state_dicts import Arguments, Tensors, count, shape
from var_toolkit.heads.diffusion import PREDICTIONS, Chain, Diffusion, Prediction
from var_toolkit.heads.head import Head, Setting
from var_toolkit.models.family import Family
from var_toolkit.models.layers.attention import Attend, skip_causal, to_all
from var_toolkit.models.layers.by_scale import OwnSchedule
from var_toolkit.models.layers.flow_head import StepEmbedding
from var_toolkit.models.layers.gated_mlp import RMSNorm
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.masked_order import Condition, block_work, taken
from var_toolkit.models.layers.starting import init_linears_and_norms
from var_toolkit.tokenizers.kl16 import FILES

HEAD_DIM = 64  # of the published rotary tables


@dataclass(frozen=True)
class ACDiTConfig:
    """Sizes of ACDiT; the defaults are those of ACDiT-XL at 256 px."""

    embed_dim: int = 1152
    depth: int = 28
    num_classes: int = 1000
    side: int = 32  # of the map of tokens
    block_side: int = field(default=16, metadata={"range": (1, 1024)})
    latent_channels: int = 4
    patch_size: int = field(default=1, metadata={"range": (1, 64)})  # latent positions along a side of a token
    mlp_ratio: float = 4.0
    prediction: str = "epsilon"  # or "velocity"

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_classes", "side", "block_side", "latent_channels", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {self.prediction!r}; it must be one of {', '.join(PREDICTIONS)}")
        if self.embed_dim % HEAD_DIM:
            raise ValueError(f"embed_dim is {self.embed_dim}; it must be a multiple of {HEAD_DIM}")
        if self.side % self.block_side:
            raise ValueError(f"side is {self.side}; it must be a multiple of block_side, {self.block_side}")

    @property
    def num_heads(self) -> int:
        """Heads of each layer."""
        return self.embed_dim // HEAD_DIM


class CleanCache:
    """Keys and values of the clean blocks so far, (B, H, L, D) of each layer."""

    def __init__(self, layers: int) -> None:
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.tokens = 0

    def append(self, layer: int, k_BHKD: Tensor, v_BHKD: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of a block to a layer; return all of them."""
        known = self.layers[layer]
        both = (k_BHKD, v_BHKD) if known is None else (
            torch.cat((known[0], k_BHKD), dim=2), torch.cat((known[1], v_BHKD), dim=2),
        )  # fmt: skip
        self.layers[layer] = both
        return both

    def rows(self, copies: int) -> list[tuple[Tensor, Tensor] | None]:
        """Those of each layer for the rows of both halves of guidance."""
        return [known and (known[0].repeat(copies, 1, 1, 1), known[1].repeat(copies, 1, 1, 1)) for known in self.layers]

    def keep_rows(self, count: int) -> None:
        """Nothing: there is one row for each image."""

    def resize(self, capacities: Any) -> None:
        """Nothing: it grows by blocks."""

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(part.numel() * part.element_size() for known in self.layers if known for part in known)


class PublishedRotation(NamedTuple):
    """The published rotary tables, (L, D): channel j turns with the row's angle and j + 32 with the column's.

    Both are of one pair, so this is no rotation, and the weights depend on it.
    """

    cos: Tensor
    sin: Tensor

    def of(self, tokens: slice) -> PublishedRotation:
        """The tables of some tokens."""
        return PublishedRotation(self.cos[tokens], self.sin[tokens])

    def __call__(self, x_RHLD: Tensor) -> Tensor:
        """Apply them to queries or keys, in their own dtype."""
        x = x_RHLD.float()
        first, second = x.chunk(2, dim=-1)
        return (x * self.cos + torch.cat((-second, first), dim=-1) * self.sin).to(x_RHLD.dtype)


def published_rotation(positions_2L: Tensor, side: int) -> PublishedRotation:
    """The tables for rows and columns of tokens of a map."""
    base = 100.0 * (int(8 * side / pi) // 100 + 1)
    frequencies = base ** -torch.linspace(0, 1, HEAD_DIM // 4, device=positions_2L.device)
    angles = torch.cat([axis.repeat(1, 2) for axis in positions_2L.unsqueeze(-1) * frequencies], dim=-1)
    return PublishedRotation(angles.cos(), angles.sin())


class BlockAttention(nn.Module):
    """Multi-head attention with RMS-normed queries and keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = Linear(width, 3 * width), Linear(width, width)
        self.q_norm, self.k_norm = RMSNorm(HEAD_DIM), RMSNorm(HEAD_DIM)

    def parts(self, x_RLC: Tensor, rotation: PublishedRotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        q, k, v = rearrange(self.qkv(x_RLC), "r l (three h d) -> three r h l d", three=3, d=HEAD_DIM)
        q, k = rotation(self.q_norm(q)), rotation(self.k_norm(k))
        return q.to(v.dtype), k.to(v.dtype), v  # which gains make wider under autocast

    def out(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend = to_all) -> Tensor:
        """What the queries attend to."""
        return cast(Tensor, self.proj(rearrange(attend(q, k, v, HEAD_DIM**-0.5), "r h l d -> r l (h d)")))


class BlockMLP(nn.Module):
    """Two layers with tanh GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.fc1.gelu(x)))


class ACDiTBlock(nn.Module):
    """A DiT block whose modulation is of noisy tokens alone."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn, self.mlp = BlockAttention(width), BlockMLP(width, int(width * ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))

    def forward(
        self,
        x_RLC: Tensor,
        active: Tensor,
        rotation: PublishedRotation,
        attend: Attend = to_all,
        joined: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        *,
        clean_first: bool = False,
    ) -> Tensor:
        """`active` is SiLU of the conditioning, (R, 1 or L, C); with `clean_first` that of the second half of tokens.

        Keys and values are those that `joined` makes of the block's own.
        """
        parts = self.adaLN_modulation[1](active).chunk(6, dim=-1)
        if clean_first:
            parts = map(_after, (0.0, 0.0, 1.0, 0.0, 0.0, 1.0), parts)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        q, k, v = self.attn.parts(torch.addcmul(shift1, self.norm1(x_RLC), 1 + scale1), rotation)
        if joined is not None:
            k, v = joined(k, v)
        x = torch.addcmul(x_RLC, gate1, self.attn.out(q, k, v, attend))
        return torch.addcmul(x, gate2, self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2)))


class LastLayer(nn.Module):
    """Modulated norm and a linear layer."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final, self.linear = RMSNorm(width), Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation[1](active).chunk(2, dim=-1)
        return cast(Tensor, self.linear(torch.addcmul(shift, self.norm_final(x), 1 + scale)))


class LabelTable(nn.Module):
    """The class embedding under its published name; the last row is the null class."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)


class ACDiT(OwnSchedule, nn.Module):
    """Class and clean blocks -> the denoiser of the next block.

    `forward` is the packed pass over all clean and all noisy blocks under the skip-causal mask; decoding calls
    `group_hidden` and `denoiser` block by block with a cache. Both are the same computation.
    """

    markov = False
    has_subnets = False
    preserves = "written over"
    channel_last_patches = True
    default_head: Head = Diffusion("dpm++", 25)

    def __init__(self, config: ACDiTConfig) -> None:
        super().__init__()
        self.config, self.scales, width = config, Schedule((config.side,)), config.embed_dim
        self.t_embedder, self.y_embedder = StepEmbedding(width), LabelTable(config.num_classes + 1, width)
        self.x_embedder = Linear(self.channels, width, bias=False)
        self.blocks = nn.ModuleList(ACDiTBlock(width, config.mlp_ratio) for _ in range(config.depth))
        self.final_layer = LastLayer(width, self.channels)

    @property
    def channels(self) -> int:
        """Channels of a token."""
        return self.config.latent_channels * self.config.patch_size**2

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return self.config.block_side**2

    def places(self, schedule: Schedule) -> tuple[Group, ...]:
        """A group for each block."""
        size = self.block_tokens
        return tuple(Group(0, first, size) for first in range(0, schedule.total, size))

    def guidance_ramp(self, schedule: Schedule) -> tuple[float, ...]:
        """Guidance of the only map."""
        return (1.0,)

    def guidance_at(self, group: Group, schedule: Schedule) -> float:
        """Guidance is the same for all blocks."""
        return 1.0

    def head_at(self, head: Head, schedule: Schedule, scale: int) -> Head:
        """The head, with the solver of the authors where that is asked for."""
        return head.published_as("dpm++") if isinstance(head, Diffusion) else head

    def block_order(self, device: torch.device) -> Tensor:
        """The position of each rank: square blocks in raster order, and so are the tokens of each, (L,)."""
        side, block = self.config.side, self.config.block_side
        raster = torch.arange(side**2, device=device).view(side // block, block, side // block, block)
        return raster.transpose(1, 2).flatten()

    def order(self, schedule: Schedule, scale: int, noise: Noise) -> Tensor:
        """The order of the blocks, for each image, (B, L)."""
        return self.block_order(noise.device).expand(noise.images, -1)

    def rotation(self, device: torch.device) -> PublishedRotation:
        """Of the tokens in block order."""
        order_L = self.block_order(device)
        positions = torch.stack((order_L // self.config.side, order_L % self.config.side)).float()
        return published_rotation(positions, self.config.side)

    def new_cache(self, rows: int, capacities: Any = None) -> Any:
        """An empty cache of clean blocks."""
        return CleanCache(self.config.depth)

    def cache_values(self, tokens: int) -> int:
        """Number of cached values for `tokens` tokens of one layer."""
        return 2 * tokens * self.config.embed_dim

    def layer_work(self, new: int, context: int) -> int:
        """Multiply-adds per layer and row of `new` tokens that attend to `context` tokens, themselves included."""
        return block_work(self.config.embed_dim, self.config.mlp_ratio, new, context)

    def group_work(self, group: Group, schedule: Schedule) -> int:
        """Multiply-adds of reading the clean block before a group."""
        return self.config.depth * self.layer_work(self.block_tokens, group.first) if group.first else 0

    def group_head_work(self, group: Group, schedule: Schedule) -> int:
        """Multiply-adds of one evaluation of the network for a group."""
        return self.config.depth * self.layer_work(group.count, group.first + group.count)

    def condition(self, given: Given) -> Condition:
        """Labels (`num_classes` is the null class) -> the vector of each row."""
        return Condition(self.y_embedder.embedding_table(labels_of(given, type(self).__name__)))

    def group_hidden(self, condition: Condition, sketch: Sketch, end: int, *, scale: int, cache: Any) -> Tensor:
        """Read the clean blocks that the cache lacks; return the condition, (R, 1, C)."""
        for first in range(cache.tokens, sketch.known, self.block_tokens):
            span = slice(first, first + self.block_tokens)
            self._read(taken(sketch.tokens_BLc, sketch.order_BL[:, span]), span, cache)
        return condition.rows_RC.unsqueeze(1)

    def _read(self, clean_BKc: Tensor, span: slice, cache: CleanCache) -> None:
        """Append the keys and values of a clean block to the cache."""
        x, rotation = (
            self.x_embedder(clean_BKc.to(self.x_embedder.weight.dtype)),
            self.rotation(clean_BKc.device).of(span),
        )
        for layer, one in enumerate(self.blocks):
            block = cast(ACDiTBlock, one)
            q, k, v = block.attn.parts(block.norm1(x), rotation)
            k, v = cache.append(layer, k, v)
            if layer + 1 < len(self.blocks):
                x = x + block.attn.out(q, k, v)
                x = x + block.mlp(block.norm2(x))
        cache.tokens = span.stop

    def denoiser(self, hidden_R1C: Tensor, at: Setting) -> BlockDenoiser:
        """The network with what it knows of a block."""
        return BlockDenoiser(self, hidden_R1C, at)

    def predicted(
        self,
        x_RKc: Tensor,
        condition_RKC: Tensor,
        rotation: PublishedRotation,
        known: list[tuple[Tensor, Tensor] | None],
    ) -> Tensor:
        """Epsilon or velocity of a noisy block, (R, K, c), given keys and values of the clean ones before it."""
        active, x = F.silu(condition_RKC), self.x_embedder(x_RKc.to(self.x_embedder.weight.dtype))
        for block, before in zip(self.blocks, known, strict=True):
            x = block(x, active, rotation, joined=None if before is None else partial(behind, before))
        return cast(Tensor, self.final_layer(x, active))

    @property
    def class_emb(self) -> nn.Embedding:
        """The vectors of the classes; the last one is that of the null class."""
        return self.y_embedder.embedding_table

    @property
    def block_schedule(self) -> Schedule:
        """The blocks as token maps of a schedule."""
        return Schedule((self.config.block_side,) * (self.scales.total // self.block_tokens))

    def forward(self, labels_B: Tensor, clean_BLc: Tensor, noisy_BLc: Tensor, steps_BT: Tensor) -> Tensor:
        """The packed pass: what is predicted of all blocks, (B, L, c), float32.

        Tokens are in block order; steps are those of blocks.
        """
        total = self.scales.total
        attend, rotation = skip_causal(self.block_schedule), self.rotation(clean_BLc.device)
        both = PublishedRotation(rotation.cos.repeat(2, 1), rotation.sin.repeat(2, 1))
        times = self.t_embedder(steps_BT).repeat_interleave(self.block_tokens, dim=1)
        active = F.silu(times + self.condition(Given(labels=labels_B)).rows_RC.unsqueeze(1))
        x = self.x_embedder(torch.cat((clean_BLc, noisy_BLc), dim=1))
        for block in self.blocks:
            x = block(x, active, both, attend, clean_first=True)
        return cast(Tensor, self.final_layer(x[:, total:], active)).float()

    @torch.no_grad()
    def init_weights(self) -> None:
        """That of DiT (arXiv 2212.09748): what modulates and the last layer are 0."""
        init_linears_and_norms(self)
        for table in (self.class_emb, self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(cast(Tensor, table.weight), std=0.02)
        last = self.final_layer
        zero = [cast(ACDiTBlock, block).adaLN_modulation[1] for block in self.blocks]
        for layer in (*zero, last.adaLN_modulation[1], last.linear):
            nn.init.zeros_(cast(Linear, layer).weight)


def behind(known: tuple[Tensor, Tensor], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of some tokens and of those before them."""
    return torch.cat((known[0], k), dim=2), torch.cat((known[1], v), dim=2)


def _after(value: float, part_BLC: Tensor) -> Tensor:
    return torch.cat((torch.full_like(part_BLC, value), part_BLC), dim=1)


class BlockDenoiser:
    """The network with clean blocks and a class (`heads.diffusion.Denoiser`)."""

    schedule, whole = "linear", False

    def __init__(self, network: ACDiT, hidden_R1C: Tensor, at: Setting) -> None:
        assert at.positions is not None
        self.prediction = network.config.prediction
        first = at.sketch.known
        span = slice(first, first + at.positions.shape[1])
        self.network, self.hidden = network, hidden_R1C
        self.rotation = network.rotation(hidden_R1C.device).of(span)
        self.known = at.cache.rows(len(hidden_R1C) // len(at.positions))

    def begin(self, indices: tuple[int, ...]) -> None:
        """Nothing: each step has rows enough."""

    def places(self, at: Setting) -> Tensor:
        """The positions of the block."""
        assert at.positions is not None
        return at.positions

    def kept(self, x_BKc: Tensor) -> Tensor:
        """All of them."""
        return x_BKc

    def given(self, x_BKc: Tensor, start_BKc: Tensor, chain: Chain, k: int) -> Tensor:
        """The state as it is."""
        return x_BKc

    def __call__(self, x_RKc: Tensor, index: int) -> Prediction:
        step = torch.full((1, 1), index, device=x_RKc.device)
        condition = self.network.t_embedder(step) + self.hidden
        return Prediction(self.network.predicted(x_RKc, condition, self.rotation, self.known).float(), None)


def _prepared(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Published arguments for `Told`. ValueError for those of video, which are not supported."""
    for name, allowed in (("temporal_len", (1,)), ("nd_split", (None, "1_1")), ("square_block", (True,))):
        if given.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{source} says {name} is {given[name]!r}; only images, {allowed[0]!r}, are supported")
    used = {name: value for name, value in given.items() if name not in ("temporal_len", "nd_split", "square_block")}
    for theirs, ours in (("spatial_len", "side"), ("block_size", "block_side")):
        if theirs in used:
            value = used.pop(theirs)
            if not isinstance(value, int) or value < 1 or isqrt(value) ** 2 != value:
                raise ValueError(f"{source} says {theirs} is {value!r}; it must be a square, such as 256")
            used[ours] = isqrt(value)
    return used


ARGUMENTS = Arguments(
    renamed={"hidden_size": "embed_dim"},
    ignored=frozenset({"ar_len", "class_dropout_prob", "latent_size", "num_heads"}),
    prepared=_prepared,
)


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of an ACDiT that tensors tell."""
    width, _ = shape(tensors, "x_embedder.weight", 2)
    return {
        "embed_dim": width,
        "depth": count(tensors, "blocks."),
        "num_classes": shape(tensors, "y_embedder.embedding_table.weight", 2)[0] - 1,
        "mlp_ratio": shape(tensors, "blocks.0.mlp.fc1.weight", 2)[0] / width,
    }


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by the patches, which no tensor tells; the defaults are those of the published images."""
    channels, patch = tensors["x_embedder.weight"].shape[1], settings.get("patch_size", 1)
    if channels % patch**2 or settings.get("latent_channels", channels // patch**2) * patch**2 != channels:
        raise ValueError(f"{source} has tokens of {channels} channels, which are not patches of side {patch}")
    return {"latent_channels": channels // patch**2, **settings}


FAMILY = Family(
    network=ACDiT,
    tokenizer=FILES,
    title="ACDiT",
    paper="2412.07720",
    cfg_off=1.0,
    way="blockwise prediction of continuous tokens: each block is denoised by the whole network",
    required=("x_embedder.weight", "y_embedder.embedding_table.weight", "blocks.0.attn.q_norm.weight"),
    arguments=ARGUMENTS,
    sizes=sizes,
    completed=completed,
    sampling=Sampling(cfg=1.5, denoising_steps=25),
)
NETWORKS = {"ACDiT": "backbone"}
