"""The convolutional encoder and decoder of latent-diffusion tokenizers (VQGAN family), key-compatible with VAR's files.

Structure after Esser et al., "Taming Transformers" (arXiv 2012.09841) and Rombach et al. (arXiv 2112.10752). Any
memory format works; channels-last is the fastest, on the CPU and on the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.models.layers.int8_conv import Int8Conv2d

OTHER_GROUPS = 24  # of a norm whose channels the number of groups does not divide, as in Infinity's tokenizers


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups if channels % groups == 0 else OTHER_GROUPS, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Twice norm, SiLU and convolution, with a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of the map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)
        q, k, v = qkv.unsqueeze(1).split(channels, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, (height, width)))


class Downsample(nn.Module):
    """Stride-2 convolution that pads right and bottom only, as the published weights expect."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.conv, Int8Conv2d):
            return self.conv.doubled(x)
        if x.device.type == "cpu":
            return doubled_then_convolved(x, self.conv.weight, self.conv.bias)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def doubled_then_convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution with padding 1, with 4/9 of the multiplications.

    Three taps on the upsampled image read only two pixels of the original, so each of the four output phases is a 2x2
    convolution of the original.
    """
    batch, _, height, width = x.shape
    shape = (batch, len(weight), 2 * height, 2 * width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for i, rows in enumerate(_merged_taps(weight, 2)):
        for j, kernel in enumerate(_merged_taps(rows, 3)):
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            convolved = F.conv2d(x, kernel, bias, padding=1)
            out[:, :, i::2, j::2] = convolved[:, :, i : i + height, j : j + width]
    return out


def _merged_taps(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Merge three taps into the two that apply at even and at odd output positions."""
    before, here, after = weight.unbind(dim)
    return torch.stack((before, here + after), dim), torch.stack((before + here, after), dim)


class Level(nn.Module):
    """The blocks of one resolution, then resampling. At the coarsest resolution attention follows each block."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, groups: int, *, attention: bool, resample: str | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels, groups) for i in range(blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(out_channels, groups) for _ in range(blocks if attention else 0))
        self._resample = resample
        if resample is not None:
            self.add_module(resample, {"downsample": Downsample, "upsample": Upsample}[resample](out_channels))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x if self._resample is None else self.get_submodule(self._resample)(x)


class Middle(nn.Module):
    """Block, attention (unless there is none), block at the coarsest resolution."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images (B, pixel_channels, h, w) -> features (B, z_channels, h / f, w / f), f = 2 ** (levels - 1)."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        groups: int,
        *,
        pixel_channels: int = 3,
        attention: bool = True,
    ) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        coarsest = len(widths) - 1
        self.conv_in = nn.Conv2d(pixel_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([ch, *widths], widths, strict=False)):
            resample = "downsample" if i != coarsest else None
            attends = attention and i == coarsest
            self.down.append(Level(before, width, num_res_blocks, groups, attention=attends, resample=resample))
        self.mid = Middle(widths[-1], groups, attention)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h)), inplace=True))


class Decoder(nn.Module):
    """Features (B, z_channels, h / f, w / f) -> images (B, pixel_channels, h, w)."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        groups: int,
        *,
        pixel_channels: int = 3,
        attention: bool = True,
    ) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        coarsest = len(widths) - 1
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups, attention)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[min(i + 1, coarsest)]
            resample = "upsample" if i != 0 else None
            attends = attention and i == coarsest
            self.up.append(Level(before, width, num_res_blocks + 1, groups, attention=attends, resample=resample))
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], pixel_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h), inplace=True))


def to_channels_last(module: nn.Module) -> nn.Module:
    """Store convolution weights channels-last, the fastest layout for convolutions on CPU and GPU."""
    return module.to(memory_format=torch.channels_last)
