"""In how many passes the tokens of each scale are drawn (HMAR, arXiv 2506.04421)."""

from __future__ import annotations

from collections.abc import Sequence

from var_toolkit.core.schedule import Schedule

# How many tokens are decided in each pass, by the side of the scale; scales that are not named take one pass.
NAMED: dict[str, dict[int, tuple[int, ...]]] = {
    "published": {2: (1, 3), 3: (1, 1, 2, 5)},  # of the released sampler: 14 passes at 256 px
    "benchmark-256": {2: (1, 3), 3: (1, 3, 5)},  # of the paper's speed tables, by resolution
    "benchmark-512": {2: (1, 3), 3: (1, 1, 2, 5), 4: (5, 11)},
    "benchmark-1024": {2: (1, 3), 3: (1, 1, 2, 5), 4: (3, 5, 8)},
}
OFF = "off"
REST = "..."


def masked_passes(wanted: str | Sequence[Sequence[int]], scales: Schedule) -> tuple[tuple[int, ...], ...]:
    """The tokens that each masked pass of each scale redraws, as `--refine` names them.

    `wanted` is a name, lists such as "1;1,3;1,1,2,5;..." of how many tokens are decided in each pass, or "off". A last
    list of "..." stands for one pass for each scale that is left. ValueError if it does not fit the scales.
    """
    if wanted == OFF:
        return ((),) * len(scales)
    if isinstance(wanted, str) and wanted in NAMED:
        first, *others = scales.patch_nums  # the first scale comes from the class alone, whatever its side
        lists = ((first * first,), *(NAMED[wanted].get(side, (side * side,)) for side in others))
    elif isinstance(wanted, str):
        lists = _parsed(wanted, scales)
    elif _are_lists(wanted):
        lists = tuple(map(tuple, wanted))
    else:
        raise ValueError(_complaint(wanted))
    _require_fit(lists, scales)
    return tuple(tuple(sum(counts[step:]) for step in range(1, len(counts))) for counts in lists)


def _require_fit(lists: Sequence[Sequence[int]], scales: Schedule) -> None:
    if len(lists) != len(scales):
        raise ValueError(f"refine has {len(lists)} lists for {len(scales)} scales; give one list per scale")
    for k, (counts, tokens) in enumerate(zip(lists, scales.lengths, strict=True)):
        shown = ",".join(map(str, counts))
        if any(count < 1 for count in counts) or sum(counts) != tokens:
            raise ValueError(f"refine: scale {k} has {shown}; it must be positive numbers that sum to {tokens}")
    if len(lists[0]) > 1:
        raise ValueError("refine: the first scale comes from the class alone; it must have one number")


def _parsed(text: str, scales: Schedule) -> tuple[tuple[int, ...], ...]:
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
