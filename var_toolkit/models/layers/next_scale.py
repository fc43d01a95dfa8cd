"""What VAR and HMAR share: sizes, the class-modulated block, embeddings, initialisation.

Letters: R rows (images, twice under guidance), L tokens, C width, V vocabulary, K scales, c latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.cache import KVCache
from var_toolkit.core.layers import Layers
from var_toolkit.core.pruning import Sublayer, whole
from var_toolkit.core.schedule import SCHEDULES, Schedule, increasing_sides
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.head import Head
from var_toolkit.models.layers.attention import Attend, Constants, SelfAttention, block_causal, constants_of, to_all
from var_toolkit.models.layers.by_scale import ByScale
from var_toolkit.models.layers.linear import Linear


@dataclass(frozen=True)
class NextScaleConfig:
    """Sizes of the transformer. The published sizes follow from the depth (`published`)."""

    depth: int = 16
    embed_dim: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    patch_nums: tuple[int, ...] = SCHEDULES["256"]
    vocab_size: int = 4096
    latent_channels: int = 32
    shared_aln: bool = False
    attn_l2_norm: bool = True
    norm_eps: float = 1e-6
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_nums", increasing_sides(self.patch_nums))
        for name in ("depth", "embed_dim", "num_heads", "num_classes", "vocab_size", "latent_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim is {self.embed_dim}; it must be a multiple of num_heads, {self.num_heads}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it must be at least 0 and below 1")

    @classmethod
    def published(cls, depth: int, **changes: object) -> Self:
        """The published family: width 64 * depth, one head per 64 channels."""
        return cls(**{"depth": depth, "embed_dim": 64 * depth, "num_heads": depth, **changes})  # type: ignore[arg-type]


class Modulation(NamedTuple):
    """What a block computes once per run.

    AdaLN values, each (R, 1, C): gates, scales (one already added) and shifts of attention and MLP; and what
    `SelfAttention`, if the block has one, makes of its parameters.
    """

    gate1: Tensor
    gate2: Tensor
    scale1: Tensor
    scale2: Tensor
    shift1: Tensor
    shift2: Tensor
    attention: Constants | None = None

    def of_rows(self, rows: Tensor | slice) -> Modulation:
        """The values of some of the rows."""
        gate1, gate2, scale1, scale2, shift1, shift2 = (one[rows] for one in self[:6])
        return Modulation(gate1, gate2, scale1, scale2, shift1, shift2, self.attention)


def modulation_of(six_R16C: Tensor, attention: Constants | None) -> Modulation:
    """Gates, scales without the one, and shifts as a linear layer gives them, (R, 1, 6, C) -> the values of a block."""
    gate1, gate2, _, _, shift1, shift2 = six_R16C.unbind(2)
    scale1, scale2 = (1 + six_R16C[:, :, 2:4]).unbind(2)
    return Modulation(gate1, gate2, scale1, scale2, shift1, shift2, attention)


class FeedForward(nn.Module):
    """Two linear layers with tanh-GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1.gelu(x))


class ModulatedBlock(nn.Module):
    """What blocks with AdaLN share: the modulated norm and stochastic depth."""

    def __init__(self, width: int, eps: float, drop_path: float) -> None:
        super().__init__()
        self.width, self.eps, self.drop_path = width, eps, drop_path

    def _modulated(self, x_RLC: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x_RLC, (self.width,), eps=self.eps), scale)

    def _stochastic_depth(self, h_RLC: Tensor) -> Tensor:
        """Stochastic depth: in training, drop the residual branch of some images and scale up the others."""
        if not self.training or self.drop_path == 0:
            return h_RLC
        keep = 1 - self.drop_path
        return h_RLC * h_RLC.new_empty(h_RLC.shape[0], 1, 1).bernoulli_(keep).div_(keep)


