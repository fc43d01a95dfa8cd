"""FlowAR's velocity network (arXiv 2412.15205, section 3.3): a small transformer over the tokens of one scale.

Its inputs are a noisy token map, the time, and the features that the transformer predicts for each token of that map.

Letters: R rows, L tokens, C width of the transformer, W width of the head, c latent channels, K times per row.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.models.layers.attention import Attend, RotaryAttention, RotaryCrossAttention, to_all
from var_toolkit.models.layers.gated_mlp import GatedMLP, RMSNorm, modulated
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.rotary import Rotation

HEAD_DIM = 64
MLP_RATIO = 4
FREQUENCIES = 256
LONGEST = 10_000  # longest period of the time sinusoids, in thousandths


class HeadCondition(NamedTuple):
    """What does not depend on the time: computed once per map, used at every solver step."""

    embedding: Tensor  # (R, L, W)
    memories: list[tuple[Tensor, Tensor]]  # keys and values (R, H, L, D) of each cross-attention; else empty

    def rows(self, count: int) -> HeadCondition:
        """The first `count` rows."""
        return HeadCondition(self.embedding[:count], [(k[:count], v[:count]) for k, v in self.memories])


class Conditioning(NamedTuple):
    """Inputs of the AdaLN layers: from the time alone, and from the time plus the features of each token."""

    time: Tensor  # SiLU of (R, K, W)
    both: Tensor  # SiLU of (R, L, W)
    levels: Tensor | None  # index into the K times for each token, (L); None if K is 1

    def per_token(self, by_time_RKW: Tensor) -> Tensor:
        """Values per time (R, K, W) -> values per token (R, L, W)."""
        return by_time_RKW if self.levels is None else by_time_RKW[:, self.levels]


class StepEmbedding(nn.Module):
    """Sinusoidal embedding of whole numbers, followed by an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(FREQUENCIES, width), nn.SiLU(), Linear(width, width))

    def forward(self, steps: Tensor) -> Tensor:
        """Whole numbers, (...), -> (..., W)."""
        half = FREQUENCIES // 2
        frequencies = (torch.arange(half, device=steps.device) * (-log(LONGEST) / half)).exp()
        angles = steps.unsqueeze(-1) * frequencies
        first = cast(Linear, self.mlp[0])
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(first.weight.dtype))


class TimeEmbedding(StepEmbedding):
    """The embedding of times in [0, 1]: as published, they are truncated to whole thousandths in float32."""

    def forward(self, times_RK: Tensor) -> Tensor:
        """Times (R, K) -> (R, K, W)."""
        return super().forward((times_RK.float() * 1000).long())


class HeadBlock(nn.Module):
    """Self-attention and MLP, both modulated (AdaLN) by the time and the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = RotaryAttention(width, width // HEAD_DIM, bias=False)
        self.mlp = GatedMLP(width, int(width * MLP_RATIO * 2 / 3))
        self.ada_lin = Linear(width, 6 * width)

    def forward(self, x_RLW: Tensor, cond: Conditioning, rotation: Rotation, attend: Attend) -> Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = self.ada_lin(cond.both).chunk(6, dim=-1)
        x_RLW = torch.addcmul(x_RLW, self.attn(modulated(x_RLW, scale1, shift1), rotation, attend), gate1)
        return torch.addcmul(x_RLW, self.mlp(modulated(x_RLW, scale2, shift2)), gate2)


class CrossHeadBlock(nn.Module):
    """Self-attention modulated by the time, cross-attention to the features, and an MLP modulated by both."""

    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.attn = RotaryAttention(width, width // HEAD_DIM, bias=False)
        self.crossattn = RotaryCrossAttention(width, width // HEAD_DIM, memory_width)
        self.norm2_1, self.norm2_2 = RMSNorm(width), RMSNorm(memory_width)
        self.mlp = GatedMLP(width, int(width * MLP_RATIO * 2 / 3))
        self.ada_lin_attn, self.ada_lin_mlp = Linear(width, 3 * width), Linear(width, 3 * width)

    def keys_and_values(self, hidden_RLC: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, L, D) of the features."""
        return self.crossattn.keys_and_values(self.norm2_2(hidden_RLC), rotation)

    def forward(
        self, x_RLW: Tensor, cond: Conditioning, rotation: Rotation, attend: Attend, memory: tuple[Tensor, Tensor]
    ) -> Tensor:
        gate1, scale1, shift1 = cond.per_token(self.ada_lin_attn(cond.time)).chunk(3, dim=-1)
        gate2, scale2, shift2 = self.ada_lin_mlp(cond.both).chunk(3, dim=-1)
        x_RLW = torch.addcmul(x_RLW, self.attn(modulated(x_RLW, scale1, shift1), rotation, attend), gate1)
        x_RLW = x_RLW + self.crossattn(self.norm2_1(x_RLW), memory, rotation, attend)
        return torch.addcmul(x_RLW, self.mlp(modulated(x_RLW, scale2, shift2)), gate2)


