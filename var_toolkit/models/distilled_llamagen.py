"""The student of Distilled Decoding on LlamaGen (arXiv 2412.17153): all tokens from noise, in one pass or two.

Key-compatible with `LlamaGen-DD/llamagen-B.pt` and `llamagen-L.pt`. Letters: R rows, L tokens, C width, V vocabulary,
c channels of a code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition
from var_toolkit.formats.llamagen_arguments import ARGUMENTS
from var_toolkit.formats.state_dicts import Tensors, shape
from var_toolkit.heads.head import Head
from var_toolkit.heads.one_shot import OneShot
from var_toolkit.models import llamagen
from var_toolkit.models.family import Family
from var_toolkit.models.layers.embedding_head import EmbeddingHead, Student, is_data
from var_toolkit.models.layers.raster_positions import rotation_and_attend
from var_toolkit.models.llamagen import Prefix, RasterGPT, RasterGPTConfig
from var_toolkit.tokenizers.raster_vq import FILES

TOKENS = {"range": (0, 1024**2)}
STD = 0.02


@dataclass(frozen=True)
class DistilledRasterGPTConfig(RasterGPTConfig):
    """Sizes of the student, and for which steps it was trained."""

    latent_channels: int = 8  # of a code
    coded: int = field(default=80, metadata=TOKENS)  # tokens, from the first, that are codes; the others are embeddings
    jumps: tuple[int, ...] = field(default=(80,), metadata=TOKENS)  # tokens at which a second step, a third, ... begins

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "jumps", tuple(self.jumps))
        if not 0 <= self.coded <= self.tokens:
            raise ValueError(f"coded is {self.coded}; it must be from 0 to {self.tokens}, the tokens of an image")
        if any(begin >= end for begin, end in pairwise((0, *self.jumps, self.tokens))):
            raise ValueError(f"jumps is {list(self.jumps)}; it must be growing numbers from 1 to {self.tokens - 1}")


class DistilledRasterGPT(Student, RasterGPT):
    """Labels and the codes or noise of every token -> logits and an embedding of every token, causally."""

    config: DistilledRasterGPTConfig
    default_head: Head = OneShot()  # type: ignore[assignment]

    def __init__(self, config: DistilledRasterGPTConfig) -> None:
        super().__init__(config)
        width = config.embed_dim
        self.tok_embeddings = nn.Linear(config.latent_channels, width)
        self.n_d_embed = nn.Embedding.from_pretrained(torch.zeros(2, width), freeze=False)  # of noise and of data
        self.final_layer_conti = EmbeddingHead(width, config.latent_channels)

    @property
    def starts(self) -> tuple[int, ...]:
        """The tokens at which its steps begin."""
        return (0, *self.config.jumps)

    def coded_tokens(self, coded: int | None = None) -> int:
        """How many tokens are codes; by default as trained. ValueError for more than there are."""
        tokens = self.config.coded if coded is None else coded
        if tokens > self.config.tokens:
            raise ValueError(f"coded is {tokens}; it must be from 0 to {self.config.tokens}, the tokens of an image")
        return tokens

    def together(self, condition: Prefix, codes_RLc: Tensor, kept: int | Tensor) -> Tensor:
        """Features (R, L, C) of the first L tokens, from their codes.

        Codes of the first `kept` tokens (one number, or one for each row) are data, the others noise.
        """
        codes_RLc = codes_RLc.to(self.output.weight.dtype)
        x_RLC = torch.cat((condition.tokens, self.tok_embeddings(codes_RLc)), dim=1)
        length = x_RLC.shape[1]
        x_RLC = self.tok_dropout(x_RLC + self.n_d_embed(is_data(length, kept, x_RLC.device)))
        rotation, attend = rotation_and_attend(self.rotation(), None, length)
        for layer, block in enumerate(self.blocks):
            x_RLC = block(x_RLC, rotation, attend, None, layer)
        return x_RLC[:, 1:]

    def embeddings(self, condition: Prefix, hidden_RLC: Tensor) -> Tensor:
        """Features -> embeddings (R, L, c), float32."""
        return cast(Tensor, self.final_layer_conti(hidden_RLC, condition.tokens))

    def forward(self, labels_B: Tensor, codes_BLc: Tensor, kept: int | Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The training pass: embeddings (B, L, c) and logits (B, L, V) of every token, float32 (`together`)."""
        condition = self.condition(Condition(labels=labels_B))
        hidden = self.together(condition, codes_BLc, kept)
        return self.embeddings(condition, hidden), self.logits(condition, hidden)

    @torch.no_grad()
    def init_weights(self) -> None:
        """LlamaGen's initialisation, and that of what a teacher has not."""
        super().init_weights()
        self._init_own()

    def _init_own(self) -> None:
        nn.init.normal_(self.n_d_embed.weight, std=STD)
        for module in (self.tok_embeddings, self.final_layer_conti.linear):
            nn.init.normal_(module.weight, std=STD)
            cast(nn.Linear, module).bias.zero_()
        nn.init.normal_(self.final_layer_conti.scale_shift_table, std=STD)

    @torch.no_grad()
    def start_from_teacher(self, teacher: RasterGPT) -> None:
        """Take all weights that a teacher of the same sizes has; what reads codes in place of tokens is new."""
        self._init_own()
        ours = self.state_dict()
        for name, tensor in teacher.state_dict().items():
            if not name.startswith("tok_embeddings."):
                ours[name].copy_(tensor)


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a student."""
    return {**llamagen.sizes(tensors), "latent_channels": shape(tensors, "tok_embeddings.weight", 2)[1]}


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines: heads, MLP width, and the published steps."""
    tokens = settings.get("side", 16) ** 2
    coded = min(80 if settings["depth"] <= 12 else 130, tokens)
    steps = {"coded": coded, "jumps": (min(80, tokens - 1),) if tokens > 1 else ()}
    return llamagen.completed({**steps, **settings}, tensors, source)