class Block(ModulatedBlock):
    """Attention and MLP, each modulated by the class (AdaLN)."""

    def __init__(self, config: NextScaleConfig, drop_path: float) -> None:
        width = config.embed_dim
        super().__init__(width, config.norm_eps, drop_path)
        self.attn = SelfAttention(width, config.num_heads, l2_norm=config.attn_l2_norm)
        self.ffn = FeedForward(width, round(width * config.mlp_ratio))
        if config.shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / sqrt(width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulation(self, condition: Tensor, attention: Constants | None) -> Modulation:
        """SiLU of the class embedding (R, C), or with `shared_aln` the shared values (R, 1, 6, C) -> AdaLN values."""
        if hasattr(self, "ada_gss"):
            return modulation_of(condition + self.ada_gss, attention)
        return modulation_of(self.ada_lin[1](condition).view(-1, 1, 6, self.width), attention)

    def forward(
        self,
        x_RLC: Tensor,
        m: Modulation,
        attend: Attend,
        cache: KVCache | None = None,
        layer: int = 0,
        run: Sublayer = whole,
        *,
        between: Tensor | None = None,
    ) -> Tensor:
        """`between` is added between attention and MLP."""

        def attended(x_RLC: Tensor, _: Tensor | None) -> Tensor:
            found: Tensor = self.attn(
                self._modulated(x_RLC, m.scale1, m.shift1), attend, cache, layer, constants=m.attention
            )
            return found

        def fed_forward(x_RLC: Tensor, _: Tensor | None) -> Tensor:
            found: Tensor = self.ffn(self._modulated(x_RLC, m.scale2, m.shift2))
            return found

        h = run(x_RLC, "attn", attended)
        x_RLC = torch.addcmul(x_RLC, self._stochastic_depth(h), m.gate1)
        if between is not None:
            x_RLC = x_RLC + between
        h = run(x_RLC, "ffn", fed_forward)
        return torch.addcmul(x_RLC, self._stochastic_depth(h), m.gate2)


def modulations(blocks: Sequence[Block], condition: Tensor) -> list[Modulation]:
    """The `modulation` of several blocks."""
    constants = constants_of([block.attn for block in blocks])
    return [block.modulation(condition, own) for block, own in zip(blocks, constants, strict=True)]


class HeadNorm(nn.Module):
    """Class-modulated norm before the head. It has its own linear layer also with `shared_aln`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, condition_RC: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.ada_lin(condition_RC).unsqueeze(1).chunk(2, dim=-1)
        return 1 + scale, shift


class NextScaleTransformer(ByScale, nn.Module):
    """Embeddings and operation counts. The null class of guidance is `num_classes`."""

    config: NextScaleConfig
    default_head: Head = Categorical()
    sublayers: tuple[str, ...] = ("attn", "ffn")

    def __init__(self, config: NextScaleConfig, *, word_bias: bool) -> None:
        super().__init__()
        self.config = config
        self.scales = Schedule(config.patch_nums)
        width = config.embed_dim
        self.word_embed = nn.Linear(config.latent_channels, width, bias=word_bias)
        # Not nn.Embedding(n, c): its initialisation imports torch.compile on the meta device. See _init_shared.
        self.class_emb = nn.Embedding.from_pretrained(torch.zeros(config.num_classes + 1, width), freeze=False)
        self.pos_start = nn.Parameter(torch.zeros(1, self.scales.lengths[0], width))
        self._add_positions()
        if config.shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def layer_work(self, new: int, context: int) -> int:
        """Multiply-adds per layer and row of `new` tokens that attend to `context` tokens, themselves included."""
        c = self.config
        return round(new * ((4 + 2 * c.mlp_ratio) * c.embed_dim**2 + 2 * context * c.embed_dim))

    def head_work(self, drawn: int) -> int:
        """Multiply-adds of the logits of `drawn` tokens."""
        return drawn * self.config.embed_dim * self.config.vocab_size

    def _modulation_input(self, class_RC: Tensor) -> Tensor:
        """The input of `Block.modulation`."""
        if not self.config.shared_aln:
            return F.silu(class_RC)  # once for all blocks
        return self.shared_ada_lin(class_RC).view(-1, 1, 6, self.config.embed_dim)

    def _add_positions(self) -> None:
        """The parameters of `_position_embeddings`."""
        width = self.config.embed_dim
        self.pos_1LC = nn.Parameter(torch.zeros(1, self.scales.total, width))
        self.lvl_embed = nn.Embedding.from_pretrained(torch.zeros(len(self.scales), width), freeze=False)

    def _position_embeddings(self, scales: range, schedule: Schedule) -> Tensor:
        """Sum of scale and position embeddings of the tokens of some scales, (1, L, C).

        They were trained for the schedule of the network, which `require_schedule` asks for.
        """
        span = slice(self.scales.offsets[scales.start], self.scales.offsets[scales.stop])
        return level_embeddings(self.lvl_embed, self.scales, scales) + self.pos_1LC[:, span]

    def _head_logits(self, head: nn.Module, hidden_RLC: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        normed = F.layer_norm(hidden_RLC, (self.config.embed_dim,), eps=self.config.norm_eps)
        return head(torch.addcmul(shift, normed, scale)).float()

    def _init_shared(
        self, blocks: Iterable[Block], heads: Iterable[tuple[HeadNorm, nn.Linear]], *, adaln_gamma: float, head: float
    ) -> None:
        """The published initialisation: one standard deviation everywhere, then some layers scaled down."""
        std, width, depth = sqrt(1 / (3 * self.config.embed_dim)), self.config.embed_dim, self.config.depth
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        nn.init.trunc_normal_(self.pos_start, std=std)
        nn.init.trunc_normal_(self.pos_1LC, std=std)
        for norm, linear in heads:
            linear.weight.mul_(head)
            cast(nn.Linear, norm.ada_lin[1]).weight.mul_(0.5)
        for block in blocks:
            block.attn.proj.weight.div_(sqrt(2 * depth))
            block.ffn.fc2.weight.div_(sqrt(2 * depth))
            if self.config.shared_aln:
                block.ada_gss[:, :, :2].mul_(adaln_gamma)
                block.ada_gss[:, :, 2:].mul_(0.5)
            else:
                ada_lin = cast(nn.Linear, block.ada_lin[1])
                ada_lin.weight[: 2 * width].mul_(adaln_gamma)
                ada_lin.weight[2 * width :].mul_(0.5)


def in_a_row(parts: Sequence[Tensor]) -> Tensor:
    """Tokens (R, L, C) of several sources, one after another; those of a single source are not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def level_embeddings(table: nn.Embedding, schedule: Schedule, scales: range) -> Tensor:
    """The embeddings of the levels of the tokens of some scales, (L, C); of a single scale one for all, (1, C)."""
    if len(scales) == 1:
        return table.weight[scales.start, None]
    span = slice(schedule.offsets[scales.start], schedule.offsets[scales.stop])
    found: Tensor = table(schedule.level_ids(table.weight.device)[span])
    return found


def through_layers(
    step: Callable[[Tensor, int, Attend], Tensor],
    x_RLC: Tensor,
    depth: int,
    scales: range,
    schedule: Schedule,
    layers: Layers | None,
    open_prefill: bool = False,
) -> Tensor:
    """Features of the tokens of `scales` after all layers; `step` is a layer, by number, on the first of them.

    Of the `layers`, skipped layers compute only the first scales; this needs no other mask, because coarse tokens never
    attend to finer ones. With `open_prefill` they do, among the tokens computed here.
    """
    new = x_RLC.shape[1]

    def attention(computed: range) -> Attend:
        return to_all if open_prefill else block_causal(schedule, computed, x_RLC.device)

    attend = attention(scales)
    for layer in range(depth):
        deep = new if layers is None else layers.depth_tokens(layer, schedule, scales)
        if deep == new:
            x_RLC = step(x_RLC, layer, attend)
        elif deep:
            end = schedule.offsets.index(schedule.offsets[scales.start] + deep)
            found = step(x_RLC[:, :deep], layer, attention(range(scales.start, end)))
            x_RLC = torch.cat((found, x_RLC[:, deep:]), dim=1)
    return x_RLC


def drop_rates(depth: int, last: float) -> list[float]:
    """Stochastic depth rate of every layer, growing linearly from 0."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]
