"""Hi-MAR's second denoising network (arXiv 2505.20288): a DiT over the whole map of tokens.

Letters: B images, R rows, L tokens, C features, W width, c channels.
"""

from __future__ import annotations

from math import isqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.sketch import Sketch
from var_toolkit.heads.diffusion import Chain, Prediction
from var_toolkit.heads.head import Setting
from var_toolkit.models.layers.diffusion_head import InFloat32, LastLayer, modulated_norm
from var_toolkit.models.layers.flow_head import LONGEST, StepEmbedding
from var_toolkit.models.layers.linear import Linear, linear
from var_toolkit.models.layers.masked_order import taken
from var_toolkit.models.layers.vit_block import ViTAttention, ViTMLP


class PointConv(nn.Module):
    """A convolution of one pixel, under its published name, of tokens (R, L, c)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.proj.weight.flatten(1), self.proj.bias)


class MapBlock(nn.Module):
    """Attention and MLP, modulated and gated at each token."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.attn, self.mlp = ViTAttention(width, heads, 0.0), ViTMLP(width, int(width * ratio), 0.0)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """`active` is SiLU of the conditioning, (R, L, W)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation[1](active).chunk(6, dim=-1)
        x = torch.addcmul(x, gate1, self.attn(modulated_norm(x, scale1, shift1)))
        h = self.mlp.fc1.gelu(modulated_norm(x, scale2, shift2))
        return torch.addcmul(x, gate2, self.mlp.fc2(h))


class MapHead(InFloat32):
    """States (R, L, c) of a map, a step and features of the transformer (R, L, C) -> epsilon (R, L, c)."""

    def __init__(self, channels: int, width: int, depth: int, heads: int, ratio: float, features: int) -> None:
        super().__init__()
        self.x_embedder, self.c_embedder = PointConv(channels, width), PointConv(features, width)
        self.t_embedder = StepEmbedding(width)
        self.blocks = nn.ModuleList(MapBlock(width, heads, ratio) for _ in range(depth))
        self.final_layer = LastLayer(width, channels)

    def forward(self, x_RLc: Tensor, steps: Tensor, embedded_RLW: Tensor) -> Tensor:
        """`steps` are training steps that broadcast to (R, L), `embedded_RLW` is `c_embedder` of the features."""
        active = F.silu(self.t_embedder(steps) + embedded_RLW)
        x = self.x_embedder(x_RLc)
        x = x + positions(isqrt(x.shape[1]), x.shape[2], x.device)
        for block in self.blocks:
            x = block(x, active)
        return cast(Tensor, self.final_layer(x, self.final_layer.adaLN_modulation[1](active)))

    def init_weights(self) -> None:
        """That of DiT (arXiv 2212.09748): what modulates and the last layer are 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(cast(Tensor, module.bias))
        for step in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(cast(Linear, step).weight, std=0.02)
        last = self.final_layer
        zero = [block.adaLN_modulation[1] for block in self.blocks]  # type: ignore[index]
        for layer in (*zero, last.adaLN_modulation[1], last.linear):
            nn.init.zeros_(cast(Linear, layer).weight)


def positions(side: int, width: int, device: torch.device) -> Tensor:
    """The fixed table, (L, W): sines and cosines of the column, then of the row."""
    frequencies = LONGEST ** -(torch.arange(width // 4, device=device) / (width // 4))
    angles = torch.arange(side, device=device).unsqueeze(-1) * frequencies
    each = torch.cat((angles.sin(), angles.cos()), dim=-1)
    grid = (each.expand(side, -1, -1), each.unsqueeze(1).expand(-1, side, -1))
    return torch.cat(grid, dim=-1).flatten(0, 1)


class MapDenoiser:
    """The head with the features of a map, some of whose tokens are known (`heads.diffusion.Denoiser`)."""

    schedule, whole = "cosine", True

    def __init__(self, net: MapHead, hidden_RLC: Tensor, at: Setting, prediction: str) -> None:
        sketch: Sketch = at.sketch
        assert at.positions is not None
        self.prediction = prediction
        self.net, self.embedded, self.tokens_BLc = net, net.c_embedder(hidden_RLC.float()), sketch.tokens_BLc
        self.asked_BN = sketch.order_BL[:, sketch.known : sketch.known + at.positions.shape[1]]
        ranks = torch.arange(sketch.order_BL.shape[1], device=hidden_RLC.device).expand_as(sketch.order_BL)
        self.known_BL1 = (torch.zeros_like(sketch.order_BL).scatter(1, sketch.order_BL, ranks) < sketch.known)[
            ..., None
        ]

    def begin(self, indices: tuple[int, ...]) -> None:
        """Nothing: each step has rows enough."""

    def places(self, at: Setting) -> Tensor:
        """Every position of the map."""
        count = self.tokens_BLc.shape[1]
        first = torch.arange(at.first, at.first + count, device=self.tokens_BLc.device)
        return first.expand(len(self.tokens_BLc), -1)

    def kept(self, x_BLc: Tensor) -> Tensor:
        """The tokens of the group."""
        return taken(x_BLc, self.asked_BN)

    def given(self, x_BLc: Tensor, start_BLc: Tensor, chain: Chain, k: int) -> Tensor:
        """The state with known tokens at the chain's level, in the noise that it began with, as published."""
        a, s = chain.roots(k)
        return torch.where(self.known_BL1, a * self.tokens_BLc + s * start_BLc, x_BLc)

    def __call__(self, x_RLc: Tensor, index: int) -> Prediction:
        step = torch.full((1, 1), index, device=x_RLc.device)
        return Prediction(self.net(x_RLc, step, self.embedded), None)
