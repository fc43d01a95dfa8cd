"""In how many passes the tokens of each scale are drawn (HMAR, arXiv 2506.04421): the schedule of masked refinement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from var_toolkit.core.schedule import Scales

# How many tokens are decided in each pass, by the side of the scale; scales that are not named take one pass.
NAMED: dict[str, dict[int, tuple[int, ...]]] = {
    "published": {2: (1, 3), 3: (1, 1, 2, 5)},  # of the released sampler: 14 passes at 256 px
    "benchmark-256": {2: (1, 3), 3: (1, 3, 5)},  # of the paper's speed tables, by resolution
    "benchmark-512": {2: (1, 3), 3: (1, 1, 2, 5), 4: (5, 11)},
    "benchmark-1024": {2: (1, 3), 3: (1, 1, 2, 5), 4: (3, 5, 8)},
}
OFF = "off"
REST = "..."


@dataclass(frozen=True)
class Refinement:
    """How many tokens of each scale are decided in each pass: one tuple per scale, whose sum is its number of tokens.

    The first number counts the draw of the whole scale, each further one a masked pass. As published, the input that
    shows the visible tokens is made by a convolution that has also seen the masked ones. `clean` sets the masked
    positions to zero before it; weights trained the published way have not seen such inputs.
    """

    schedule: tuple[tuple[int, ...], ...]
    clean: bool = False

    def masked(self, scale: int) -> tuple[int, ...]:
        """How many tokens are masked in each masked pass of a scale: all that are not decided before it."""
        counts = self.schedule[scale]
        return tuple(sum(counts[step:]) for step in range(1, len(counts)))

    def require_fit(self, scales: Scales) -> None:
        """ValueError if the schedule does not fit these scales."""
        if len(self.schedule) != len(scales):
            raise ValueError(f"refine has {len(self.schedule)} lists for {len(scales)} scales; give one list per scale")
        for k, (counts, tokens) in enumerate(zip(self.schedule, scales.lengths, strict=True)):
            shown = ",".join(map(str, counts))
            if any(count < 1 for count in counts) or sum(counts) != tokens:
                raise ValueError(f"refine: scale {k} has {shown}; it must be positive numbers that sum to {tokens}")
        if len(self.schedule[0]) > 1:
            raise ValueError("refine: the first scale comes from the class alone; it must have one number")

    def shown(self, scales: range) -> str:
        """The masked passes of some scales in words; empty if there are none."""
        refined = {k: self.schedule[k] for k in scales if len(self.schedule[k]) > 1}
        if not refined:
            return ""
        extra = sum(len(counts) - 1 for counts in refined.values())
        listed = "; ".join(f"{k}: {','.join(map(str, counts))}" for k, counts in refined.items())
        return f"{extra} masked passes ({listed}){' clean' if self.clean else ''}"


def refinement(wanted: str | Sequence[Sequence[int]], scales: Scales, *, clean: bool = False) -> Refinement | None:
    """The schedule that `--refine` names, for some scales: a name, lists such as "1;1,3;1,1,2,5;...", or "off" (None).

    A last list of "..." stands for one pass for each scale that is left. ValueError if it does not fit.
    """
    if wanted == OFF:
        return None
    if isinstance(wanted, str) and wanted in NAMED:
        first, *others = scales.patch_nums  # the first scale comes from the class alone, whatever its side
        lists = ((first * first,), *(NAMED[wanted].get(side, (side * side,)) for side in others))
    elif isinstance(wanted, str):
        lists = _parsed(wanted, scales)
    elif _are_lists(wanted):
        lists = tuple(map(tuple, wanted))
    else:
        raise ValueError(_complaint(wanted))
    found = Refinement(lists, clean)
    found.require_fit(scales)
    return found


def _parsed(text: str, scales: Scales) -> tuple[tuple[int, ...], ...]:
    parts = [part.strip() for part in text.split(";")]
    if parts[-1] == REST:
        parts[-1:] = [str(tokens) for tokens in scales.lengths[len(parts) - 1 :]]
    try:
        return tuple(tuple(map(int, part.split(","))) for part in parts)
    except ValueError:
        raise ValueError(_complaint(text)) from None


def _are_lists(wanted: object) -> bool:
    """Whether this is a list of whole numbers for each scale."""
    return isinstance(wanted, list | tuple) and all(
        isinstance(counts, list | tuple) and all(type(count) is int for count in counts) for counts in wanted
    )


def _complaint(wanted: object) -> str:
    return f'refine is {wanted!r}; it must be {OFF}, {", ".join(NAMED)}, or a list per scale: "1;1,3;1,1,2,5;..."'
