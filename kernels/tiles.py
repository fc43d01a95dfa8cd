"""The tiles of the score matrix that attention over a pyramid needs: plain Python, computed once per schedule.

In both patterns each token attends to one interval of tokens and is attended to by one interval; both ends of the
interval are monotonic in the scale. So a kernel needs, for each run of rows, one interval of columns, and within it the
part that is allowed for all rows and needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, get_args

Pattern = Literal["block-causal", "block-diagonal"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
Interval = tuple[int, int]


class RowTile(NamedTuple):
    """A run of rows and the column tiles that it needs; these have equal widths and start at `column`.

    Of the `tiles` column tiles the first `head` need a mask, the next `full` do not, and the rest do.
    """

    row: int
    row_end: int
    column: int
    head: int
    full: int
    tiles: int


def allowed_keys(lengths: Sequence[int], pattern: Pattern) -> list[Interval]:
    """For each scale, the interval of keys that its queries attend to."""
    bounds = list(pairwise(accumulate(lengths, initial=0)))
    return bounds if pattern == "block-diagonal" else [(0, end) for _, end in bounds]


def allowed_queries(lengths: Sequence[int], pattern: Pattern) -> list[Interval]:
    """For each scale, the interval of queries that attend to its keys: the transpose of `allowed_keys`."""
    bounds = list(pairwise(accumulate(lengths, initial=0)))
    return bounds if pattern == "block-diagonal" else [(begin, sum(lengths)) for begin, _ in bounds]


def per_token(lengths: Sequence[int], allowed: Sequence[Interval]) -> list[Interval]:
    """The interval of each token, (L)."""
    return [interval for length, interval in zip(lengths, allowed, strict=True) for _ in range(length)]


def row_tiles(lengths: Sequence[int], allowed: Sequence[Interval], rows: int, columns: int) -> list[RowTile]:
    """All rows in tiles of at most `rows`, each with its column tiles of width `columns`; the longest first.

    `allowed` is the interval of columns of each scale's rows. A new row tile starts at a scale boundary if that is less
    work; so small scales share a tile and large ones do not straddle two. The cost of a row tile is its number of
    column tiles plus one for its own loads and stores.
    """
    offsets = [0, *accumulate(lengths)]
    best: list[tuple[int, list[RowTile]]] = [(0, [])]  # the cheapest way to tile the rows before each scale
    for end in range(1, len(offsets)):
        ways = []
        for begin in range(end):
            run = _run(offsets[begin : end + 1], allowed[begin:end], rows, columns)
            ways.append((best[begin][0] + sum(tile.tiles + 1 for tile in run), [*best[begin][1], *run]))
        best.append(min(ways, key=lambda way: way[0]))
    return sorted(best[-1][1], key=lambda tile: -tile.tiles)


def _run(offsets: Sequence[int], allowed: Sequence[Interval], rows: int, columns: int) -> list[RowTile]:
    """Tile consecutive scales from their first row on, across scale boundaries."""
    tiles = []
    first = last = 0
    for row in range(offsets[0], offsets[-1], rows):
        row_end = min(row + rows, offsets[-1])
        while offsets[first + 1] <= row:
            first += 1
        while offsets[last + 1] < row_end:
            last += 1
        column, end = allowed[first][0], allowed[last][1]
        shared, shared_end = allowed[last][0], allowed[first][1]
        head = -(-(shared - column) // columns)
        full = max(0, (shared_end - column) // columns - head)
        count = -(-(end - column) // columns)
        tiles.append(RowTile(row, row_end, column, min(head, count), full, count))
    return tiles
