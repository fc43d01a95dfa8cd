"""Files of LlamaGen (FoundationVision/LlamaGen) and of its tokenizer: sizes from tensors, and the names of tensors.

Our transformer has the published tensor names; the RoPE table is dropped. The tokenizer has the names of VAR's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit.formats.directory import build, fill
from var_toolkit.formats.state_dicts import Arguments, Tensors, Told, count, require, shape, sizes_of
from var_toolkit.models.llamagen import PUBLISHED, usual_hidden
from var_toolkit.tokenizers.raster_vq import RasterVQ, RasterVQConfig

REQUIRED = ("cls_embedding.embedding_table.weight", "tok_embeddings.weight", "output.weight")
TOKENIZER_REQUIRED = ("encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight")
DROPPED = ("freqs_cis",)
HEADS = {width: heads for _, heads, width in PUBLISHED.values()}
# The only values that our networks support; the published code has more.
FIXED: dict[str, Any] = {
    "model_type": "c2i", "cls_token_num": 1, "rope_base": 10000, "norm_eps": 1e-5, "codebook_l2_norm": True,
}  # fmt: skip
USAGE = "quantize.codebook_used"  # statistics of code usage in training
LEVEL = re.compile(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.(res|attn|downsample|upsample)\.")
MIDDLE = {".mid.0.": ".mid.block_1.", ".mid.1.": ".mid.attn_1.", ".mid.2.": ".mid.block_2."}
QKV = re.compile(r"^(.*\.)q(\.weight|\.bias)$")


def _prepared(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Published arguments for `Told`: block_size becomes the side; ValueError for values that are not supported."""
    for name, value in FIXED.items():
        if given.get(name, value) != value:
            raise ValueError(f"{source} says {name} is {given[name]!r}; only {value!r} is supported")
    used = {name: value for name, value in given.items() if name != "n_kv_head" or value is not None}
    if "block_size" in used:
        used["side"] = _side(used.pop("block_size"), source)
    return used


def _side(block_size: object, source: str) -> int:
    if not isinstance(block_size, int) or block_size < 1 or isqrt(block_size) ** 2 != block_size:
        raise ValueError(f"{source} says block_size is {block_size!r}; it must be a square, such as 256 or 576")
    return isqrt(block_size)


ARGUMENTS = Arguments(
    renamed={"dim": "embed_dim", "n_layer": "depth", "n_head": "num_heads", "n_kv_head": "num_heads"},
    ignored=frozenset({
        *FIXED, "attn_dropout_p", "caption_dim", "class_dropout_prob", "drop_path_rate", "ffn_dim_multiplier",
        "ffn_dropout_p", "initializer_range", "max_batch_size", "max_seq_len", "multiple_of", "resid_dropout_p",
        "token_dropout_p",
    }),
    prepared=_prepared,
)  # fmt: skip
TOKENIZER_ARGUMENTS = Arguments(
    renamed={
        "codebook_size": "vocab_size", "codebook_embed_dim": "code_dim", "commit_loss_beta": "beta",
        "encoder_ch_mult": "ch_mult", "decoder_ch_mult": "ch_mult",
    },
    ignored=frozenset({*FIXED, "codebook_show_usage", "dropout_p", "entropy_loss_ratio"}),
    prepared=_prepared,
)  # fmt: skip


def gpt_sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a RasterGPT."""
    vocabulary, width = shape(tensors, "output.weight", 2)
    return {
        "embed_dim": width,
        "depth": count(tensors, "layers."),
        "mlp_hidden": shape(tensors, "layers.0.feed_forward.w1.weight", 2)[0],
        "num_classes": shape(tensors, "cls_embedding.embedding_table.weight", 2)[0] - 1,
        "vocab_size": vocabulary,
    }


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines: heads and MLP width."""
    width = settings["embed_dim"]
    if settings["mlp_hidden"] == usual_hidden(width):
        settings["mlp_hidden"] = None
    return {"num_heads": HEADS.get(width, max(width // 64, 1)), **settings}


def empty_tokenizer(settings: Mapping[str, Any], source: str) -> nn.Module:
    """A tokenizer without weights."""
    return build(RasterVQ, settings, source)


def tokenizer_from_tensors(
    tensors: Tensors, given: Mapping[str, Any], patch_nums: tuple[int, ...], source: str
) -> nn.Module:
    """The tokenizer of a published state dict. It works for any side of the map, so the backbone's is used."""
    told = Told.read(given, RasterVQConfig, TOKENIZER_ARGUMENTS, "the configuration of the tokenizer")
    require(tensors, TOKENIZER_REQUIRED, source)
    settings = told.merged({**sizes_of(_tokenizer_sizes, tensors, source), "side": patch_nums[-1]})
    network = build(RasterVQ, settings, source)
    fill(network, dict(_renamed(tensors, len(settings["ch_mult"]))), source)
    return network.float().eval()


def _tokenizer_sizes(tensors: Tensors) -> dict[str, Any]:
    vocabulary, channels = shape(tensors, "quantize.embedding.weight", 2)
    ch = shape(tensors, "encoder.conv_in.weight", 4)[0]
    levels = range(count(tensors, "encoder.conv_blocks."))
    return {
        "vocab_size": vocabulary,
        "code_dim": channels,
        "z_channels": shape(tensors, "encoder.conv_out.weight", 4)[0],
        "ch": ch,
        "ch_mult": tuple(shape(tensors, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] // ch for i in levels),
        "num_res_blocks": count(tensors, "encoder.conv_blocks.0.res."),
    }


def _renamed(tensors: Tensors, levels: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors under our names; ours have one convolution for queries, keys and values, the files have three."""
    together = {name: [f"{m[1]}{part}{m[2]}" for part in "qkv"] for name in tensors if (m := QKV.match(name))}
    together = {name: parts for name, parts in together.items() if all(part in tensors for part in parts)}
    merged = {part for parts in together.values() for part in parts}
    for name, tensor in tensors.items():
        if name in together:
            found = QKV.sub(r"\1qkv\2", name)
            yield _our_name(found, levels), torch.cat([tensors[part] for part in together[name]])
        elif name not in merged and name != USAGE:
            yield _our_name(name, levels), tensor


def _our_name(name: str, levels: int) -> str:
    if (found := LEVEL.match(name)) is not None:
        half, level, kind = found[1], int(found[2]), {"res": "block"}.get(found[3], found[3])
        # The files count the decoder's levels from the coarsest, we count from the finest.
        place = f"down.{level}" if half == "encoder" else f"up.{levels - 1 - level}"
        return f"{half}.{place}.{kind}.{name[found.end() :]}"
    for theirs, ours in MIDDLE.items():
        name = name.replace(theirs, ours)
    return name
