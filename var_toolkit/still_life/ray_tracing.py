"""Draws one still life: camera, solid, patterned ground, soft shadow and haze, in float32 numpy.

The scene is fixed and the camera moves: the solid is at the origin, one unit is about its width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi, sin, sqrt
from typing import Protocol

import numpy as np

from var_toolkit.still_life.grounds import Ground, grounds, linear
from var_toolkit.still_life.solids import Shape, Solid, shapes
from var_toolkit.still_life.vectors import Vector, clamp

HALF_VIEW = 0.44  # tangent of half the angle of view
SUN_SIZE = 0.11  # tangent of the sun's apparent radius: sets how soft shadows are
SUN_SAMPLES = 8
# A square turned by atan(1/2): edges near the horizontal and the vertical then take all four levels.
SUBPIXELS = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
# Of ground points and the subpixels they belong to: how far the nearest solid is, and the share of the sun they see.
Shade = Callable[[Vector, np.ndarray], tuple[np.ndarray, np.ndarray]]
SHARP = 0.4  # change of the normal from pixel to pixel that makes an edge; at an outline it is about 0.5
SUNLIGHT = (1.0, 0.97, 0.90)
SKYLIGHT = (0.84, 0.91, 1.0)


def colours() -> dict[str, tuple[float, float, float]]:
    """Return the ten colours of the solids by name, in the order of the labels: display values in [0, 1]."""
    return {
        "red": (0.86, 0.15, 0.15),
        "orange": (0.97, 0.50, 0.07),
        "yellow": (0.98, 0.85, 0.16),
        "green": (0.27, 0.70, 0.22),
        "teal": (0.03, 0.68, 0.66),
        "blue": (0.14, 0.34, 0.88),
        "purple": (0.50, 0.19, 0.72),
        "pink": (0.98, 0.56, 0.74),
        "white": (0.95, 0.95, 0.94),
        "black": (0.16, 0.16, 0.18),
    }


# What is drawn evenly between two bounds for each image, in this order.
RANGES = {
    "azimuth": (0.0, 2.0 * pi),
    "pitch": (0.24, 0.46),
    "share": (0.38, 0.53),
    "u": (-0.30, 0.30),
    "v": (-0.24, -0.06),
    "sun_azimuth": (0.6, 1.8),
    "sun_height": (0.62, 0.95),
    "sun_strength": (0.9, 1.1),
    "ground_turn": (0.0, 2.0 * pi),
    "ground_x": (-0.5, 0.5),
    "ground_y": (-0.5, 0.5),
    "ground_tone": (0.92, 1.06),
}


@dataclass(frozen=True)
class Shot:
    """Everything that varies within a class. Angles in radians; u and v from -1 to 1 across the image."""

    azimuth: float
    pitch: float
    share: float  # of the image's width that the solid takes up
    u: float
    v: float
    sun_azimuth: float  # from the camera's side, to its left or right
    sun_height: float
    sun_strength: float
    ground_turn: float
    ground_x: float
    ground_y: float
    ground_tone: float


def _shot(label: int, seed: int) -> Shot:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} must be from 0 to 2**63 - 1")
    generator = np.random.Generator(np.random.Philox(key=[seed, label]))
    *draws, side = generator.random(len(RANGES) + 1).tolist()
    drawn = {name: low + (high - low) * draw for (name, (low, high)), draw in zip(RANGES.items(), draws, strict=True)}
    shot = Shot(**drawn)
    return shot if side < 0.5 else replace(shot, sun_azimuth=-shot.sun_azimuth)


class Standing(Protocol):
    """A solid on the ground, with a ball around its middle."""

    @property
    def solid(self) -> Solid: ...

    @property
    def middle(self) -> Vector: ...

    @property
    def bound(self) -> float: ...

    @property
    def gloss(self) -> float: ...


@dataclass(frozen=True)
class View:
    """A camera: where it is, and one ray of length one for each subpixel, (4 * size * size,)."""

    eye: Vector
    rays: Vector
    pixel: float  # the width of a pixel at distance one


def draw(parts: tuple[int, int, int], seed: int, size: int) -> np.ndarray:
    """Return the image of a solid, a colour and a ground, by their numbers: uint8, (3, size, size)."""
    solid, colour, ground = parts
    shape = list(shapes().values())[solid]
    paint = linear(list(colours().values())[colour])
    floor = list(grounds().values())[ground]
    shot = _shot(100 * solid + 10 * colour + ground, seed)
    view = _view(shot, shape, size)
    sun = sun_of(shot)
    light = backdrop(view, floor, shot)
    below = np.flatnonzero(view.rays.z < -1e-3)

    def shade(point: Vector, subpixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return shape.solid.distance(point), sunlit(point, subpixel, shape, sun, sun_discs(sun))

    put(light, below, lit_ground(view, below, floor, shot, sun, shade))
    hit, reach = struck(view, shape)
    point = view.eye + view.rays.at(hit) * reach
    put(light, hit, lit_solid(point, view.rays.at(hit), shape, paint, floor, shot, sun))
    return developed(light, size)


def silhouette(parts: tuple[int, int, int], seed: int, size: int) -> np.ndarray:
    """Return where the solid of that image is, its shadow aside: bool, (size, size), true for any part of a pixel."""
    view, hit, _, _ = _seen(parts, seed, size)
    seen = np.zeros(len(view.rays.x), dtype=bool)
    seen[hit] = True
    found: np.ndarray = np.logical_or.reduce(seen.reshape(len(SUBPIXELS), size, size))
    return found


def normals(parts: tuple[int, int, int], seed: int, size: int) -> np.ndarray:
    """Return the mean normal of the solid's surface in each pixel of that image: float32, (3, size, size).

    It is 0 where the solid is not.
    """
    view, hit, reach, shape = _seen(parts, seed, size)
    normal = shape.solid.normal(view.eye + view.rays.at(hit) * reach)
    found = np.zeros((3, len(view.rays.x)), dtype=np.float32)
    found[:, hit] = normal.x, normal.y, normal.z
    mean: np.ndarray = found.reshape(3, len(SUBPIXELS), size, size).mean(1)
    return mean


def edges(parts: tuple[int, int, int], seed: int, size: int) -> np.ndarray:
    """Return where the solid of that image ends or its surface bends sharply: bool, (size, size)."""
    down, right = np.gradient(normals(parts, seed, size), axis=(1, 2))
    found: np.ndarray = np.sqrt((down**2 + right**2).sum(0)) > SHARP
    return found


def _seen(parts: tuple[int, int, int], seed: int, size: int) -> tuple[View, np.ndarray, np.ndarray, Shape]:
    """The camera of an image, the rays that meet the solid, how far it is along each, and the solid."""
    solid, colour, ground = parts
    shape = list(shapes().values())[solid]
    view = _view(_shot(100 * solid + 10 * colour + ground, seed), shape, size)
    return view, *struck(view, shape), shape


def _view(shot: Shot, shape: Shape, size: int) -> View:
    flat_x, flat_y = -cos(shot.azimuth), -sin(shot.azimuth)
    forward = Vector(flat_x * cos(shot.pitch), flat_y * cos(shot.pitch), -sin(shot.pitch))
    right = Vector(flat_y, -flat_x, 0.0)
    up = Vector(flat_x * sin(shot.pitch), flat_y * sin(shot.pitch), cos(shot.pitch))
    middle = Vector(0.0, 0.0, 0.5 * shape.height)
    depth = sqrt(shape.width * max(shape.width, shape.height)) / (2.0 * HALF_VIEW * shot.share)
    eye = middle - (forward + right * (HALF_VIEW * shot.u) + up * (HALF_VIEW * shot.v)) * depth
    return camera(eye, (forward, right, up), size)


def camera(eye: Vector, axes: tuple[Vector, Vector, Vector], size: int) -> View:
    """A camera at `eye` whose axes point forwards, to the right and up, each of length one."""
    forward, right, up = axes
    pixels = np.arange(size, dtype=np.float32) + 0.5
    columns = np.concatenate([np.tile(pixels + dx, size) for dx, _ in SUBPIXELS])
    rows = np.concatenate([np.repeat(pixels + dy, size) for _, dy in SUBPIXELS])
    u, v = columns * (2.0 / size) - 1.0, 1.0 - rows * (2.0 / size)
    rays = (forward + right * (u * HALF_VIEW) + up * (v * HALF_VIEW)).unit()
    return View(eye, rays, 2.0 * HALF_VIEW / size)


def sun_of(shot: Shot) -> Vector:
    """The direction of the sun."""
    angle = shot.azimuth + shot.sun_azimuth
    return Vector(cos(angle) * cos(shot.sun_height), sin(angle) * cos(shot.sun_height), sin(shot.sun_height))


def _haze(floor: Ground, shot: Shot) -> Vector:
    return floor.mean().to(linear((0.90, 0.91, 0.93)), 0.52) * (shot.sun_strength * shot.ground_tone)


def backdrop(view: View, floor: Ground, shot: Shot) -> Vector:
    """The light of the haze and the sky above it."""
    haze = _haze(floor, shot)
    high = floor.mean().to(linear((0.70, 0.76, 0.84)), 0.55) * 0.8
    return haze.to(high, clamp(view.rays.z * 2.2))


def lit_ground(view: View, below: np.ndarray, floor: Ground, shot: Shot, sun: Vector, shade: Shade) -> Vector:
    """The light of the ground along the rays `below`, which point down."""
    rays = view.rays.at(below)
    along = -view.eye.z / rays.z
    point = Vector(view.eye.x + rays.x * along, view.eye.y + rays.y * along, np.float32(0.0))
    blur = view.pixel * along * (0.4 + 0.6 * along / view.eye.z)
    c, s = cos(shot.ground_turn), sin(shot.ground_turn)
    x, y = c * point.x - s * point.y + shot.ground_x, s * point.x + c * point.y + shot.ground_y
    albedo = floor.colour(x, y, blur) * shot.ground_tone
    gap, sunlit = shade(point, below // (len(view.rays.x) // len(SUBPIXELS)))
    nearness = 0.42 / (0.42 + np.maximum(gap, 0.0))
    open_sky = 1.0 - 0.72 * nearness * nearness
    direct = linear(SUNLIGHT) * (0.80 * shot.sun_strength * sun.z / 0.72)
    light = linear(SKYLIGHT) * (0.31 * open_sky) + direct * sunlit
    far = along / (along + 9.0)
    return albedo.times(light).to(_haze(floor, shot), clamp(2.4 * far * far * far * far + 0.1 * far))


def sunlit(
    point: Vector, subpixel: np.ndarray, shape: Standing, sun: Vector, discs: Vector, samples: int = SUN_SAMPLES
) -> np.ndarray:
    """Return the share of the sun that ground points see past a solid, (M,); `discs` are those of `sun_discs`."""
    seen = np.ones(len(subpixel), dtype=np.float32)
    offset = Vector(point.x - shape.middle.x, point.y - shape.middle.y, -shape.middle.z)
    along = -offset.dot(sun)
    aside = offset.dot(offset) - along * along
    reach = shape.bound + 1.5 * SUN_SIZE * np.maximum(along, 0.0)
    near = np.flatnonzero((aside < reach * reach) & (along > -shape.bound))
    origin = Vector(point.x[near], point.y[near], np.float32(1e-3))
    blocked = np.zeros(len(near), dtype=np.float32)
    for sample in range(samples):
        blocked += np.isfinite(shape.solid.reach(origin, discs.at(subpixel[near] * samples + sample)))
    seen[near] = 1.0 - blocked / samples
    return seen


def sun_discs(sun: Vector, samples: int = SUN_SAMPLES) -> Vector:
    """Return directions spread over the sun's disc: each subpixel takes its own share of them, (4 * samples,)."""
    count = len(SUBPIXELS) * samples
    aside = Vector(sun.y, -sun.x, 0.0).unit()
    upwards = Vector(-aside.y * sun.z, aside.x * sun.z, sun.x * aside.y - sun.y * aside.x)
    golden = pi * (3.0 - sqrt(5.0))
    # Index i goes to subpixel i % 4, so that each subpixel's share covers the disc from the middle to the rim.
    order = [4 * sample + part for part in range(len(SUBPIXELS)) for sample in range(samples)]
    radii = [SUN_SIZE * sqrt((index + 0.5) / count) for index in order]
    across = np.array([r * cos(golden * i) for r, i in zip(radii, order, strict=True)], dtype=np.float32)
    along = np.array([r * sin(golden * i) for r, i in zip(radii, order, strict=True)], dtype=np.float32)
    return (sun + aside * across + upwards * along).unit()


