"""Files of FlowAR (OliverRensu/FlowAR): sizes from tensors, and the names of tensors.

Our network has the published tensor names; the mask and the RoPE tables are dropped.
"""

from __future__ import annotations

from typing import Any

from var_toolkit.core.schedule import Scales
from var_toolkit.formats.state_dicts import Arguments, Tensors, count, shape

REQUIRED = ("class_emb.weight", "z_proj.weight", "encoder_pos_embed_learned", "decoder_embed.weight")
DROPPED = ("mask", "rope.freqs")
ARGUMENTS = Arguments(
    renamed={
        "encoder_embed_dim": "embed_dim", "decoder_embed_dim": "embed_dim",
        "encoder_num_heads": "num_heads", "decoder_num_heads": "num_heads",
        "class_num": "num_classes", "vae_embed_dim": "latent_channels", "scale": "patch_nums",
        "diffloss_d": "head_depth", "diffloss_w": "head_width", "cross": "cross_attention",
    },
    ignored=frozenset({
        "attn_dropout", "buffer_size", "img_size", "label_drop_prob", "norm_layer", "patch_size", "proj_dropout",
        "use_checkpoint", "vae_stride",
    }),
)  # fmt: skip
INPUT_SIDE = 16  # to which the published sampler enlarges every map, for any schedule
HEADS = {768: 12, 1024: 16, 1536: 16}  # of the published widths
RATIO_PARTS = 100


def flowar_sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a FlowAR."""
    width, channels = shape(tensors, "z_proj.weight", 2)
    shape(tensors, "decoder_embed.weight", 2)
    shape(tensors, "encoder_pos_embed_learned", 3)
    frequencies, cross = "encoder_blocks.0.attn.rope.freqs", "flownet.res_blocks.0.crossattn.q.weight"
    sizes = {
        "embed_dim": width,
        "encoder_depth": count(tensors, "encoder_blocks."),
        "decoder_depth": count(tensors, "decoder_blocks."),
        "mlp_ratio": _mlp_ratio(width, shape(tensors, "encoder_blocks.0.mlp.fc1_g.weight", 2)[0]),
        "num_classes": shape(tensors, "class_emb.weight", 2)[0] - 1,
        "latent_channels": channels,
        "head_depth": count(tensors, "flownet.res_blocks."),
        "head_width": shape(tensors, "flownet.input_proj.weight", 2)[0],
        "cross_attention": cross in tensors,
    }
    return {**sizes, **({"num_heads": width // (4 * len(tensors[frequencies]))} if frequencies in tensors else {})}


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines. The class conditions both stacks: equal widths."""
    decoder, encoder = tensors["decoder_embed.weight"].shape
    if decoder != encoder:
        raise ValueError(f"{source} has an encoder {encoder} wide and a decoder {decoder} wide; they must be the same")
    tables = [name for name in tensors if name.endswith("rope.freqs") and not name.startswith("flownet.")]
    if len({len(tensors[name]) for name in tables}) > 1:
        raise ValueError(f"{source} has layers with different numbers of heads; they must be the same")
    if "patch_nums" not in settings:
        settings["patch_nums"] = _doubling(tensors["encoder_pos_embed_learned"].shape[1], source)
    if "num_heads" not in settings and settings["embed_dim"] not in HEADS:
        raise ValueError(f"{source} does not determine the number of heads; give encoder_num_heads by --config")
    return {"num_heads": HEADS.get(settings["embed_dim"]), "input_side": INPUT_SIDE, **settings}


def _mlp_ratio(width: int, hidden: int) -> float:
    """The roundest ratio that the published int(width * ratio * 2 / 3) turns into `hidden`."""
    for parts in range(1, RATIO_PARTS):
        ratio = -(-3 * hidden * parts // (2 * width)) / parts
        if int(width * ratio * 2 / 3) == hidden:
            return ratio
    raise ValueError(f"no mlp_ratio gives {hidden} channels at a width of {width}")


def _doubling(length: int, source: str) -> tuple[int, ...]:
    sides = [1]
    while Scales(tuple(sides)).total < length:
        sides.append(2 * sides[-1])
    if Scales(tuple(sides)).total != length:
        raise ValueError(
            f"{source} has {length} tokens, which do not fit scales that double from 1; give patch_nums by --config"
        )
    return tuple(sides)
