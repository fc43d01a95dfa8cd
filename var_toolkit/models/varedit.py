"""VAREdit (arXiv 2508.15772): Infinity that edits an image by an instruction.

Key-compatible with `8B-512.pth` and `8B-1024.pth`; the weights have the names and the sizes of Infinity's.
The source image enters as the tokenizer's features, not quantised, on the grid of the finest map: tokens before those
of the image, which attend to one another alone. Every layer attends to them, but the first one to their average on the
grid of the scale at work (scale-aligned reference, section 3.3).
Letters: B images, R rows (images, twice under guidance), L tokens, S source tokens, C width, D bits of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.conditions.condition import Request
from var_toolkit.conditions.images import SOURCE, ImageInput
from var_toolkit.core.cache import KVCache, token_span
from var_toolkit.core.layers import Layers
from var_toolkit.core.schedule import Schedule
from var_toolkit.models import infinity
from var_toolkit.models.family import Family
from var_toolkit.models.infinity import Condition, Infinity, InfinityConfig
from var_toolkit.models.layers.attention import Attend, to_all, to_allowed
from var_toolkit.models.layers.by_scale import ByScale
from var_toolkit.models.layers.rotary import Rotation, rotation_beyond, rotation_on_places
from var_toolkit.tokenizers.bsq import FILES, SIDES


@dataclass(frozen=True)
class VAREditConfig(InfinityConfig):
    """Sizes of VAREdit: those of Infinity; the default maps are those of 512 px."""

    patch_nums: tuple[int, ...] = SIDES[:10]
    reference_map: tuple[int, int] | None = field(
        default=None, metadata={"range": (1, 4096)}
    )  # rows and columns on which tokens have positions, at any schedule; None: the largest map of the aspect ratio


class EditCondition(NamedTuple):
    """What Infinity reads of the text, and the source tokens."""

    text: Condition
    source_RSD: Tensor  # noqa: N815

    def of_rows(self, rows: Tensor | slice) -> EditCondition:
        """The condition of some of the rows."""
        return EditCondition(self.text.of_rows(rows), self.source_RSD[rows])


class VAREdit(Infinity):
    """A source image, an instruction and the tokenizer's inputs -> logits for the bits of each scale."""

    config: VAREditConfig
    has_subnets = False
    mixes_within = False
    sublayers = ()
    image = ImageInput(SOURCE)

    def __init__(self, config: VAREditConfig) -> None:
        super().__init__(config)

    def schedule_for(self, height: int, width: int) -> Schedule:
        """The schedule that ends with a map of this size: a published one, or one that begins like those."""
        if self.config.reference_map is not None:
            return ByScale.schedule_for(self, height, width)
        return super().schedule_for(height, width)

    def require_schedule(self, schedule: Schedule) -> None:
        """ValueError unless positions are known for the schedule."""
        if self.config.reference_map is None:
            super().require_schedule(schedule)
        elif len(schedule) > self.config.levels or any(
            side > most for side, most in zip(schedule.maps[-1], self.config.reference_map, strict=True)
        ):
            most = "x".join(map(str, self.config.reference_map))
            raise ValueError(
                f"schedule is {schedule}; this network has {self.config.levels} levels, and positions for {most} tokens"
            )

    def prefix_tokens(self, schedule: Schedule) -> int:
        """Tokens of the source, as many as the finest map has."""
        return schedule.lengths[-1]

    def image_request(self, images_B3hw: Tensor, tokenizer: Any, schedule: Schedule) -> Request:
        """The source tokens of images in [-1, 1], of the size of the schedule; guidance never drops them."""
        with torch.no_grad():
            features = tokenizer.features(images_B3hw, schedule)
            source = Given(prefix=tokenizer.pyramid_of(schedule).unquantised(features))
        return Request(source, source)

    def condition(self, given: Given) -> EditCondition:  # type: ignore[override]
        """The parts of a request -> what every block reads. ValueError without a source image."""
        if given.prefix is None:
            raise ValueError("VAREdit edits an image: its condition needs what `image_request` made of the source")
        return EditCondition(super().condition(given), given.prefix)

    def hidden(  # type: ignore[override]
        self,
        condition: EditCondition,
        inputs_RLD: Tensor | None,
        *,
        scales: range,
        schedule: Schedule | None = None,
        cache: KVCache | None = None,
        layers: Layers | None = None,
    ) -> Tensor:
        """Features (R, L, C) of the tokens of `scales`, as those of Infinity; scale 0 reads the source first.

        ValueError for a source that has not one token for each of the finest map.
        """
        schedule, source = schedule or self.scales, condition.source_RSD.shape[1]
        begin, end = token_span(cache, schedule, scales)
        if source != schedule.lengths[-1]:
            raise ValueError(
                f"the source has {source} tokens, the last map of the schedule {schedule.lengths[-1]}; "
                "make the source for the same schedule"
            )
        x_RLC, first = self._embed(condition.text, inputs_RLD, scales, schedule), source + begin
        if scales.start == 0:
            x_RLC, first = torch.cat((self._source(condition, schedule), x_RLC), dim=1), 0
        table = self._table(schedule, x_RLC.device)
        rotation = Rotation(*(each[first : source + end] for each in table))
        aligned, whole = (_seeing_source(schedule, scales, x_RLC.device, aligned=one) for one in (True, False))
        text = condition.text
        for layer, block in enumerate(self.blocks):
            memory, attend = (text.cross[:, layer], text.cross_mask), whole if layer else aligned
            x_RLC = block(x_RLC, text.blocks[layer], memory, rotation, attend, cache, layer)
        if cache is not None:
            cache.prefix = source
            cache.advance(source + end - first)
        return x_RLC[:, begin - end :]

    def logits(self, condition: EditCondition, hidden_RLC: Tensor) -> Tensor:  # type: ignore[override]
        """Features -> logits (R, L, 2 D), float32."""
        return super().logits(condition.text, hidden_RLC)

    def forward(  # type: ignore[override]
        self,
        text_BTC: Tensor,
        mask_BT: Tensor,
        source_BSD: Tensor,
        inputs_BLD: Tensor,
        dropped_B: Tensor | None = None,
        schedule: Schedule | None = None,
    ) -> Tensor:
        """The packed training pass: text, source, teacher inputs of scales 1 .. K-1 -> logits (B, L, 2 D), float32.

        Images that are `dropped`, bool, are trained without their text. `schedule` is the network's own by default.
        """
        schedule = schedule or self.scales
        condition = EditCondition(self._read(text_BTC, mask_BT, dropped_B), source_BSD)
        hidden = self.hidden(condition, inputs_BLD, scales=range(len(schedule)), schedule=schedule)
        return self.logits(condition, hidden)

    def _source(self, condition: EditCondition, schedule: Schedule) -> Tensor:
        """The source tokens at the first block: they have the level of the finest map."""
        found: Tensor = self.word_embed(condition.source_RSD.to(self.word_embed.weight.dtype))
        return found + self.lvl_embed.weight[len(schedule) - 1]

    def _grid(self, schedule: Schedule) -> tuple[int, int]:
        return self.config.reference_map or super()._grid(schedule)

    def _table(self, schedule: Schedule, device: torch.device) -> Rotation:
        """RoPE by the number of a token, source tokens first.

        As published, the table is that of the largest image, whose source fills the whole grid. The tokens of a smaller
        one, also those that it draws, take the first entries all the same; its weights were trained so.
        """
        grid, width = self._grid(schedule), self.config.embed_dim // self.config.num_heads
        source, drawn = rotation_beyond(grid, width, device), rotation_on_places(schedule.maps, grid, width, device)
        return Rotation(torch.cat((source.cos, drawn.cos)), torch.cat((source.sin, drawn.sin)))


