"""What the files of VAR and of the families derived from it have in common: sizes from tensors, names of arguments.

Our networks have the published tensor names, so nothing is renamed; only buffers that can be computed are dropped.
"""

from __future__ import annotations

from typing import Any

from var_toolkit.core.schedule import SCHEDULES, Schedule
from var_toolkit.formats.state_dicts import Arguments, Tensors, shape

REQUIRED = ("word_embed.weight", "class_emb.weight", "pos_1LC", "lvl_embed.weight")  # of any of them
DROPPED = ("attn_bias_for_masking", "lvl_1L", "zero_k_bias")
ARGUMENTS = Arguments(
    renamed={"v_patch_nums": "patch_nums", "n_layers_train": "branch_depth"},
    ignored=frozenset({
        "attn_drop_rate", "cond_drop_rate", "default_qresi_counts", "drop_path_rate", "drop_rate", "dropout",
        "flash_if_available", "fused_if_available", "model", "other", "test_mode",
    }),
)  # fmt: skip


def next_scale_sizes(tensors: Tensors, block: str, head: str, positions: int = 3) -> dict[str, Any]:
    """The sizes but the number of layers, from the tensors of its first `block` and of its output layer, `head`.

    `positions` are the axes of its table of positions.
    """
    width, channels = shape(tensors, "word_embed.weight", 2)
    shape(tensors, "pos_1LC", positions)
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


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines: the schedule, from its length, and the heads."""
    if "patch_nums" not in settings:
        scales, length = shape(tensors, "lvl_embed.weight", 2)[0], tensors["pos_1LC"].shape[1]
        settings["patch_nums"] = known_schedule(scales, length, source)
    return with_heads(settings, tensors, source)


def with_heads(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes with the number of heads; without L2 normalisation no tensor determines it.

    The published models have one per 64 channels.
    """
    return {"num_heads": max(settings["embed_dim"] // 64, 1), **settings}


def known_schedule(scales: int, length: int, source: str) -> tuple[int, ...]:
    """The published schedule of so many scales and tokens. ValueError if there is none."""
    for sides in SCHEDULES.values():
        if len(sides) == scales and Schedule(sides).total == length:
            return sides
    raise ValueError(
        f"{source} has {scales} scales and {length} tokens, as no published schedule; give patch_nums by --config"
    )
