"""Draws a scene: several solids on one ground, each with its soft shadow, in the light of a time of day."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi, sin

import numpy as np

from var_toolkit.still_life.grounds import Ground, grounds, linear
from var_toolkit.still_life.ray_tracing import (
    HALF_VIEW,
    Shot,
    View,
    backdrop,
    camera,
    colours,
    developed,
    lit_ground,
    lit_solid,
    put,
    struck,
    sun_discs,
    sun_of,
    sunlit,
)
from var_toolkit.still_life.scenes import SIZES, Scene, Thing
from var_toolkit.still_life.solids import Shape, Solid, shapes
from var_toolkit.still_life.vectors import Vector

SIZE = 128
SUN_SAMPLES = 3  # for each of a pixel's four subpixels
PITCH = 0.50
DISTANCE = 4.8
LOOKED_AT = Vector(0.0, 0.12, 0.42)


@dataclass(frozen=True)
class Light:
    """Where the sun or the moon is, in radians, and what everything it lights is multiplied with."""

    azimuth: float  # from the camera's side, to its left
    height: float
    strength: float
    tint: Vector


LIGHTS = {
    "noon": Light(-0.9, 0.95, 1.0, Vector(1.0, 1.0, 1.0)),
    "dusk": Light(-1.35, 0.42, 1.55, Vector(1.0, 0.78, 0.56)),
    "night": Light(-0.9, 0.75, 1.0, Vector(0.30, 0.36, 0.56)),
}


def _floor(name: str) -> Ground:
    """A ground of the still lifes with a larger and softer pattern, since the solids are smaller here."""
    ground = grounds()[name]
    contrast = 0.45 if name == "marble" else 0.65
    middle = [0.5 * (a + b) for a, b in zip(ground.first, ground.second, strict=True)]

    def softer(colour: tuple[float, float, float]) -> tuple[float, float, float]:
        r, g, b = (m + contrast * (c - m) for c, m in zip(colour, middle, strict=True))
        return r, g, b

    return replace(ground, first=softer(ground.first), second=softer(ground.second), period=1.3 * ground.period)


@dataclass(frozen=True)
class Placed:
    """A solid moved, turned about its axis and scaled: a solid again, in the scene's coordinates."""

    shape: Shape
    x: float
    y: float
    turn: float
    scale: float

    @property
    def solid(self) -> Solid:
        """Itself."""
        return self

    @property
    def gloss(self) -> float:
        """That of the shape."""
        return self.shape.gloss

    @property
    def bound(self) -> float:
        """Radius of the ball around the middle."""
        return self.shape.bound * self.scale

    @property
    def middle(self) -> Vector:
        """Where the middle of its ball is."""
        return Vector(self.x, self.y, 0.5 * self.shape.height * self.scale)

    def reach(self, origin: Vector, direction: Vector) -> np.ndarray:
        """See `Solid`."""
        return self.shape.solid.reach(self._inside(origin), _turned(direction, -self.turn)) * np.float32(self.scale)

    def normal(self, point: Vector) -> Vector:
        """See `Solid`."""
        return _turned(self.shape.solid.normal(self._inside(point)), self.turn)

    def distance(self, point: Vector) -> np.ndarray:
        """See `Solid`."""
        return self.shape.solid.distance(self._inside(point)) * np.float32(self.scale)

    def _inside(self, point: Vector) -> Vector:
        return _turned(point - Vector(self.x, self.y, 0.0), -self.turn) * (1.0 / self.scale)


def draw_scene(scene: Scene, seed: int, size: int) -> np.ndarray:
    """The image of a scene, uint8 (3, size, size): a pure function of its arguments. The seed moves the ground."""
    floor, light = _floor(scene.ground), LIGHTS[scene.light]
    shot = _shot(light, seed)
    view, sun = _view(size), sun_of(shot)
    discs = sun_discs(sun, SUN_SAMPLES)
    solids = [placed(thing) for thing in scene.things]

    def shade(point: Vector, subpixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gap, seen = solids[0].distance(point), sunlit(point, subpixel, solids[0], sun, discs, SUN_SAMPLES)
        for solid in solids[1:]:
            gap = np.minimum(gap, solid.distance(point))
            seen = np.minimum(seen, sunlit(point, subpixel, solid, sun, discs, SUN_SAMPLES))
        return gap, seen

    shown = backdrop(view, floor, shot)
    below = np.flatnonzero(view.rays.z < -1e-3)
    put(shown, below, lit_ground(view, below, floor, shot, sun, shade))
    nearest = np.full(len(view.rays.x), np.inf, dtype=np.float32)
    for solid, thing in zip(solids, scene.things, strict=True):
        hit, reach = struck(view, solid)
        closer = reach < nearest[hit]
        hit, reach = hit[closer], reach[closer]
        nearest[hit] = reach
        point, paint = view.eye + view.rays.at(hit) * reach, linear(colours()[thing.colour])
        put(shown, hit, lit_solid(point, view.rays.at(hit), solid, paint, floor, shot, sun))
    return developed(shown.times(light.tint), size)


def placed(thing: Thing) -> Placed:
    """The solid of a thing, where it stands."""
    return Placed(shapes()[thing.solid], thing.x, thing.y, thing.turn, SIZES[thing.size])


def seen_at(thing: Thing) -> tuple[float, float]:
    """Where the middle of a thing is in the image: column and row, from 0 to 1."""
    return _projected(placed(thing).middle)


def foot_at(thing: Thing) -> float:
    """The row of the point on the ground on which a thing stands, from 0 to 1: larger for a nearer one."""
    return _projected(Vector(thing.x, thing.y, 0.0))[1]


def _projected(point: Vector) -> tuple[float, float]:
    forward, right, up = _axes()
    offset = point - _eye()
    depth = offset.dot(forward) * HALF_VIEW
    return 0.5 + 0.5 * float(offset.dot(right) / depth), 0.5 - 0.5 * float(offset.dot(up) / depth)


def _axes() -> tuple[Vector, Vector, Vector]:
    return Vector(0.0, cos(PITCH), -sin(PITCH)), Vector(1.0, 0.0, 0.0), Vector(0.0, sin(PITCH), cos(PITCH))


def _eye() -> Vector:
    return LOOKED_AT - _axes()[0] * DISTANCE


def _view(size: int) -> View:
    return camera(_eye(), _axes(), size)


def _shot(light: Light, seed: int) -> Shot:
    """The light, and where the ground's pattern lies."""
    draw = np.random.Generator(np.random.Philox(key=[seed, 129])).random(4).tolist()
    return Shot(
        azimuth=-pi / 2,
        pitch=PITCH,
        share=0.0,
        u=0.0,
        v=0.0,
        sun_azimuth=light.azimuth + 0.2 * (draw[0] - 0.5),
        sun_height=light.height,
        sun_strength=light.strength,
        ground_turn=0.3 * (draw[1] - 0.5),
        ground_x=draw[2] - 0.5,
        ground_y=draw[3] - 0.5,
        ground_tone=1.0,
    )


def _turned(vector: Vector, angle: float) -> Vector:
    c, s = cos(angle), sin(angle)
    return Vector(vector.x * c - vector.y * s, vector.x * s + vector.y * c, vector.z)
