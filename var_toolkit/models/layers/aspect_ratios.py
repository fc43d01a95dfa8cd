"""Infinity's schedules (arXiv 2412.04431): one for each of 15 aspect ratios, which images of any size begin with."""

from __future__ import annotations

from var_toolkit.core.schedule import Schedule

# By height / width; of 256, 512, 768 and 1024 px, about, are the first 7, 10, 12 and 13 maps of the same list.
UPRIGHT = {
    1.0: "1,2,4,6,8,12,16,20,24,32,40,48,64",
    1.25: "1,2,3,5x4,10x8,15x12,20x16,25x20,30x24,35x28,45x36,55x44,70x56",
    1.333: "1,2,4x3,8x6,12x9,16x12,20x15,24x18,28x21,36x27,48x36,60x45,72x54",
    1.5: "1,2,3x2,6x4,9x6,15x10,21x14,27x18,33x22,39x26,48x32,63x42,78x52",
    1.75: "1,2,3,7x4,11x6,14x8,21x12,28x16,35x20,42x24,56x32,70x40,84x48",
    2.0: "1,2,4x2,6x3,10x5,16x8,22x11,30x15,38x19,46x23,60x30,74x37,90x45",
    2.5: "1,2,5x2,10x4,15x6,20x8,25x10,30x12,40x16,50x20,65x26,80x32,100x40",
    3.0: "1,2,6x2,9x3,15x5,21x7,27x9,36x12,45x15,54x18,72x24,90x30,111x37",
}
SIZES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}  # maps, by the published names of sizes


def _lying(schedule: Schedule) -> Schedule:
    return Schedule(tuple((width, height) for height, width in schedule.maps))


def _all() -> dict[float, Schedule]:
    """The whole schedules by ratio, square first, then each ratio and its inverse."""
    found: dict[float, Schedule] = {}
    for ratio, text in UPRIGHT.items():
        upright = Schedule.parse(text)
        found |= {ratio: upright, int(1000 / ratio) / 1000: _lying(upright)}
    return found


BY_RATIO = _all()


def whole_schedule(schedule: Schedule) -> Schedule | None:
    """The published schedule whose beginning another one is, but for its last map; None if it is of none.

    That of the nearest ratio comes first, since short schedules begin several.
    """
    height, width = schedule.maps[-1]
    for ratio in sorted(BY_RATIO, key=lambda ratio: abs(ratio - height / width)):
        whole, before = BY_RATIO[ratio].maps, schedule.maps[:-1]
        if before == whole[: len(before)] and height <= whole[-1][0] and width <= whole[-1][1]:
            return BY_RATIO[ratio]
    return None


def schedule_ending(height: int, width: int) -> Schedule:
    """The schedule of an image of height x width tokens: the maps of the nearest ratio that are smaller, then its own.

    ValueError for an image that is larger than the last map of that ratio.
    """
    whole = BY_RATIO[min(BY_RATIO, key=lambda ratio: abs(ratio - height / width))]
    if height > whole.maps[-1][0] or width > whole.maps[-1][1]:
        most = " x ".join(map(str, whole.maps[-1]))
        raise ValueError(
            f"{height} x {width} tokens are asked for; at this aspect ratio the model draws at most {most}"
        )
    smaller = [(h, w) for h, w in whole.maps if h <= height and w <= width and (h, w) != (height, width)]
    return Schedule((*smaller, (height, width)))
