"""The VAR transformer (arXiv 2404.02905): next-scale prediction, key-compatible with `var_d16.pth` ... `var_d36.pth`.

Letters: R rows (pictures, twice under guidance), L tokens, C width, V vocabulary, K scales, c latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.backbones.attention import SelfAttention
from var_toolkit.backbones.cache import KVCache
from var_toolkit.backbones.linear import Linear, linear_gelu
from var_toolkit.backbones.subnet import Subnet
from var_toolkit.scales import SCHEDULES, Scales


@dataclass(frozen=True)
class VARConfig:
    """Sizes of the transformer. The published ones follow from the depth (`VARConfig.published`)."""

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
        object.__setattr__(self, "patch_nums", Scales(tuple(self.patch_nums)).patch_nums)
        for name in ("depth", "embed_dim", "num_heads", "num_classes", "vocab_size", "latent_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim is {self.embed_dim}; it must be a multiple of num_heads, {self.num_heads}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it must be at least 0 and below 1")

    @classmethod
    def published(cls, depth: int, **changes: object) -> VARConfig:
        """The family of the paper: width 64 * depth, one head per 64 channels."""
        return cls(**{"depth": depth, "embed_dim": 64 * depth, "num_heads": depth, **changes})  # type: ignore[arg-type]


class Modulation(NamedTuple):
    """How the class steers one block, each (R, 1, C): gates, one plus scales, and shifts of its two halves."""

    gate1: Tensor
    gate2: Tensor
    scale1: Tensor
    scale2: Tensor
    shift1: Tensor
    shift2: Tensor


class Condition(NamedTuple):
    """Everything that depends on the labels alone: made once a run, used at every scale."""

    start_RC: Tensor  # noqa: N815
    blocks: list[Modulation]
    head_scale: Tensor  # one plus scale, (R, 1, C)
    head_shift: Tensor


class FeedForward(nn.Module):
    """Two linear layers with tanh-GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(linear_gelu(x, self.fc1.weight, self.fc1.bias))


