"""Published files of next-scale models: what their key names and shapes say, and how they become our networks.

Facts from FoundationVision/VAR and, for HMAR, from descriptions of its files. Our networks keep the published key
names, so nothing is renamed; only buffers that can be computed are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit.backbones.hmar import HMAR, HMARConfig
from var_toolkit.backbones.var import VAR, VARConfig
from var_toolkit.scales import SCHEDULES, Scales
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig
from var_toolkit.zoo.directory import build, fill

DROPPED = ("attn_bias_for_masking", "lvl_1L", "zero_k_bias")
# Arguments of the published constructors that do not change what a trained network computes.
IGNORED = {
    "attn_drop_rate", "cond_drop_rate", "default_qresi_counts", "drop_path_rate", "drop_rate", "dropout",
    "flash_if_available", "fused_if_available", "model", "other", "test_mode",
}  # fmt: skip
RENAMED = {"v_patch_nums": "patch_nums", "n_layers_train": "branch_depth"}
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Told:
    """What a user says about a file, by the published constructors' argument names."""

    settings: dict[str, Any]
    source: str

    @classmethod
    def read(cls, given: Mapping[str, Any], allowed: type, source: str) -> Told:
        """Keep what our configuration knows, drop what changes nothing, refuse the rest by name."""
        known = {field.name for field in fields(allowed)}
        settings = {}
        for name, value in given.items():
            if name in IGNORED:
                continue
            ours = RENAMED.get(name, name)
            if ours not in known:
                choices = ", ".join(sorted(known | {name for name, ours in RENAMED.items() if ours in known}))
                raise ValueError(f"{source} has the unknown field {name!r}; known are {choices}")
            settings[ours] = tuple(value) if isinstance(value, list) else value
        return cls(settings, source)

    def merged(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """What the tensors say and what the user says; ValueError where the two disagree."""
        for name, value in self.settings.items():
            if name in seen and seen[name] != value:
                raise ValueError(f"{self.source} says {name} is {value}; the tensors say {seen[name]}")
        return {**self.settings, **seen}


@dataclass(frozen=True)
class Family:
    """How the files of one kind of backbone are read."""

    network: type[nn.Module]
    config: type
    required: tuple[str, ...]
    sizes: Callable[[Tensors], dict[str, Any]]


def backbone_from_tensors(family: str, tensors: Tensors, given: Mapping[str, Any], source: str) -> Any:
    """The transformer of a published state dict. `given` are constructor arguments that the tensors cannot tell."""
    kind = FAMILIES[family]
    told = Told.read(given, kind.config, "the configuration of the backbone")
    _require(tensors, ("word_embed.weight", "class_emb.weight", "pos_1LC", "lvl_embed.weight", *kind.required), source)
    settings = told.merged(_sizes(kind.sizes, tensors, source))
    if "patch_nums" not in settings:
        settings["patch_nums"] = _known_schedule(len(tensors["lvl_embed.weight"]), tensors["pos_1LC"].shape[1], source)
    # Without L2 normalisation no tensor tells the heads; the published family has one for 64 channels.
    settings.setdefault("num_heads", max(settings["embed_dim"] // 64, 1))
    network = build(kind.network, settings, source)
    fill(network, {k: v for k, v in tensors.items() if not k.endswith(DROPPED)}, source)
    return network.float().eval()


def tokenizer_from_tensors(
    tensors: Tensors, given: Mapping[str, Any], patch_nums: tuple[int, ...], source: str
) -> MultiScaleVQ:
    """The tokenizer of a published state dict. It serves any schedule, so the backbone's decides."""
    told = Told.read(given, MultiScaleVQConfig, "the configuration of the tokenizer")
    _require(tensors, ("encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight"), source)
    settings = told.merged({**_sizes(_tokenizer_sizes, tensors, source), "patch_nums": patch_nums})
    network = build(MultiScaleVQ, settings, source)
    kept, usage = dict(tensors), "quantize.ema_vocab_hit_SV"
    shape = network.get_buffer(usage).shape
    if usage not in kept or kept[usage].shape != shape:
        kept[usage] = torch.zeros(shape)  # counts of training with another schedule, which no result depends on
    fill(network, kept, source)
    return network.float().eval()  # type: ignore[return-value]


def networks_from_tensors(
    family: str, tokenizer: Tensors, backbone: Tensors, config: Mapping[str, Any], sources: tuple[str, str]
) -> tuple[MultiScaleVQ, Any]:
    """Both networks of a published model; the tokenizer takes the backbone's schedule, and their sizes must agree."""
    drawing = backbone_from_tensors(family, backbone, config.get("backbone", {}), sources[1])
    vq = tokenizer_from_tensors(tokenizer, config.get("tokenizer", {}), drawing.config.patch_nums, sources[0])
    for ours, theirs, what in (
        (drawing.config.vocab_size, vq.config.vocab_size, "codes"),
        (drawing.config.latent_channels, vq.config.z_channels, "latent channels"),
    ):
        if ours != theirs:
            raise ValueError(
                f"{sources[1]} expects {ours} {what}, {sources[0]} has {theirs}: they do not belong together"
            )
    return vq, drawing


def _require(tensors: Tensors, names: tuple[str, ...], source: str) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"{source} lacks {missing[0]!r} ({len(tensors)} tensors): not a published file of this kind")


def _sizes(read: Callable[[Tensors], dict[str, Any]], tensors: Tensors, source: str) -> dict[str, Any]:
    try:
        return read(tensors)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{source} has missing or misshapen tensors ({error}): it is damaged or of another kind"
        ) from None


def _count(tensors: Tensors, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})