def _seeing_source(schedule: Schedule, scales: range, device: torch.device, *, aligned: bool) -> Attend:
    """Attention of the tokens of `scales` to the source, which is first among the keys, and to the scales so far.

    In the pass of scale 0 the queries of the source come first. `aligned`: each scale sees the source on its own grid.
    """
    grid, count = schedule.maps[-1], schedule.lengths[-1]
    maps = schedule.maps[scales.start : scales.stop]
    mask = None if len(scales) == 1 else _mask(schedule, scales, device, aligned=aligned)
    to_seen = to_all if mask is None else to_allowed(mask)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        own = []
        if scales.start == 0:
            own.append(to_all(q[:, :, :count], k[:, :, :count], v[:, :, :count], scale))
            q = q[:, :, count:]
        if aligned:
            k, v = (
                torch.cat([*(_pooled(x[:, :, :count], grid, size) for size in maps), x[:, :, count:]], dim=2)
                for x in (k, v)
            )
        return torch.cat([*own, to_seen(q, k, v, scale)], dim=2)

    return attend


def _mask(schedule: Schedule, scales: range, device: torch.device, *, aligned: bool) -> Tensor:
    """What the tokens of several scales see in one pass, bool (queries, keys): the source, then the scales so far."""
    targets = schedule.block_causal_mask(scales.start, scales.stop, device)
    levels = schedule.level_ids(device)[schedule.offsets[scales.start] : schedule.offsets[scales.stop]]
    source = levels[:, None] == levels if aligned else targets.new_ones(len(levels), schedule.lengths[-1])
    return torch.cat((source, targets), dim=1)


