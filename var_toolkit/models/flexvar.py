"""FlexVAR (arXiv 2502.20313): VAR without residuals, which draws any schedule of maps; and SAR's weights for it.

Every map codes the whole image, so the last one may be of any size and shape. Key-compatible with
`FlexVARd16-epo179.pth` and, of SAR (arXiv 2512.06421), `SARd16-epo179.pth`.
Letters: L tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.core.layers import Layers
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats import next_scale_files as files
from var_toolkit.formats.state_dicts import Tensors, count, shape
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.head import Head
from var_toolkit.models.family import Family
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.tokenizers.raster_vq import FILES

SIDES = {"range": (1, 1024)}
SAMPLED = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32)


@dataclass(frozen=True)
class FlexVARConfig(VARConfig):
    """Sizes of FlexVAR; `patch_nums` are the maps that it draws unless others are asked for."""

    vocab_size: int = 8912  # as published, not 8192
    position_side: int = field(default=32, metadata=SIDES)  # of the table of positions
    # Of maps in training ("maxpn"); above it guidance does not ramp, and nothing is sampled.
    largest_side: int = field(default=16, metadata=SIDES)
    sampled_sides: tuple[int, ...] = field(default=SAMPLED, metadata=SIDES)  # others of square maps are greedy

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sampled_sides", tuple(self.sampled_sides))
        for name in ("position_side", "largest_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.patch_nums[0] != 1:
            raise ValueError(f"patch_nums is {list(self.patch_nums)}; the first map of FlexVAR has one token")


class FlexVAR(VAR):
    """VAR whose positions are resized to every map. The first map has one token, which starts from the class."""

    config: FlexVARConfig

    def __init__(self, config: FlexVARConfig) -> None:  # whose type says what sizes a FlexVAR has
        super().__init__(config)

    def _add_positions(self) -> None:
        side = self.config.position_side
        self.pos_1LC = nn.Parameter(torch.zeros(1, self.config.embed_dim, side, side))

    def _position_embeddings(self, scales: range, schedule: Schedule) -> Tensor:
        """Position embeddings of the tokens of some scales, averaged over the area of each, (1, L, C)."""
        tables = [F.interpolate(self.pos_1LC, size=schedule.maps[k], mode="area") for k in scales]
        return torch.cat([table.flatten(2).transpose(1, 2) for table in tables], dim=1)

    def forward(
        self,
        labels_B: Tensor,
        inputs_BLc: Tensor,
        layers: Layers | None = None,
        schedule: Schedule | None = None,
        *,
        bare_start: bool = False,
    ) -> Tensor:
        """VAR's training pass. With `bare_start` the first token lacks `pos_start`, as in the second pass of SAR."""
        if not bare_start:
            return super().forward(labels_B, inputs_BLc, layers, schedule)
        condition, schedule = self.condition(Given(labels=labels_B)), schedule or self.scales
        condition = condition._replace(start_RC=condition.start_RC - self.pos_start[:, 0])  # which is added again
        hidden = self.hidden(condition, inputs_BLc, scales=range(len(schedule)), schedule=schedule, layers=layers)
        return self.logits(condition, hidden)

    def require_schedule(self, schedule: Schedule) -> None:
        """ValueError unless the first map has one token."""
        if schedule.lengths[0] != 1:
            raise ValueError(f"schedule is {schedule}; FlexVAR starts with a map of one token, such as 1,2,4")

    def schedule_for(self, height: int, width: int) -> Schedule:
        """The schedule that ends with a map of this size.

        The maps of its own schedule in that shape, as far as they are smaller; beyond them each is at most half as
        large again as the one before, along its longer side, as in the published schedule of 512 px.
        """
        longer = max(height, width)
        sides = [side for side in self.config.patch_nums if side < longer]
        while sides and sides[-1] * 1.5 < longer:
            sides.append(max(sides[-1] + 1, round(sides[-1] * sqrt(2))))
        maps = [(_share(height, side, longer), _share(width, side, longer)) for side in sides]
        return Schedule(tuple(dict.fromkeys((*maps, (height, width)))))

    def guidance_ramp(self, schedule: Schedule) -> tuple[float, ...]:
        """What guidance is multiplied with: as published it grows with the scale, beyond 1 after ten scales."""
        last = min(max(len(schedule) - 1, 1), 9)
        beyond = [max(size) > self.config.largest_side for size in schedule.maps]
        return tuple(1.0 if beyond[k] else k / last for k in range(len(schedule)))

    def head_at(self, head: Head, schedule: Schedule, scale: int) -> Head:
        """As published, tokens of maps with sides that it does not list are not sampled: the likeliest are drawn."""
        entry, longest = schedule.patch_nums[scale], max(schedule.maps[scale])
        unlisted = isinstance(entry, int) and entry not in self.config.sampled_sides
        if isinstance(head, Categorical) and (unlisted or longest > self.config.largest_side):
            return replace(head, top_k=1)
        return head

    @torch.no_grad()
    def init_weights(self, *, adaln_gamma: float = 1e-3, head: float = 0.02) -> None:
        """The initialisation of VAR, but for the positions: sines of the row and cosines of the column."""
        super().init_weights(adaln_gamma=adaln_gamma, head=head)
        self.pos_1LC.copy_(_sines(self.config.position_side, self.config.embed_dim))


