"""The result of a pipeline: images, and the labels, seeds and tokens that they were drawn from."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from var_toolkit.images import as_output
from var_toolkit.methods.speculative.tally import Tally, together
from var_toolkit.sheets import enlarged, grid

LISTED = 8  # labels and seeds in a repr
SHOWN = 16  # images that a notebook shows,
COLUMNS = 4  # per row
LEAST, MOST = 128, 1024  # pixels of one side: at least of each image, about, and at most of all together


class Chosen(NamedTuple):
    """Which candidate an image is, by its number from 0 on, its seed and its score. Its seed alone draws it again."""

    candidate: int
    seed: int
    score: float


@dataclass(frozen=True, repr=False)
class PipelineOutput:
    """Images, their labels, seeds, tokens and latents, and the work that was done."""

    images: Any  # list of PIL images; or float in [0, 1]: numpy (B, h, w, 3), torch (B, 3, h, w); or latents
    class_labels: list[int]  # empty for a model of text
    seeds: list[int]
    tokens: list[Tensor]  # K maps on the CPU: (B, n_k), int64; continuous ones (B, n_k, C), float32
    latents: Tensor  # (B, C, h, w), float32, on the CPU
    forward_passes: int
    velocity_evaluations: int  # by the head of continuous tokens
    cache_bytes: int  # keys and values of the largest batch
    speculation: Tally | None = None  # statistics of speculative decoding, if it was used
    prompts: list[str] = field(default_factory=list)  # of a model of text; "" where only embeddings were given
    chosen: list[Chosen] = field(default_factory=list)  # of best of N: which candidate each image is

    def __repr__(self) -> str:
        if isinstance(self.images, list):
            what = " x ".join(map(str, self.images[0].size))
        else:
            what = f"{type(self.images).__name__} {tuple(self.images.shape)}"
        count = len(self.seeds)
        shows = f"prompts={_listed(self.prompts)}" if self.prompts else f"class_labels={_listed(self.class_labels)}"
        return f"PipelineOutput({count} image{'s' * (count > 1)}, {what}, {shows}, seeds={_listed(self.seeds)})"

    def _repr_png_(self) -> bytes | None:
        """The first images as one PNG of at most 1024 pixels a side, for notebooks; None for latents."""
        shown = self._shown()
        if not shown:
            return None
        sheet = grid([enlarged(image, LEAST) for image in shown], min(COLUMNS, len(shown)))
        sheet.thumbnail((MOST, MOST))
        png = io.BytesIO()
        sheet.save(png, format="png")
        return png.getvalue()

    def _shown(self) -> list[Any]:
        """The first images, as PIL images."""
        if isinstance(self.images, list):
            return self.images[:SHOWN]
        if self.images is self.latents:
            return []
        some = torch.as_tensor(self.images[:SHOWN])
        return list(as_output((some if isinstance(self.images, Tensor) else some.movedim(-1, 1)) * 2 - 1, "pil"))


def joined(batches: Iterable[PipelineOutput], *, return_dict: bool = True) -> PipelineOutput | tuple[Any]:
    """Finished batches as one output; without `return_dict` only the images, in a tuple."""
    parts = list(batches)
    latents = torch.cat([part.latents for part in parts])
    images = latents if parts[0].images is parts[0].latents else _images([part.images for part in parts])
    if not return_dict:
        return (images,)
    return PipelineOutput(
        images=images,
        class_labels=[label for part in parts for label in part.class_labels],
        prompts=[text for part in parts for text in part.prompts],
        seeds=[seed for part in parts for seed in part.seeds],
        tokens=[torch.cat(maps) for maps in zip(*(part.tokens for part in parts), strict=True)],
        latents=latents,
        forward_passes=sum(part.forward_passes for part in parts),
        velocity_evaluations=sum(part.velocity_evaluations for part in parts),
        cache_bytes=max(part.cache_bytes for part in parts),
        speculation=together([part.speculation for part in parts if part.speculation]),
        chosen=[one for part in parts for one in part.chosen],
    )


def _images(parts: Sequence[Any]) -> Any:
    """Images of several batches in their output type."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [image for part in parts for image in part]


def _listed(items: Sequence[int | str]) -> str:
    more = f", ... {len(items)} in all" if len(items) > LISTED else ""
    return f"[{', '.join(map(repr, items[:LISTED]))}{more}]"
