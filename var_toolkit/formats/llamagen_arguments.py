"""The arguments of LlamaGen's published constructors (FoundationVision/LlamaGen), of the GPT and of the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from var_toolkit.formats.state_dicts import Arguments

# The only values that our networks support; the published code has more.
FIXED: dict[str, Any] = {
    "model_type": "c2i", "cls_token_num": 1, "rope_base": 10000, "norm_eps": 1e-5, "codebook_l2_norm": True,
}  # fmt: skip


FIXED_OF_TEXT = {name: value for name, value in FIXED.items() if name != "cls_token_num"} | {"model_type": "t2i"}


def _prepared(given: Mapping[str, Any], source: str, fixed: Mapping[str, Any] = FIXED) -> dict[str, Any]:
    """Published arguments for `Told`: block_size becomes the side; ValueError for values that are not supported."""
    for name, value in fixed.items():
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
TEXT_ARGUMENTS = Arguments(
    renamed={**ARGUMENTS.renamed, "caption_dim": "text_channels", "cls_token_num": "text_tokens"},
    ignored=ARGUMENTS.ignored - {"caption_dim", "cls_token_num"} | {"num_classes"},
    prepared=lambda given, source: _prepared(given, source, FIXED_OF_TEXT),
)
TOKENIZER_ARGUMENTS = Arguments(
    renamed={
        "codebook_size": "vocab_size", "codebook_embed_dim": "code_dim", "commit_loss_beta": "beta",
        "encoder_ch_mult": "ch_mult", "decoder_ch_mult": "ch_mult",
    },
    ignored=frozenset({*FIXED, "codebook_show_usage", "dropout_p", "entropy_loss_ratio"}),
    prepared=_prepared,
)  # fmt: skip