FAMILY = Family(
    network=DistilledRasterGPT,
    tokenizer=FILES,
    title="Distilled Decoding of LlamaGen",
    paper="2412.17153",
    cfg_off=1.0,
    way="distilled to one or two steps: all tokens at once, from noise",
    required=("cls_embedding.embedding_table.weight", "tok_embeddings.bias", "output.weight", "n_d_embed.weight"),
    dropped=("freqs_cis",),
    arguments=ARGUMENTS,
    sizes=sizes,
    completed=completed,
)
NETWORKS = {"DistilledRasterGPT": "backbone"}
MODELS = {
    "dd-llamagen-b": {
        "summary": "Distilled Decoding of LlamaGen in one or two steps, 12 layers, ImageNet",
        "parameters": 98_000_000, "license": "mit", "fid": 11.17,
        "files": {
            "tokenizer": "FoundationVision/LlamaGen/vq_ds16_c2i.pt",
            "backbone": "microsoft/distilled_decoding/LlamaGen-DD/llamagen-B.pt",
        },
        "sizes": {
            "backbone": {"depth": 12, "num_heads": 12, "embed_dim": 768, "side": 16, "coded": 80, "jumps": (80,)},
        },
        "sampling": {"cfg": 1.0},
    },
    "dd-llamagen-l": {
        "like": "dd-llamagen-b", "summary": "Distilled Decoding of LlamaGen in one or two steps, 24 layers, ImageNet",
        "parameters": 326_000_000, "fid": 7.58,
        "files": {"backbone": "microsoft/distilled_decoding/LlamaGen-DD/llamagen-L.pt"},
        "sizes": {
            "backbone": {"depth": 24, "num_heads": 16, "embed_dim": 1024, "side": 16, "coded": 130, "jumps": (80,)},
        },
    },
}  # fmt: skip