def struck(view: View, shape: Standing) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the rays that meet the solid, and how far it is along each."""
    rays = _towards(view, shape)
    reach = shape.solid.reach(view.eye, view.rays.at(rays))
    meets = np.isfinite(reach)
    return rays[meets], reach[meets]


def _towards(view: View, shape: Standing) -> np.ndarray:
    """Return the indices of the rays that meet the ball around the solid."""
    offset = view.eye - shape.middle
    along = view.rays.dot(offset)
    return np.flatnonzero(along * along > offset.dot(offset) - shape.bound * shape.bound)


def lit_solid(
    point: Vector, ray: Vector, shape: Standing, paint: Vector, floor: Ground, shot: Shot, sun: Vector
) -> Vector:
    """The light of points of a solid's surface, seen along rays."""
    normal = shape.solid.normal(point)
    facing = np.maximum(normal.dot(sun), 0.0)
    height = point.z / (point.z + 0.12)
    upward = 0.5 + 0.5 * normal.z
    sky = linear(SKYLIGHT) * ((0.16 + 0.34 * upward) * (0.35 + 0.65 * height))
    bounce = floor.mean() * ((1.0 - upward) * 0.34 * (0.25 + 0.75 * height))
    direct = linear(SUNLIGHT) * (0.82 * shot.sun_strength * facing)
    half = (sun - ray).unit()
    gloss = np.maximum(normal.dot(half), 0.0)
    for _ in range(5):
        gloss = gloss * gloss
    graze = 1.0 + np.minimum(normal.dot(ray), 0.0)
    rim = graze * graze * graze * (0.12 * upward)
    shine = linear(SUNLIGHT) * (shape.gloss * gloss * (facing > 0)) + linear(SKYLIGHT) * rim
    return paint.times(sky + bounce + direct) + shine


def developed(light: Vector, size: int) -> np.ndarray:
    """The light of all subpixels -> an image, uint8, (3, size, size)."""
    planes = np.stack([light.x, light.y, light.z]).reshape(3, len(SUBPIXELS), size, size)
    display = np.sqrt(clamp(planes))
    mean = (display[:, 0] + display[:, 1] + display[:, 2] + display[:, 3]) * 0.25
    return np.floor(mean * 255.0 + 0.5).astype(np.uint8)


def put(light: Vector, chosen: np.ndarray, values: Vector) -> None:
    """Set the light of some rays."""
    light.x[chosen], light.y[chosen], light.z[chosen] = values.x, values.y, values.z
