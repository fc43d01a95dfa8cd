"""The student of Distilled Decoding on VAR (arXiv 2412.17153): all scales from noise, in one pass or two.

Key-compatible with `VAR-DD/var-d16.pth` ... `var-d24.pth`. Letters: R rows, L tokens, C width, V vocabulary, K scales,
c latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.formats import next_scale_files as files
from var_toolkit.formats.state_dicts import Tensors, count, shape
from var_toolkit.heads.head import Head
from var_toolkit.heads.one_shot import OneShot
from var_toolkit.models.family import Family
from var_toolkit.models.layers.attention import to_allowed
from var_toolkit.models.layers.embedding_head import EmbeddingHead, Student, is_data
from var_toolkit.models.var import VAR, Condition, VARConfig
from var_toolkit.tokenizers.multiscale_vq import FILES

SCALES = {"range": (0, 1024)}
STD = 0.02  # of what a teacher has not


@dataclass(frozen=True)
class DistilledVARConfig(VARConfig):
    """Sizes of the student, and for which steps it was trained."""

    coded: int = field(default=5, metadata=SCALES)  # scales, from the first, that are codes; the others are embeddings
    # Scales at which a second step, a third, ... begins.
    jumps: tuple[int, ...] = field(default=(5,), metadata={**SCALES, "least": 0})

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "jumps", tuple(self.jumps))
        last = len(self.patch_nums) - 1
        if not 0 <= self.coded <= last + 1:
            raise ValueError(f"coded is {self.coded}; it must be from 0 to {last + 1}, the number of scales")
        if any(begin >= end for begin, end in pairwise((0, *self.jumps, last + 1))):
            raise ValueError(f"jumps is {list(self.jumps)}; it must be growing numbers of scales from 1 to {last}")


class DistilledVAR(Student, VAR):
    """Labels and the raw codes or noise of every token -> logits and an embedding of every token.

    The class is a level of its own before the first scale. A token sees itself and the coarser levels, not the others
    of its scale.
    """

    config: DistilledVARConfig
    has_subnets = False
    default_head: Head = OneShot()

    def __init__(self, config: DistilledVARConfig) -> None:
        super().__init__(config)
        width = config.embed_dim
        self.n_d_embed = nn.Embedding.from_pretrained(torch.zeros(2, width), freeze=False)  # of noise and of data
        self.layerwise_n_d_embed = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth + 1))
        self.final_layer_conti = EmbeddingHead(width, config.latent_channels)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))

    def _add_positions(self) -> None:
        """As VAR's, with one more level and one more position, for the class."""
        width = self.config.embed_dim
        self.pos_1LC = nn.Parameter(torch.zeros(1, 1 + self.scales.total, width))
        self.lvl_embed = nn.Embedding.from_pretrained(torch.zeros(1 + len(self.scales), width), freeze=False)

    @property
    def starts(self) -> tuple[int, ...]:
        """The tokens at which its steps begin."""
        return (0, *(self.scales.offsets[scale] for scale in self.config.jumps))

    def coded_tokens(self, coded: int | None = None) -> int:
        """How many tokens are codes, of the first `coded` scales; by default as trained. ValueError for too many."""
        scales = self.config.coded if coded is None else coded
        if scales > len(self.scales):
            raise ValueError(f"coded is {scales}; it must be from 0 to {len(self.scales)}, the number of scales")
        return self.scales.offsets[scales]

    def together(self, condition: Condition, codes_RLc: Tensor, kept: int | Tensor) -> Tensor:
        """Features (R, L, C) of the first L tokens, from their codes.

        Codes of the first `kept` tokens (one number, or one for each row) are data, the others noise.
        """
        length = 1 + codes_RLc.shape[1]
        levels_L = torch.cat((self.pos_1LC.new_zeros(1).long(), 1 + self.scales.level_ids(self.pos_1LC.device)))[
            :length
        ]
        start = condition.start_RC.unsqueeze(1) + self.pos_start
        x_RLC = torch.cat((start, self.word_embed(codes_RLc.to(self.word_embed.weight.dtype))), dim=1)
        data_RL = is_data(length, kept, x_RLC.device)
        x_RLC = x_RLC + self.lvl_embed(levels_L) + self.pos_1LC[:, :length] + self.n_d_embed(data_RL)
        coarser = levels_L[:, None] > levels_L
        attend = to_allowed(coarser | torch.eye(length, dtype=torch.bool, device=coarser.device))
        *within, last = (cast(nn.Linear, linear)(self.n_d_embed.weight) for linear in self.layerwise_n_d_embed)
        for layer, (block, kinds) in enumerate(zip(self._blocks, within, strict=True)):
            x_RLC = block(x_RLC, condition.blocks[layer], attend, between=kinds[data_RL])
        return (x_RLC + last[data_RL])[:, 1:]

    def embeddings(self, condition: Condition, hidden_RLC: Tensor) -> Tensor:
        """Features -> embeddings (R, L, c), float32."""
        return cast(Tensor, self.final_layer_conti(hidden_RLC, condition.start_RC.unsqueeze(1)))

    def forward(self, labels_B: Tensor, codes_BLc: Tensor, kept: int | Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The training pass: embeddings (B, L, c) and logits (B, L, V) of every token, float32 (`together`)."""
        condition = self.condition(Given(labels=labels_B))
        hidden = self.together(condition, codes_BLc, kept)
        return self.embeddings(condition, hidden), self.logits(condition, hidden)

    @torch.no_grad()
    def init_weights(self, *, adaln_gamma: float = 1e-3, head: float = 0.02) -> None:
        """VAR's initialisation, and that of what a teacher has not."""
        super().init_weights(adaln_gamma=adaln_gamma, head=head)
        self._init_own()

    def _init_own(self) -> None:
        nn.init.trunc_normal_(self.n_d_embed.weight, std=STD)
        for module in (*self.layerwise_n_d_embed, self.final_layer_conti.linear):
            nn.init.trunc_normal_(cast(nn.Linear, module).weight, std=STD)
            cast(nn.Linear, module).bias.zero_()
        nn.init.trunc_normal_(self.final_layer_conti.scale_shift_table, std=STD)

    @torch.no_grad()
    def start_from_teacher(self, teacher: VAR) -> None:
        """Take all weights that a teacher of the same sizes has; the level and the position of the first scale are new.

        The release draws the embedding of class 1 again in place of the level, by mistake; that is not followed.
        """
        self._init_own()
        ours = self.state_dict()
        for name, tensor in teacher.state_dict().items():
            if name in ("lvl_embed.weight", "pos_1LC"):
                own, axis = ours[name], 0 if name == "lvl_embed.weight" else 1
                nn.init.trunc_normal_(own, std=STD)
                own.narrow(axis, 0, 1).copy_(tensor.narrow(axis, 0, 1))
                own.narrow(axis, 2, own.shape[axis] - 2).copy_(tensor.narrow(axis, 1, tensor.shape[axis] - 1))
            else:
                ours[name].copy_(tensor[:, :1] if name == "pos_start" else tensor)


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a student, whose class counts as a scale in the files."""
    found = {"depth": count(tensors, "blocks."), **files.next_scale_sizes(tensors, "blocks.0", "head")}
    if "patch_nums" in found:
        found["patch_nums"] = found["patch_nums"][1:]
    return found


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines: schedule, heads, and the published steps."""
    if "patch_nums" not in settings:
        levels, positions = shape(tensors, "lvl_embed.weight", 2)[0], tensors["pos_1LC"].shape[1]
        settings["patch_nums"] = files.known_schedule(levels - 1, positions - 1, source)
    scales = len(settings["patch_nums"])
    first = min(5 if settings["depth"] <= 16 else 4, scales - 1)  # of the d16, and of the larger ones
    steps = {"coded": first, "jumps": (first,) if first else ()}
    return files.with_heads({**steps, **settings}, tensors, source)


FAMILY = Family(
    network=DistilledVAR,
    tokenizer=FILES,
    title="Distilled Decoding of VAR",
    paper="2412.17153",
    way="distilled to one or two steps: all token maps at once, from noise",
    required=(*files.REQUIRED, "head.weight", "n_d_embed.weight", "final_layer_conti.scale_shift_table"),
    dropped=files.DROPPED,
    arguments=files.ARGUMENTS,
    sizes=sizes,
    completed=completed,
)
NETWORKS = {"DistilledVAR": "backbone"}
MODELS = {
    "dd-var-d16": {
        "summary": "Distilled Decoding of VAR in one or two steps, 16 layers, ImageNet",
        "parameters": 327_000_000, "license": "mit", "fid": 7.82,
        "files": {
            "tokenizer": "FoundationVision/var/vae_ch160v4096z32.pth",
            "backbone": "microsoft/distilled_decoding/VAR-DD/var-d16.pth",
        },
        "sizes": {"backbone": {"depth": 16, "embed_dim": 1024, "num_heads": 16, "coded": 5, "jumps": (5,)}},
        "sampling": {"cfg": 0.0},
    },
    "dd-var-d20": {
        "like": "dd-var-d16", "summary": "Distilled Decoding of VAR in one or two steps, 20 layers, ImageNet",
        "parameters": 635_000_000, "fid": 7.33,
        "files": {"backbone": "microsoft/distilled_decoding/VAR-DD/var-d20.pth"},
        "sizes": {"backbone": {"depth": 20, "embed_dim": 1280, "num_heads": 20, "coded": 4, "jumps": (4,)}},
    },
    "dd-var-d24": {
        "like": "dd-var-d16", "summary": "Distilled Decoding of VAR in one or two steps, 24 layers, ImageNet",
        "parameters": 1_090_000_000, "fid": 6.95,
        "files": {"backbone": "microsoft/distilled_decoding/VAR-DD/var-d24.pth"},
        "sizes": {"backbone": {"depth": 24, "embed_dim": 1536, "num_heads": 24, "coded": 4, "jumps": (4,)}},
    },
}  # fmt: skip
