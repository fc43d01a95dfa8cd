"""The file of KL-16, the continuous tokenizer of MAR and FlowAR (arXiv 2406.11838), as an AutoencoderKL of diffusers.

Both are the same network; the file has the key names of CompVis/latent-diffusion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit import strict_fields
from var_toolkit.formats.directory import fill
from var_toolkit.formats.state_dicts import Arguments, Tensors, Told, count, require, shape, sizes_of
from var_toolkit.tokenizers.files import TokenizerFiles
from var_toolkit.tokenizers.kl import KLConfig

SCALING = 0.2325  # latents times this have a variance about 1
ARGUMENTS = Arguments(ignored=frozenset({"ckpt_path", "use_variational"}))
REQUIRED = ("encoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight")
LEVEL = re.compile(r"\.up\.(\d+)\.")
# In this order: what is renamed further down lies inside what is renamed further up.
NAMES = (
    (".down.", ".down_blocks."), (".downsample.", ".downsamplers.0."), (".upsample.", ".upsamplers.0."),
    (".mid.block_1.", ".mid_block.resnets.0."), (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.", ".mid_block.attentions.0."), (".block.", ".resnets."), (".attn.", ".attentions."),
    (".nin_shortcut.", ".conv_shortcut."), (".norm_out.", ".conv_norm_out."), (".norm.", ".group_norm."),
    (".q.", ".to_q."), (".k.", ".to_k."), (".v.", ".to_v."), (".proj_out.", ".to_out.0."),
)  # fmt: skip


@dataclass(frozen=True)
class KL16Config:
    """Sizes under the published names."""

    embed_dim: int = 16
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2


def empty_autoencoder(settings: Mapping[str, Any], source: str) -> nn.Module:
    """KL-16 without weights."""
    return _built(strict_fields.build(KL16Config, settings, where=source), attention=True)


def autoencoder_from_tensors(
    tensors: Tensors, given: Mapping[str, Any], patch_nums: tuple[int, ...], source: str
) -> nn.Module:
    """The autoencoder of a published state dict, whatever the schedule."""
    told = Told.read(given, KL16Config, ARGUMENTS, "the configuration of the tokenizer")
    require(tensors, REQUIRED, source)
    sizes = KL16Config(**told.merged(sizes_of(_sizes, tensors, source)))
    levels = len(sizes.ch_mult)
    network = _built(sizes, attention=f"encoder.down.{levels - 1}.attn.0.q.weight" in tensors)
    fill(network, dict(_renamed(name, tensor, levels) for name, tensor in tensors.items()), source)
    return network.float().eval()


def _built(sizes: KL16Config, *, attention: bool) -> nn.Module:
    config = KLConfig(
        block_out_channels=tuple(sizes.ch * mult for mult in sizes.ch_mult),
        layers_per_block=sizes.num_res_blocks,
        latent_channels=sizes.embed_dim,
        encoder_attention=attention,
    )
    with torch.device("meta"):
        network: nn.Module = config.build(SCALING)
    return network


def _sizes(tensors: Tensors) -> dict[str, Any]:
    ch = shape(tensors, "encoder.conv_in.weight", 4)[0]
    levels = range(count(tensors, "encoder.down."))
    return {
        "embed_dim": shape(tensors, "post_quant_conv.weight", 4)[1],
        "ch": ch,
        "ch_mult": tuple(shape(tensors, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] // ch for i in levels),
        "num_res_blocks": count(tensors, "encoder.down.0.block."),
    }


def _renamed(name: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    """A tensor under its name in diffusers, which counts the decoder's levels from the coarsest on."""
    name = LEVEL.sub(lambda found: f".up_blocks.{levels - 1 - int(found[1])}.", name)
    for theirs, ours in NAMES:
        name = name.replace(theirs, ours)
    # Where diffusers has linear layers in its attention, the file has convolutions of one pixel.
    return name, tensor.flatten(1) if ".attentions." in name and tensor.ndim == 4 else tensor


FILES = TokenizerFiles("AutoencoderKL", "continuous tokens", REQUIRED, autoencoder_from_tensors, empty_autoencoder)
