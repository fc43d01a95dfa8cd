"""What an image is to show, made once per request: the condition that networks read.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), T condition tokens, C width, N blocks,
H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """The parts of a condition, each with one entry per row; a network takes those that it was made for.

    `labels` are class indices, which networks embed themselves. `additions` are added to the features before a layer,
    at all positions of the image or at some, by the number of the layer.
    """

    labels: Tensor | None = None  # (R,), int64
    pooled: Tensor | None = None  # (R, C): modulates every layer
    prefix: Tensor | None = None  # (R, T, C): tokens before those of the image
    prefix_mask: Tensor | None = None  # (R, T), bool: which of them count
    cross: Tensor | None = None  # (R, N, 2, H, T, D): keys and values of each block's cross-attention
    cross_mask: Tensor | None = None  # (R, T), bool: which of them count
    additions: Mapping[int, Tensor] = field(default_factory=dict)  # layer -> (R, L, C)

    def of_rows(self, rows: Tensor | slice) -> Condition:
        """The condition of some of the rows."""
        return self._each(lambda part: part[rows])

    def with_null(self, null: Condition) -> Condition:
        """Twice the rows: this condition, then its null twin. ValueError if the two have different parts."""
        ours, theirs = self._parts(), null._parts()
        if ours.keys() != theirs.keys():
            odd = ", ".join(sorted(map(str, ours.keys() ^ theirs.keys())))
            raise ValueError(f"a condition and its null twin must have the same parts; one lacks {odd}")
        return self._each(torch.cat, null)

    def joined(self, other: Condition) -> Condition:
        """This condition with the parts of another, one row of which may serve all of these."""
        rows = len(self)
        found = other._each(lambda part: part.expand(rows, *part.shape[1:]) if len(part) == 1 else part)
        told = {one.name: getattr(found, one.name) for one in fields(self) if one.name != "additions"}
        named = {name: part for name, part in told.items() if part is not None}
        return replace(self, **named, additions={**self.additions, **found.additions})

    def __len__(self) -> int:
        return len(next(iter(self._parts().values())))

    def _parts(self) -> dict[Any, Tensor]:
        """The tensors by name; additions by layer."""
        named: dict[Any, Tensor] = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name != "additions" and getattr(self, one.name) is not None
        }
        return {**named, **self.additions}

    def _each(self, function: Any, other: Condition | None = None) -> Condition:
        """The condition with a function of each tensor, or of the pair of both conditions' tensors."""
        parts = self._parts()
        if other is not None:
            theirs = other._parts()
            made = {name: function((part, theirs[name])) for name, part in parts.items()}
        else:
            made = {name: function(part) for name, part in parts.items()}
        additions = {name: part for name, part in made.items() if isinstance(name, int)}
        return Condition(**{name: part for name, part in made.items() if isinstance(name, str)}, additions=additions)


@dataclass(frozen=True)
class Request:
    """A condition and its null twin, for the images of a batch."""

    condition: Condition
    null: Condition

    def __len__(self) -> int:
        return len(self.condition)

    def weighed(self, strength: float) -> Request:
        """The request with its additions multiplied by a number."""
        halves = [
            replace(half, additions={layer: strength * added for layer, added in half.additions.items()})
            for half in (self.condition, self.null)
        ]
        return Request(*halves)

    def rows(self, network: Any, copies: int) -> Condition:
        """The condition of the images (1), or of the images and their null twins (2), the same for every network."""
        return self.condition if copies == 1 else self.condition.with_null(self.null)


class Asked(Protocol):
    """What a batch of images is to show: a request, or what each network makes its own request of."""

    def __len__(self) -> int: ...

    def rows(self, network: Any, copies: int) -> Condition: ...


def of_labels(labels_B: Tensor, classes: int) -> Request:
    """The request for images of classes, int64 (B,); the null class of guidance is number `classes`."""
    return Request(Condition(labels=labels_B), Condition(labels=torch.full_like(labels_B, classes)))


def labels_of(condition: Condition, network: str) -> Tensor:
    """The labels of a condition, for a network that reads nothing else. ValueError if there is anything else."""
    given = {name if isinstance(name, str) else "additions" for name in condition._parts()}
    if condition.labels is None or given != {"labels"}:
        raise ValueError(f"{network} takes class labels as its condition; it was given {', '.join(sorted(given))}")
    return condition.labels


def text_of(condition: Condition, network: str) -> tuple[Tensor, Tensor, Tensor]:
    """The pooled text, and keys, values and mask of cross-attention, that the `request` of a network made of prompts.

    ValueError for another condition.
    """
    if condition.pooled is None or condition.cross is None or condition.cross_mask is None:
        raise ValueError(f"{network} takes what its `request` made of a prompt; it was given another condition")
    return condition.pooled, condition.cross, condition.cross_mask