def _share(length: int, part: int, whole: int) -> int:
    return max(1, round(length * part / whole))


def _sines(side: int, width: int) -> Tensor:
    """The table of positions before training, (1, C, side, side): even channels hold rows, odd ones columns."""
    rate = torch.exp(torch.arange(0, width, 2) * -(torch.log(torch.tensor(10000.0)) / width))
    angles = torch.arange(side).float() * rate[:, None]
    table = torch.empty(width, side, side)
    table[0::2] = angles.sin()[:, :, None].expand(-1, -1, side)
    table[1::2] = angles.cos()[:, None, :].expand(-1, side, -1)
    return table[None]


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a FlexVAR."""
    side = shape(tensors, "pos_1LC", 4)[-1]
    found = files.next_scale_sizes(tensors, "blocks.0", "head", positions=4)
    return {"depth": count(tensors, "blocks."), "position_side": side, **found}


FAMILY = Family(
    network=FlexVAR,
    tokenizer=FILES,
    title="FlexVAR",
    paper="2502.20313",
    way="next-scale prediction without residuals: each token map, of any size, codes the whole image",
    required=("word_embed.weight", "class_emb.weight", "pos_1LC", "head_nm.ada_lin.1.weight", "head.weight"),
    dropped=files.DROPPED,
    arguments=files.ARGUMENTS,
    sizes=sizes,
    completed=files.with_heads,
)
NETWORKS = {"FlexVAR": "backbone"}
MODELS = {
    "stilllife-flexvar": {
        "summary": "FlexVAR, 6 layers, any schedule and size, still lifes",
        "embedded": {"tokenizer": "stilllife-raster-vq", "backbone": "stilllife-flexvar"},
        "sampling": {"cfg": 1.25, "top_k": 900, "top_p": 0.95},
        "training": {
            "recipes": ("stilllife-flexvar",), "images": 70_000, "judged": 1000, "agreement": 66.4, "distance": 229,
        },
    },
    "flexvar-d16": {
        "summary": "FlexVAR, 16 layers, any size, ImageNet",
        "parameters": 310_000_000, "license": "mit", "fid": 3.05,
        "files": {
            "tokenizer": "jiaosiyu1999/FlexVAR/FlexVAE.pth", "backbone": "jiaosiyu1999/FlexVAR/FlexVARd16-epo179.pth",
        },
        "sizes": {
            "tokenizer": {"vocab_size": 8912, "code_dim": 32},
            "backbone": {"depth": 16, "embed_dim": 1024, "num_heads": 16},
        },
        "sampling": {"cfg": 2.5, "top_k": 900, "top_p": 0.95},
    },
    "flexvar-d20": {
        "like": "flexvar-d16", "summary": "FlexVAR, 20 layers, any size, ImageNet",
        "parameters": 600_000_000, "fid": 2.41,
        "files": {"backbone": "jiaosiyu1999/FlexVAR/FlexVARd20-epo249.pth"},
        "sizes": {"backbone": {"depth": 20, "embed_dim": 1280, "num_heads": 20}},
    },
    "flexvar-d24": {
        "like": "flexvar-d16", "summary": "FlexVAR, 24 layers, any size, ImageNet",
        "parameters": 1_030_000_000, "fid": 2.21,
        "files": {"backbone": "jiaosiyu1999/FlexVAR/FlexVARd24-epo349.pth"},
        "sizes": {"backbone": {"depth": 24, "embed_dim": 1536, "num_heads": 24}},
    },
    "sar-d16": {
        "like": "flexvar-d16", "summary": "SAR, FlexVAR refined on its own samples, 16 layers, ImageNet", "fid": 2.89,
        "files": {"backbone": "ZGZzz/SAR/SARd16-epo179.pth"},
        "sampling": {"cfg": 2.2},
    },
    "sar-d20": {
        "like": "flexvar-d20", "summary": "SAR, FlexVAR refined on its own samples, 20 layers, ImageNet", "fid": 2.35,
        "files": {"backbone": "ZGZzz/SAR/SARd20-epo249.pth"},
        "sampling": {"cfg": 2.6},
    },
    "sar-d24": {
        "like": "flexvar-d24", "summary": "SAR, FlexVAR refined on its own samples, 24 layers, ImageNet", "fid": 2.14,
        "files": {"backbone": "ZGZzz/SAR/SARd24-epo349.pth"},
        "sampling": {"cfg": 3.3},
    },
}  # fmt: skip