class Block(nn.Module):
    """Attention and MLP, each modulated by the class (AdaLN)."""

    def __init__(self, config: VARConfig, drop_path: float) -> None:
        super().__init__()
        width = config.embed_dim
        self.width, self.eps, self.drop_path = width, config.norm_eps, drop_path
        self.attn = SelfAttention(width, config.num_heads, l2_norm=config.attn_l2_norm)
        self.ffn = FeedForward(width, round(width * config.mlp_ratio))
        if config.shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / sqrt(width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulation(self, condition: Tensor) -> Modulation:
        """From the class embedding (R, C), or from the shared (R, 1, 6, C) of `shared_aln`."""
        six = (
            condition + self.ada_gss if hasattr(self, "ada_gss") else self.ada_lin(condition).view(-1, 1, 6, self.width)
        )
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(2)
        return Modulation(gate1, gate2, 1 + scale1, 1 + scale2, shift1, shift2)

    def forward(
        self, x_RLC: Tensor, m: Modulation, mask_QL: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        h = self.attn(self._modulated(x_RLC, m.scale1, m.shift1), mask_QL, cache, layer)
        x_RLC = torch.addcmul(x_RLC, self._kept(h), m.gate1)
        h = self.ffn(self._modulated(x_RLC, m.scale2, m.shift2))
        return torch.addcmul(x_RLC, self._kept(h), m.gate2)

    def _modulated(self, x_RLC: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x_RLC, (self.width,), eps=self.eps), scale)

    def _kept(self, h_RLC: Tensor) -> Tensor:
        """Stochastic depth: in training, drop the branch of some pictures and scale up the rest."""
        if not self.training or self.drop_path == 0:
            return h_RLC
        keep = 1 - self.drop_path
        return h_RLC * h_RLC.new_empty(h_RLC.shape[0], 1, 1).bernoulli_(keep).div_(keep)


class HeadNorm(nn.Module):
    """Class-modulated norm before the head. Its own linear layer, also with `shared_aln`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, condition_RC: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.ada_lin(condition_RC).unsqueeze(1).chunk(2, dim=-1)
        return 1 + scale, shift


class VAR(nn.Module):
    """Labels and the tokenizer's inputs -> logits for the tokens of each scale.

    The null class of guidance is `num_classes`. `forward` is the packed training pass; decoding calls `condition`
    once, then `hidden` and `logits` scale by scale with a cache. Both are the same computation.
    """

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = Scales(config.patch_nums)
        width = config.embed_dim
        self.word_embed = nn.Linear(config.latent_channels, width)
        # Not nn.Embedding(n, c): its random start would load the compiler when built without memory. See init_weights.
        self.class_emb = nn.Embedding.from_pretrained(torch.zeros(config.num_classes + 1, width), freeze=False)
        self.pos_start = nn.Parameter(torch.zeros(1, self.scales.lengths[0], width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, self.scales.total, width))
        self.lvl_embed = nn.Embedding.from_pretrained(torch.zeros(len(self.scales), width), freeze=False)
        if config.shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.head_nm = HeadNorm(width)
        self.head = Linear(width, config.vocab_size)

    @property
    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def new_cache(self, rows: int, rooms: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `rows` rows, in the dtype and on the device of the weights.

        `rooms` are the tokens that each layer will hold at most; None stands for the whole schedule in every layer.
        """
        c, weight = self.config, self.head.weight
        return KVCache(
            [self.scales.total] * c.depth if rooms is None else rooms,
            rows=rows,
            heads=c.num_heads,
            head_dim=c.embed_dim // c.num_heads,
            dtype=weight.dtype,
            device=weight.device,
        )

    def cache_values(self, tokens: int) -> int:
        """How many numbers the cache of one row holds for `tokens` tokens of one layer."""
        return 2 * tokens * self.config.embed_dim

    def layer_work(self, new: int, context: int) -> int:
        """Multiply-adds of one layer and row: `new` tokens that look at `context` tokens, themselves included."""
        c = self.config
        return round(new * ((4 + 2 * c.mlp_ratio) * c.embed_dim**2 + 2 * context * c.embed_dim))

    def head_work(self, drawn: int) -> int:
        """Multiply-adds of the logits of `drawn` tokens."""
        return drawn * self.config.embed_dim * self.config.vocab_size

    def condition(self, labels_R: Tensor) -> Condition:
        """What the labels (R, int64, num_classes for the null class) mean to every block and to the head."""
        start_RC = self.class_emb(labels_R)
        steer = start_RC
        if self.config.shared_aln:
            steer = self.shared_ada_lin(start_RC).view(-1, 1, 6, self.config.embed_dim)
        return Condition(start_RC, [block.modulation(steer) for block in self._blocks], *self.head_nm(start_RC))

    def hidden(
        self,
        condition: Condition,
        inputs_RLc: Tensor | None,
        *,
        scales: range,
        cache: KVCache | None = None,
        subnet: Subnet | None = None,
    ) -> Tensor:
        """Features (R, L, C) of the tokens of `scales`, computed in one block-causal pass.

        `inputs_RLc` are the tokenizer's inputs of these scales; scale 0 has none (it starts from the class). A cache
        must hold exactly the scales before `scales`, and holds these too afterwards. With a `subnet`, skipped layers
        see the first scales alone; no mask is needed for that, because coarse tokens never look at finer ones.
        """
        begin, end = self.scales.offsets[scales.start], self.scales.offsets[scales.stop]
        if (cache.length if cache is not None else 0) != begin:
            raise ValueError(
                f"scales {scales.start} to {scales.stop - 1} need a cache that holds the {begin} tokens before"
            )
        x_RLC = self._embed(condition, inputs_RLc, scales)
        mask_QL = None
        if len(scales) > 1:
            mask_QL = self.scales.block_causal_mask(scales.start, scales.stop).to(x_RLC.device)
        for layer, block in enumerate(self._blocks):
            deep = end - begin if subnet is None else subnet.depth_tokens(layer, self.scales, scales)
            if deep == end - begin:
                x_RLC = block(x_RLC, condition.blocks[layer], mask_QL, cache, layer)
            elif deep:
                mask = None if mask_QL is None else mask_QL[:deep, : begin + deep]
                deepened = block(x_RLC[:, :deep], condition.blocks[layer], mask, cache, layer)
                x_RLC = torch.cat((deepened, x_RLC[:, deep:]), dim=1)
        if cache is not None:
            cache.advance(end - begin)
        return x_RLC

    def logits(self, condition: Condition, hidden_RLC: Tensor) -> Tensor:
        """Features -> logits (R, L, V), float32."""
        normed = F.layer_norm(hidden_RLC, (self.config.embed_dim,), eps=self.config.norm_eps)
        return self.head(torch.addcmul(condition.head_shift, normed, condition.head_scale)).float()

    def forward(self, labels_B: Tensor, inputs_BLc: Tensor, subnet: Subnet | None = None) -> Tensor:
        """The packed training pass: labels (B), teacher inputs of scales 1 .. K-1 -> logits (B, L, V), float32.

        Inputs of fewer scales give the logits of these alone.
        """
        condition = self.condition(labels_B)
        scales = range(self.scales.offsets.index(inputs_BLc.shape[1] + self.scales.lengths[0]))
        return self.logits(condition, self.hidden(condition, inputs_BLc, scales=scales, subnet=subnet))

    def _embed(self, condition: Condition, inputs_RLc: Tensor | None, scales: range) -> Tensor:
        parts = []
        if scales.start == 0:
            parts.append(condition.start_RC.unsqueeze(1) + self.pos_start)
        if inputs_RLc is not None:
            parts.append(self.word_embed(inputs_RLc.to(self.word_embed.weight.dtype)))
        span = slice(self.scales.offsets[scales.start], self.scales.offsets[scales.stop])
        levels_L = self.scales.level_ids()[span].to(self.pos_1LC.device)
        return torch.cat(parts, dim=1) + (self.lvl_embed(levels_L) + self.pos_1LC[:, span])

    @torch.no_grad()
    def init_weights(self, *, adaln: float = 0.5, adaln_gamma: float = 1e-3, head: float = 0.02) -> None:
        """The published initialisation: one standard deviation everywhere, then some layers scaled down.

        `adaln_gamma` scales the gates of the residual branches; published 1e-3 for d16 down to 5e-6 for d36.
        """
        std, width = sqrt(1 / (3 * self.config.embed_dim)), self.config.embed_dim
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        nn.init.trunc_normal_(self.pos_start, std=std)
        nn.init.trunc_normal_(self.pos_1LC, std=std)
        self.head.weight.mul_(head)
        cast(nn.Linear, self.head_nm.ada_lin[1]).weight.mul_(adaln)
        for block in self._blocks:
            block.attn.proj.weight.div_(sqrt(2 * self.config.depth))
            block.ffn.fc2.weight.div_(sqrt(2 * self.config.depth))
            if self.config.shared_aln:
                block.ada_gss[:, :, :2].mul_(adaln_gamma)
                block.ada_gss[:, :, 2:].mul_(adaln)
            else:
                linear = cast(nn.Linear, block.ada_lin[1])
                linear.weight[: 2 * width].mul_(adaln_gamma)
                linear.weight[2 * width :].mul_(adaln)