def _pooled(x_RHSD: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Keys or values of the source, averaged from `grid` to `size`; keys are not normalised again."""
    if size == grid:
        return x_RHSD
    maps = rearrange(x_RHSD, "r h (y x) d -> (r h) d y x", y=grid[0])
    pooled = F.adaptive_avg_pool2d(maps, size)
    return rearrange(pooled, "(r h) d y x -> r h (y x) d", r=len(x_RHSD))


FAMILY = Family(
    network=VAREdit,
    tokenizer=FILES,
    title="VAREdit",
    paper="2508.15772",
    cfg_off=1,
    way="next-scale prediction of bits: an image is edited by an instruction, map by map",
    required=infinity.REQUIRED,
    dropped=infinity.DROPPED,
    unchunked=infinity.counted_through,
    renamed=infinity.FAMILY.renamed,
    arguments=infinity.ARGUMENTS,
    sizes=infinity.sizes,
    completed=infinity.completed_as("varedit", SIDES[:10]),
)
NETWORKS = {"VAREdit": "backbone"}
MODELS = {
    "varedit-8b-512": {
        "summary": "VAREdit, 40 layers, 512 px, edits by instructions", "resolution": 512, "edits": True,
        "parameters": 8_380_000_000, "license": "mit", "class_names": "none",
        "files": {
            "tokenizer": "FoundationVision/Infinity/infinity_vae_d56_f8_14_patchify.pth",
            "backbone": "HiDream-ai/VAREdit/8B-512.pth",
        },
        "sizes": {
            "tokenizer": {
                "codebook_dim": 14, "ch_mult": (1, 2, 4, 4), "patchify": True,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32),
            },
            "backbone": {
                "depth": 40, "embed_dim": 3584, "num_heads": 28, "token_bits": 56,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32),
            },
        },
        "sampling": {"cfg": 3.0, "top_p": 0.97, "temperature": 0.1},
        "text_encoder": {"source": "google/flan-t5-xl", "kind": "t5", "license": "apache-2.0"},
    },
    "varedit-8b-1024": {
        "like": "varedit-8b-512", "summary": "VAREdit, 40 layers, edits by instructions", "resolution": 1024,
        "files": {"backbone": "HiDream-ai/VAREdit/8B-1024.pth"},
        "sizes": {
            "tokenizer": {
                "codebook_dim": 14, "ch_mult": (1, 2, 4, 4), "patchify": True,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
            },
            "backbone": {
                "depth": 40, "embed_dim": 3584, "num_heads": 28, "token_bits": 56,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
            },
        },
    },
    "varedit-2b-512": {
        "like": "varedit-8b-512", "summary": "VAREdit, 32 layers, 512 px, edits by instructions",
        "parameters": 2_200_000_000,
        "files": {
            "tokenizer": "FoundationVision/Infinity/infinity_vae_d32reg.pth",
            "backbone": "HiDream-ai/VAREdit/2B-512.pth",
        },
        "sizes": {
            "tokenizer": {"codebook_dim": 32, "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32)},
            "backbone": {
                "depth": 32, "embed_dim": 2048, "num_heads": 16, "token_bits": 32,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16, 20, 24, 32),
            },
        },
    },
    "varedit-2b-256": {
        "like": "varedit-2b-512", "summary": "VAREdit, 32 layers, 256 px, edits by instructions", "resolution": 256,
        "files": {"backbone": "HiDream-ai/VAREdit/2B-256.pth"},
        "sizes": {
            "tokenizer": {"codebook_dim": 32, "patch_nums": (1, 2, 4, 6, 8, 12, 16)},
            "backbone": {
                "depth": 32, "embed_dim": 2048, "num_heads": 16, "token_bits": 32,
                "patch_nums": (1, 2, 4, 6, 8, 12, 16),
            },
        },
    },
}  # fmt: skip
