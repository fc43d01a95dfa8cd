"""Files of VAR and HMAR, and of the tokenizer they share: sizes from tensors, and the names of tensors.

From FoundationVision/VAR and, for HMAR, from descriptions of its files. Our networks have the published tensor names,
so nothing is renamed; only buffers that can be computed are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from var_toolkit.core.schedule import SCHEDULES, Scales
from var_toolkit.formats.directory import build, fill
from var_toolkit.formats.state_dicts import Arguments, Tensors, Told, count, require, shape, sizes_of
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig

REQUIRED = ("word_embed.weight", "class_emb.weight", "pos_1LC", "lvl_embed.weight")  # of either backbone
TOKENIZER_REQUIRED = ("encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight")
DROPPED = ("attn_bias_for_masking", "lvl_1L", "zero_k_bias")
ARGUMENTS = Arguments(
    renamed={"v_patch_nums": "patch_nums", "n_layers_train": "branch_depth"},
    ignored=frozenset({
        "attn_drop_rate", "cond_drop_rate", "default_qresi_counts", "drop_path_rate", "drop_rate", "dropout",
        "flash_if_available", "fused_if_available", "model", "other", "test_mode",
    }),
)  # fmt: skip


def var_sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a VAR."""
    return {"depth": count(tensors, "blocks."), **_next_scale_sizes(tensors, "blocks.0", "head")}


def hmar_sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of an HMAR."""
    branch = count(tensors, "ns_blocks.")
    sizes = {"depth": count(tensors, "base_blocks.") + branch, "branch_depth": branch}
    return {**sizes, **_next_scale_sizes(tensors, "ns_blocks.0", "ns_head")}


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines: the schedule, from its length, and the heads."""
    if "patch_nums" not in settings:
        settings["patch_nums"] = _known_schedule(tensors, source)
    # Without L2 normalisation no tensor determines the heads; the published models have one per 64 channels.
    return {"num_heads": max(settings["embed_dim"] // 64, 1), **settings}


def empty_tokenizer(settings: Mapping[str, Any], source: str) -> nn.Module:
    """A tokenizer without weights."""
    return build(MultiScaleVQ, settings, source)


def tokenizer_from_tensors(
    tensors: Tensors, given: Mapping[str, Any], patch_nums: tuple[int, ...], source: str
) -> nn.Module:
    """The tokenizer of a published state dict. It works for any schedule, so the backbone's is used."""
    told = Told.read(given, MultiScaleVQConfig, ARGUMENTS, "the configuration of the tokenizer")
    require(tensors, TOKENIZER_REQUIRED, source)
    settings = told.merged({**sizes_of(_tokenizer_sizes, tensors, source), "patch_nums": patch_nums})
    network = build(MultiScaleVQ, settings, source)
    filled, usage = dict(tensors), "quantize.ema_vocab_hit_SV"
    counts = network.get_buffer(usage).shape
    if usage not in filled or filled[usage].shape != counts:
        filled[usage] = torch.zeros(counts)  # statistics of training with another schedule; no result depends on them
    fill(network, filled, source)
    return network.float().eval()


def _next_scale_sizes(tensors: Tensors, block: str, head: str) -> dict[str, Any]:
    width, channels = shape(tensors, "word_embed.weight", 2)
    shape(tensors, "pos_1LC", 3)
    shape(tensors, "lvl_embed.weight", 2)
    sizes: dict[str, Any] = {
        "embed_dim": width,
        "latent_channels": channels,
        "num_classes": shape(tensors, "class_emb.weight", 2)[0] - 1,
        "vocab_size": shape(tensors, f"{head}.weight", 2)[0],
        "shared_aln": "shared_ada_lin.1.weight" in tensors,
        "attn_l2_norm": f"{block}.attn.scale_mul_1H11" in tensors,
    }
    if f"{block}.ffn.fc1.weight" in tensors:
        sizes["mlp_ratio"] = shape(tensors, f"{block}.ffn.fc1.weight", 2)[0] / width
    if sizes["attn_l2_norm"]:
        sizes["num_heads"] = shape(tensors, f"{block}.attn.scale_mul_1H11", 4)[1]
    if "lvl_1L" in tensors:
        sizes["patch_nums"] = tuple(round(n**0.5) for n in tensors["lvl_1L"].flatten().long().bincount().tolist())
    return sizes


def _known_schedule(tensors: Tensors, source: str) -> tuple[int, ...]:
    scales, length = len(tensors["lvl_embed.weight"]), tensors["pos_1LC"].shape[1]
    for sides in SCHEDULES.values():
        if len(sides) == scales and Scales(sides).total == length:
            return sides
    raise ValueError(
        f"{source} has {scales} scales and {length} tokens, as no published schedule; give patch_nums by --config"
    )


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
