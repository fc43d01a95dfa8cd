"""Lengths, offsets and masks of the pyramid."""

import pytest
import torch

from var_toolkit.core.schedule import SCHEDULES, Schedule, increasing_sides


@pytest.mark.parametrize(("name", "total"), [("256", 680), ("512", 2240), ("1024", 9451)])
def test_published_schedules_have_the_published_lengths(name, total):
    scales = Schedule.named(name)
    assert scales.total == total == sum(scales.lengths)
    assert scales.patch_nums == SCHEDULES[name]


def test_offsets_are_the_cumulative_lengths():
    assert Schedule.named("256").offsets == (0, 1, 5, 14, 30, 55, 91, 155, 255, 424, 680)


def test_masks_have_the_published_number_of_entries():
    scales = Schedule.named("256")
    assert int(scales.block_causal_mask().sum()) == 286_434
    assert int(scales.block_diagonal_mask().sum()) == 110_468


def test_the_mask_of_some_scales_is_a_slice_of_the_whole():
    scales = Schedule((1, 2, 4))
    whole = scales.block_causal_mask()
    assert torch.equal(scales.block_causal_mask(1, 2), whole[1:5, :5])


def test_split_undoes_packing():
    scales = Schedule((1, 2, 3))
    packed = torch.arange(28).view(2, 14)
    parts = scales.split(packed)
    assert [p.shape[1] for p in parts] == [1, 4, 9]
    assert torch.equal(torch.cat(parts, 1), packed)


@pytest.mark.parametrize("sides", [(), (0, 1), (2, 1), (1, 1), (1, "2"), (1.0, 2), (True, 2)])
def test_invalid_patch_nums_are_refused(sides):
    with pytest.raises(ValueError, match="patch_nums"):
        increasing_sides(sides)


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="256, 512, 1024"):
        Schedule.named("300")


@pytest.mark.parametrize(
    ("text", "maps"), [("1,2,4x6", ((1, 1), (2, 2), (4, 6))), ("1,4,4,2", ((1, 1), (4, 4), (4, 4), (2, 2)))]
)
def test_a_written_schedule_is_read_and_goes_through_json(text, maps):
    schedule = Schedule.parse(text)
    assert schedule.maps == maps
    assert str(schedule) == text
    assert schedule.lengths == tuple(h * w for h, w in maps)
    assert Schedule.from_json(schedule.to_json(), where="plan") == schedule


@pytest.mark.parametrize("text", ["", "1,,2", "0,1", "4x", "4x0", "1,-2", "2x3x4"])
def test_a_schedule_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match=f"schedule is '{text}'"):
        Schedule.parse(text)


@pytest.mark.parametrize("entry", [(1, 2, 3), (0, 1), (1, "2")])
def test_a_map_that_is_not_height_and_width_is_refused(entry):
    with pytest.raises(ValueError, match="patch_nums"):
        Schedule((1, entry))


def test_a_pair_of_equal_numbers_is_a_square_map():
    assert Schedule((1, (2, 2))) == Schedule((1, 2))


def test_the_side_of_the_last_map_is_refused_where_it_is_not_square():
    with pytest.raises(ValueError, match="schedule is 1,4x6"):
        _ = Schedule((1, (4, 6))).finest


def test_networks_of_square_growing_maps_refuse_others():
    with pytest.raises(ValueError, match="patch_nums"):
        increasing_sides((1, (2, 3)))  # type: ignore[arg-type]