class FinalLayer(nn.Module):
    """Modulated norm and a linear layer."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x_RLW: Tensor, cond: Conditioning) -> Tensor:
        shift, scale = self.adaLN_modulation[1](cond.both).chunk(2, dim=-1)
        return self.linear(modulated(x_RLW, scale, shift))


class FlowHead(nn.Module):
    """Noisy token maps (R, L, c), times and features of the transformer (R, L, C) -> velocities (R, L, c)."""

    def __init__(self, channels: int, width: int, depth: int, memory_width: int, *, cross_attention: bool) -> None:
        super().__init__()
        self.cross_attention = cross_attention
        self.time_embed = TimeEmbedding(width)
        self.cond_embed, self.input_proj = Linear(memory_width, width), Linear(channels, width)
        self.res_blocks = nn.ModuleList(
            CrossHeadBlock(width, memory_width) if cross_attention else HeadBlock(width) for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, channels)

    def condition(self, hidden_RLC: Tensor, rotation: Rotation) -> HeadCondition:
        """What all solver steps on the same features share."""
        blocks = self.res_blocks if self.cross_attention else ()
        memories = [cast(CrossHeadBlock, block).keys_and_values(hidden_RLC, rotation) for block in blocks]
        return HeadCondition(self.cond_embed(hidden_RLC), memories)

    def forward(
        self,
        x_RLc: Tensor,
        times_RK: Tensor,
        condition: HeadCondition,
        rotation: Rotation,
        attend: Attend,
        levels_L: Tensor | None = None,
    ) -> Tensor:
        """Velocities (R, L, c). `levels_L` is the index into the K times for each token; without it K must be 1."""
        time = self.time_embed(times_RK)
        cond = Conditioning(F.silu(time), time, levels_L)
        cond = cond._replace(both=F.silu(condition.embedding + cond.per_token(time)))
        x_RLW = self.input_proj(x_RLc.to(self.input_proj.weight.dtype))
        for i, block in enumerate(self.res_blocks):
            x_RLW = block(x_RLW, cond, rotation, attend, *condition.memories[i : i + 1])
        return self.final_layer(x_RLW, cond)


class Field(NamedTuple):
    """The velocity field of one scale; time runs from noise at 1 to data at 0."""

    head: FlowHead
    condition: HeadCondition
    rotation: Rotation

    def rows(self, count: int) -> Field:
        """The field of the first `count` rows."""
        return self._replace(condition=self.condition.rows(count))

    def start(self, noise: Tensor) -> Tensor:
        """The state at time 1: the noise."""
        return noise

    def __call__(self, x_RLc: Tensor, time: float) -> Tensor:
        """Noisy tokens -> velocities (R, L, c), in the dtype of the weights."""
        times = torch.full((1, 1), time, dtype=torch.float32, device=x_RLc.device)
        return self.head(x_RLc, times, self.condition, self.rotation, to_all)
