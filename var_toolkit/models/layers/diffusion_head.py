"""MAR's denoising network (arXiv 2406.11838, section 3.3): an MLP of single tokens, modulated by features and step.

Letters: R rows, N tokens, C features, W width, c channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.heads.diffusion import Chain, Prediction
from var_toolkit.heads.head import Setting
from var_toolkit.models.layers.flow_head import StepEmbedding
from var_toolkit.models.layers.linear import Linear

EPS = 1e-6
ROWS = 512  # of the products that modulate several steps at once


class InFloat32(nn.Module):
    """A module whose weights stay float32 when the network around it is moved to another dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InFloat32:
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            if not tensor.is_floating_point() or found.dtype == torch.float32:
                return found
            return tensor.to(found.device, torch.float32)

        return cast(InFloat32, super()._apply(moved, recurse))


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer normalisation without a gain, times 1 + scale, plus shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


class ResidualBlock(nn.Module):
    """An MLP of two layers, modulated and gated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 3 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """`modulation` is (..., 3W)."""
        shift, scale, gate = modulation.chunk(3, dim=-1)
        first = cast(Linear, self.mlp[0])
        h = first.silu(torch.addcmul(shift, self.in_ln(x), 1 + scale))
        return torch.addcmul(x, gate, self.mlp[2](h))


class LastLayer(nn.Module):
    """Modulated norm and a linear layer."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """`modulation` is (..., 2W)."""
        shift, scale = modulation.chunk(2, dim=-1)
        return self.linear(modulated_norm(x, scale, shift))


class DiffusionMLP(InFloat32):
    """States (R, N, c), embedded steps and features of the transformer -> (R, N, 2c): a prediction and its variance."""

    def __init__(self, channels: int, width: int, depth: int, features: int) -> None:
        super().__init__()
        self.time_embed = StepEmbedding(width)
        self.cond_embed, self.input_proj = Linear(features, width), Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = LastLayer(width, 2 * channels)

    def forward(self, x_RNc: Tensor, steps: Tensor, embedded_RNW: Tensor) -> Tensor:
        """`steps` are training steps that broadcast to (R, N), `embedded_RNW` is `cond_embed` of the features."""
        return self.denoised(x_RNc, self.modulations(steps, embedded_RNW))

    def modulations(self, steps: Tensor, embedded_RNW: Tensor) -> list[Tensor]:
        """What modulates the blocks, (..., 3W) each, and the last layer, (..., 2W), whatever the states."""
        active = F.silu(self.time_embed(steps) + embedded_RNW)
        blocks = [cast(ResidualBlock, block).adaLN_modulation[1](active) for block in self.res_blocks]
        return [*blocks, self.final_layer.adaLN_modulation[1](active)]

    def denoised(self, x_RNc: Tensor, modulations: list[Tensor]) -> Tensor:
        """The output for states."""
        x, (*of_blocks, last) = self.input_proj(x_RNc), modulations
        for block, modulation in zip(self.res_blocks, of_blocks, strict=True):
            x = block(x, modulation)
        return cast(Tensor, self.final_layer(x, last))

    def init_weights(self) -> None:
        """The published initialisation: what modulates and the last layer are 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for step in (self.time_embed.mlp[0], self.time_embed.mlp[2]):
            nn.init.normal_(cast(Linear, step).weight, std=0.02)
        last = self.final_layer
        zero = [block.adaLN_modulation[1] for block in self.res_blocks]  # type: ignore[index]
        for layer in (*zero, last.adaLN_modulation[1], last.linear):
            nn.init.zeros_(cast(Linear, layer).weight)


class TokenDenoiser:
    """The MLP with the features of some tokens (`heads.diffusion.Denoiser`).

    Of few tokens it computes what modulates the layers for many steps at once: that is most of the weights, and a
    product with few rows takes as long as reading them.
    """

    schedule, whole = "cosine", False

    def __init__(self, net: DiffusionMLP, hidden_RNC: Tensor, prediction: str) -> None:
        self.net, self.prediction = net, prediction
        self.embedded = net.cond_embed(hidden_RNC.float())
        self.indices: tuple[int, ...] = ()
        self.ahead: dict[int, list[Tensor]] = {}

    def begin(self, indices: tuple[int, ...]) -> None:
        """Note the steps that follow."""
        self.indices = indices

    def __call__(self, x_RNc: Tensor, index: int) -> Prediction:
        if index not in self.ahead:
            self._look_ahead(index)
        value, variance = self.net.denoised(x_RNc, self.ahead.pop(index)).chunk(2, dim=-1)
        return Prediction(value, (variance + 1) / 2)

    def _look_ahead(self, index: int) -> None:
        """Compute the modulation of a step and of those after it."""
        after = self.indices[self.indices.index(index) :] if index in self.indices else (index,)
        some = after[: max(1, ROWS // (self.embedded.shape[0] * self.embedded.shape[1]))]
        steps_T11 = torch.stack([torch.full((1, 1), each, device=self.embedded.device) for each in some])
        found = self.net.modulations(steps_T11, self.embedded)
        self.ahead = {each: [part[k] for part in found] for k, each in enumerate(some)}

    def places(self, at: Setting) -> Tensor:
        """The positions of the group."""
        assert at.positions is not None
        return at.positions

    def kept(self, x_BNc: Tensor) -> Tensor:
        """All of them."""
        return x_BNc

    def given(self, x_BNc: Tensor, start_BNc: Tensor, chain: Chain, k: int) -> Tensor:
        """The state as it is: every token is unknown."""
        return x_BNc


def under(net: nn.Module) -> nn.ModuleDict:
    """The network under its published name."""
    return nn.ModuleDict({"net": net})
