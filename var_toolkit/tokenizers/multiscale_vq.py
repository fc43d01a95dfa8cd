"""The multi-scale VQ tokenizer of VAR (arXiv 2404.02905, section 3.2), key-compatible with `vae_ch160v4096z32.pth`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit.core.schedule import SCHEDULES, Schedule, increasing_sides
from var_toolkit.formats.directory import build, fill
from var_toolkit.formats.next_scale_files import ARGUMENTS
from var_toolkit.formats.state_dicts import Tensors, Told, count, require, shape, sizes_of
from var_toolkit.tokenizers.cnn import Decoder, Encoder, to_channels_last
from var_toolkit.tokenizers.codebook import CodebookTokenizer
from var_toolkit.tokenizers.files import TokenizerFiles
from var_toolkit.tokenizers.residual_quantizer import ResidualQuantizer


@dataclass(frozen=True)
class MultiScaleVQConfig:
    """Sizes of the tokenizer; the defaults are the published ones."""

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    patch_nums: tuple[int, ...] = SCHEDULES["256"]
    share_quant_resi: int = 4
    quant_resi: float = 0.5
    beta: float = 0.25
    using_znorm: bool = False
    quant_conv_ks: int = 3
    norm_groups: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        object.__setattr__(self, "patch_nums", increasing_sides(self.patch_nums))
        for name in ("vocab_size", "z_channels", "ch", "num_res_blocks", "quant_conv_ks", "norm_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.share_quant_resi < 0:
            raise ValueError(f"share_quant_resi is {self.share_quant_resi}; it must be 0 (one phi per scale) or more")

        if any(self.ch * m % self.norm_groups for m in self.ch_mult):
            raise ValueError(
                f"norm_groups is {self.norm_groups}; it must divide ch * ch_mult, {self.ch} * {self.ch_mult}"
            )

    @property
    def downsample(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.ch_mult) - 1)


class MultiScaleVQ(CodebookTokenizer):
    """Images to a pyramid of token maps and back. Images are float in [-1, 1], (B, 3, h, w)."""

    def __init__(self, config: MultiScaleVQConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = Schedule(config.patch_nums)
        shape = (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels, config.norm_groups)
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)
        self.quantize = ResidualQuantizer(
            self.scales,
            vocab_size=config.vocab_size,
            channels=config.z_channels,
            share_quant_resi=config.share_quant_resi,
            quant_resi=config.quant_resi,
            beta=config.beta,
            using_znorm=config.using_znorm,
        )
        kernel = config.quant_conv_ks
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, kernel, padding=kernel // 2)
        to_channels_last(self)

    def meaning(self) -> dict[str, Tensor]:
        """Tensors that identify the tokens: parts of models with equal ones can be combined."""
        tensors = self.quantize.state_dict().items()
        return {name: tensor for name, tensor in tensors if name.startswith(("embedding", "quant_resi"))}


REQUIRED = ("encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight")


def empty_tokenizer(settings: Mapping[str, Any], source: str) -> nn.Module:
    """A tokenizer without weights."""
    return build(MultiScaleVQ, settings, source)


def tokenizer_from_tensors(
    tensors: Tensors, given: Mapping[str, Any], patch_nums: tuple[int, ...], source: str
) -> nn.Module:
    """The tokenizer of a published state dict. It works for any schedule, so the backbone's is used."""
    told = Told.read(given, MultiScaleVQConfig, ARGUMENTS, "the configuration of the tokenizer")
    require(tensors, REQUIRED, source)
    settings = told.merged({**sizes_of(_tokenizer_sizes, tensors, source), "patch_nums": patch_nums})
    network = build(MultiScaleVQ, settings, source)
    filled, usage = dict(tensors), "quantize.ema_vocab_hit_SV"
    counts = network.get_buffer(usage).shape
    if usage not in filled or filled[usage].shape != counts:
        filled[usage] = torch.zeros(counts)  # statistics of training with another schedule; no result depends on them
    fill(network, filled, source)
    return network.float().eval()


def _tokenizer_sizes(tensors: Tensors) -> dict[str, Any]:
    vocabulary, channels = shape(tensors, "quantize.embedding.weight", 2)
    ch = shape(tensors, "encoder.conv_in.weight", 4)[0]
    levels = range(count(tensors, "encoder.down."))
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "z_channels": channels,
        "ch": ch,
        "ch_mult": tuple(shape(tensors, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] // ch for i in levels),
        "num_res_blocks": count(tensors, "encoder.down.0.block."),
        "quant_conv_ks": shape(tensors, "quant_conv.weight", 4)[-1],
    }
    shared = count(tensors, "quantize.quant_resi.qresi_ls.")
    if shared:
        sizes["share_quant_resi"] = shared
    elif "quantize.quant_resi.qresi.weight" in tensors:
        sizes["share_quant_resi"] = 1
    elif count(tensors, "quantize.quant_resi."):
        sizes["share_quant_resi"] = 0
    return sizes


FILES = TokenizerFiles("MultiScaleVQ", "discrete tokens", REQUIRED, tokenizer_from_tensors, empty_tokenizer)
NETWORKS = {"MultiScaleVQ": "tokenizer"}
MODELS = {
    "stilllife-tokenizer": {
        "summary": "multi-scale VQ tokenizer of still lifes",
        "embedded": {"tokenizer": "stilllife-tokenizer"},
    },
}  # fmt: skip