def _var_sizes(tensors: Tensors) -> dict[str, Any]:
    return {"depth": _count(tensors, "blocks."), **_next_scale_sizes(tensors, "blocks.0", "head")}


def _hmar_sizes(tensors: Tensors) -> dict[str, Any]:
    branch = _count(tensors, "ns_blocks.")
    sizes = {"depth": _count(tensors, "base_blocks.") + branch, "branch_depth": branch}
    return {**sizes, **_next_scale_sizes(tensors, "ns_blocks.0", "ns_head")}


def _next_scale_sizes(tensors: Tensors, block: str, head: str) -> dict[str, Any]:
    width, channels = tensors["word_embed.weight"].shape
    sizes: dict[str, Any] = {
        "embed_dim": width,
        "latent_channels": channels,
        "num_classes": len(tensors["class_emb.weight"]) - 1,
        "vocab_size": len(tensors[f"{head}.weight"]),
        "shared_aln": "shared_ada_lin.1.weight" in tensors,
        "attn_l2_norm": f"{block}.attn.scale_mul_1H11" in tensors,
    }
    if f"{block}.ffn.fc1.weight" in tensors:
        sizes["mlp_ratio"] = len(tensors[f"{block}.ffn.fc1.weight"]) / width
    if sizes["attn_l2_norm"]:
        sizes["num_heads"] = tensors[f"{block}.attn.scale_mul_1H11"].shape[1]
    if "lvl_1L" in tensors:
        sizes["patch_nums"] = tuple(round(n**0.5) for n in tensors["lvl_1L"].flatten().long().bincount().tolist())
    return sizes


def _known_schedule(count: int, length: int, source: str) -> tuple[int, ...]:
    for sides in SCHEDULES.values():
        if len(sides) == count and Scales(sides).total == length:
            return sides
    raise ValueError(
        f"{source} has {count} scales and {length} tokens, no published schedule; give patch_nums by --config"
    )


def _tokenizer_sizes(tensors: Tensors) -> dict[str, Any]:
    vocabulary, channels = tensors["quantize.embedding.weight"].shape
    ch = len(tensors["encoder.conv_in.weight"])
    levels = range(_count(tensors, "encoder.down."))
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "z_channels": channels,
        "ch": ch,
        "ch_mult": tuple(len(tensors[f"encoder.down.{i}.block.0.conv1.weight"]) // ch for i in levels),
        "num_res_blocks": _count(tensors, "encoder.down.0.block."),
        "quant_conv_ks": tensors["quant_conv.weight"].shape[-1],
    }
    shared = _count(tensors, "quantize.quant_resi.qresi_ls.")
    if shared:
        sizes["share_quant_resi"] = shared
    elif "quantize.quant_resi.qresi.weight" in tensors:
        sizes["share_quant_resi"] = 1
    elif _count(tensors, "quantize.quant_resi."):
        sizes["share_quant_resi"] = 0
    return sizes


FAMILIES = {
    "var": Family(VAR, VARConfig, ("head.weight",), _var_sizes),
    "hmar": Family(HMAR, HMARConfig, ("ns_head.weight", "mask_embed.weight", "word_embed_bias"), _hmar_sizes),
}
