"""The GPT of D-AR (arXiv 2505.23660): LlamaGen's over the tokens of a pixel flow, which are a sequence and no map.

Key-compatible with `D-AR-L-360K.pt` and `D-AR-XL-360K.pt`. RoPE turns by the place in the sequence: the class is at
position 0, token i at 1 + i.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from var_toolkit.models import llamagen
from var_toolkit.models.family import Family
from var_toolkit.models.layers.rotary import Rotation, rotation_on_line
from var_toolkit.models.llamagen import RasterGPT, RasterGPTConfig
from var_toolkit.tokenizers.pixel_flow import FILES


@dataclass(frozen=True)
class DARConfig(RasterGPTConfig):
    """Sizes of D-AR's GPT, which are those of LlamaGen's; there are side * side tokens."""


class DAR(RasterGPT):
    """LlamaGen's GPT with RoPE in one dimension."""

    config: DARConfig

    def __init__(self, config: DARConfig) -> None:
        super().__init__(config)

    def rotation(self) -> Rotation:
        """RoPE of the class and of every token, in order."""
        c = self.config
        return _rotation(1 + c.tokens, c.embed_dim // c.num_heads, self.output.weight.device)


@torch.compiler.assume_constant_result
def _rotation(count: int, head_dim: int, device: torch.device) -> Rotation:
    return known_rotation(count, head_dim, device)


@lru_cache(maxsize=8)
def known_rotation(count: int, head_dim: int, device: torch.device) -> Rotation:
    """RoPE of a sequence of `count` tokens, computed once."""
    with torch.inference_mode(False):  # training could not use an inference tensor
        return rotation_on_line(count, head_dim, device)


FAMILY = Family(
    network=DAR,
    tokenizer=FILES,
    title="D-AR",
    paper="2505.23660",
    cfg_off=1.0,
    way="next-token prediction of the steps of a flow on pixels: each group of tokens refines the whole image",
    required=llamagen.FAMILY.required,
    dropped=llamagen.FAMILY.dropped,
    arguments=llamagen.FAMILY.arguments,
    sizes=llamagen.FAMILY.sizes,
    completed=llamagen.FAMILY.completed,
)
NETWORKS = {"DAR": "backbone"}
MODELS = {
    "dar-l": {
        "summary": "D-AR, 24 layers, groups of tokens that steer a flow on pixels, ImageNet",
        "parameters": 343_000_000, "license": "mit", "fid": 2.44,
        "files": {
            "tokenizer": "showlab/D-AR/D-AR-tokenizer_v1.pt",
            "backbone": "showlab/D-AR/D-AR-L-360K.pt",
        },
        "sizes": {
            "backbone": {"depth": 24, "num_heads": 16, "embed_dim": 1024, "side": 16},
        },
        "sampling": {"cfg": 8.0, "first_cfg": 1.2, "top_k": 0, "top_p": 0.0},
    },
    "dar-xl": {
        "like": "dar-l", "summary": "D-AR, 36 layers, groups of tokens that steer a flow on pixels, ImageNet",
        "parameters": 775_000_000, "fid": 2.09,
        "files": {"backbone": "showlab/D-AR/D-AR-XL-360K.pt"},
        "sizes": {"backbone": {"depth": 36, "num_heads": 20, "embed_dim": 1280, "side": 16}},
    },
}  # fmt: skip
