"""Scenes: one to three solids with colour, size and position, on a ground, in a light.

The camera looks along +y from above: x grows to the right, y away from the camera, one unit is about a solid's width.
torch is not imported here, so that the rendering processes start fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi

import numpy as np

SOLIDS = ("sphere", "cube", "cylinder", "cone", "torus", "pyramid", "octahedron", "pawn")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = {"small": 0.72, "large": 1.12}
GROUNDS = ("sand", "checks", "stripes", "tiles", "marble", "grass")
LIGHTS = ("noon", "dusk", "night")
ARRANGEMENTS = ("single", "row", "depth")
# Never seen in training: a colour and a solid that are held out for judging.
HELD_OUT = (
    ("red", "cone"),
    ("green", "torus"),
    ("blue", "pyramid"),
    ("yellow", "octahedron"),
    ("purple", "cube"),
    ("white", "pawn"),
)
SPLITS = ("train", "validation", "held-out")
_FIRST_SEEDS = dict(zip(SPLITS, (0, 2**40, 2**41), strict=True))


@dataclass(frozen=True)
class Thing:
    """One solid of a scene. Position on the ground in units, turn in radians."""

    solid: str
    colour: str
    size: str
    x: float
    y: float
    turn: float


@dataclass(frozen=True)
class Scene:
    """What an image shows. Solids stand from left to right ("row"), or from the nearest to the farthest ("depth")."""

    things: tuple[Thing, ...]
    arrangement: str
    ground: str
    light: str


def scene_of(seed: int, split: str = "train") -> Scene:
    """The scene number `seed` of a split. ValueError for an unknown split or a negative seed.

    In "train" and "validation" no solid has a held-out pair of colour and solid; in "held-out" one of them has.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} must be one of {', '.join(SPLITS)}")
    if not 0 <= seed < 2**40:
        raise ValueError(f"seed {seed} must be from 0 to 2**40 - 1")
    draw = np.random.Generator(np.random.Philox(key=[_FIRST_SEEDS[split] + seed, 128]))
    count = int(draw.choice((1, 2, 3), p=(0.35, 0.4, 0.25)))
    arrangement = "single" if count == 1 else "row" if count == 3 or draw.random() < 0.55 else "depth"
    alike = count > 1 and arrangement == "row" and draw.random() < 0.25
    looks = list(_looks(draw, count, alike, held_out=split == "held-out"))
    things = tuple(
        Thing(solid, colour, size, x, y, float(draw.uniform(0, 2 * pi)))
        for (solid, colour, size), (x, y) in zip(looks, _positions(draw, count, arrangement), strict=True)
    )
    return Scene(things, arrangement, _one(draw, GROUNDS), _one(draw, LIGHTS))


def _looks(draw: np.random.Generator, count: int, alike: bool, *, held_out: bool) -> Iterator[tuple[str, str, str]]:
    """Solid, colour and size of each solid; no two of a scene are the same unless all are."""
    chosen: list[tuple[str, str]] = []
    special = int(draw.integers(count)) if held_out else -1
    while len(chosen) < (1 if alike else count):
        if len(chosen) == (0 if alike else special) and held_out:
            colour, solid = HELD_OUT[int(draw.integers(len(HELD_OUT)))]
        else:
            colour, solid = _one(draw, COLOURS), _one(draw, SOLIDS)
            if (colour, solid) in HELD_OUT:
                continue
        if (solid, colour) not in chosen:
            chosen.append((solid, colour))
    size = _one(draw, tuple(SIZES))
    for number in range(count):
        solid, colour = chosen[0 if alike else number]
        yield solid, colour, size if alike else _one(draw, tuple(SIZES))


def _positions(draw: np.random.Generator, count: int, arrangement: str) -> list[tuple[float, float]]:
    if arrangement == "single":
        return [(float(draw.uniform(-0.5, 0.5)), float(draw.uniform(-0.35, 0.35)))]
    if arrangement == "depth":
        side = 1.0 if draw.random() < 0.5 else -1.0
        return [(side * float(draw.uniform(0.2, 0.5)), -0.7), (-side * float(draw.uniform(0.2, 0.5)), 0.95)]
    gap = 0.8 if count == 2 else 1.22
    columns = np.linspace(-gap, gap, count)
    return [(float(x + draw.uniform(-0.1, 0.1)), float(draw.uniform(-0.25, 0.25))) for x in columns]


def _one(draw: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(draw.integers(len(names)))]
