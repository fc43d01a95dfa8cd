"""Tile lists: every allowed pair once, no forbidden pair unmasked, and forbidden work skipped."""

import pytest
import torch

from var_toolkit.core.schedule import Schedule
from var_toolkit.kernels.reference import attention_mask
from var_toolkit.kernels.tiles import PATTERNS, allowed_keys, allowed_queries, per_token, row_tiles

SCHEDULES = [(1,), (7,), (1, 2, 3, 5), (2, 3, 9), (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)]
TILES = [(16, 16), (64, 32), (32, 64), (128, 128), (7, 5)]


@pytest.mark.parametrize("sides", SCHEDULES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_mask_is_that_of_the_schedule(pattern, sides):
    scales = Schedule(sides)
    wanted = scales.block_causal_mask() if pattern == "block-causal" else scales.block_diagonal_mask()
    assert torch.equal(attention_mask(scales.lengths, pattern), wanted)


@pytest.mark.parametrize(("rows", "columns"), TILES)
@pytest.mark.parametrize("transposed", [False, True], ids=["keys", "queries"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sides", SCHEDULES, ids=str)
def test_every_allowed_pair_is_in_one_tile_and_no_other_is_left_unmasked(sides, pattern, transposed, rows, columns):
    lengths = Schedule(sides).lengths
    mask = attention_mask(lengths, pattern)
    mask = mask.T if transposed else mask
    allowed = (allowed_queries if transposed else allowed_keys)(lengths, pattern)
    visits = torch.zeros(len(mask), len(mask) + columns, dtype=torch.int64)
    owners = torch.zeros(len(mask), dtype=torch.int64)
    for tile in row_tiles(lengths, allowed, rows, columns):
        assert 0 < tile.row_end - tile.row <= rows
        assert 0 <= tile.head <= tile.head + tile.full <= tile.tiles
        owners[tile.row : tile.row_end] += 1
        for i in range(tile.tiles):
            column = tile.column + i * columns
            visits[tile.row : tile.row_end, column : column + columns] += 1
            if tile.head <= i < tile.head + tile.full:
                unmasked = mask[tile.row : tile.row_end, column : column + columns]
                assert unmasked.shape[1] == columns
                assert unmasked.all()
    assert (owners == 1).all()
    assert (visits <= 1).all()
    assert (visits[:, : len(mask)][mask] == 1).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_token_has_the_interval_of_its_scale(pattern):
    lengths = (1, 4, 9)
    mask = attention_mask(lengths, pattern)
    for i, (begin, end) in enumerate(per_token(lengths, allowed_queries(lengths, pattern))):
        assert mask[:, i].nonzero().flatten().tolist() == list(range(begin, end))


@pytest.mark.parametrize(
    ("name", "pattern", "least"),
    [
        ("256", "block-diagonal", 0.8),
        ("256", "block-causal", 0.9),
        ("512", "block-diagonal", 0.95),
        ("512", "block-causal", 0.97),
        ("1024", "block-diagonal", 0.98),
        ("1024", "block-causal", 0.98),
    ],
)
def test_most_of_the_work_in_tiles_is_needed(name, pattern, least):
    lengths = Schedule.named(name).lengths
    for allowed in (allowed_keys(lengths, pattern), allowed_queries(lengths, pattern)):
        needed = sum(n * (end - begin) for n, (begin, end) in zip(lengths, allowed, strict=True))
        computed = 64 * 64 * sum(tile.tiles for tile in row_tiles(lengths, allowed, 64, 64))
        assert needed / computed > least


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_longest_tiles_come_first(pattern):
    lengths = Schedule.named("512").lengths
    counts = [tile.tiles for tile in row_tiles(lengths, allowed_keys(lengths, pattern), 128, 64)]
    assert counts == sorted(counts, reverse=True)
