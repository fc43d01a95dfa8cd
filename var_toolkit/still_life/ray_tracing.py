"""Draws one still life: camera, solid, patterned ground, soft shadow and haze, in float32 numpy.

The scene is fixed and the camera moves: the solid is at the origin, one unit is about its width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi, sin, sqrt

import numpy as np

from var_toolkit.still_life.grounds import Ground, grounds, linear
from var_toolkit.still_life.solids import Shape, shapes
from var_toolkit.still_life.vectors import Vector, clamp

HALF_VIEW = 0.44  # tangent of half the angle of view
SUN_SIZE = 0.11  # tangent of the sun's apparent radius: sets how soft shadows are
SUN_SAMPLES = 8
# A square turned by atan(1/2): edges near the horizontal and the vertical then take all four levels.
SUBPIXELS = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
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
class Scene:
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


def _scene(label: int, seed: int) -> Scene:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} must be from 0 to 2**63 - 1")
    generator = np.random.Generator(np.random.Philox(key=[seed, label]))
    *draws, side = generator.random(len(RANGES) + 1).tolist()
    drawn = {name: low + (high - low) * draw for (name, (low, high)), draw in zip(RANGES.items(), draws, strict=True)}
    scene = Scene(**drawn)
    return scene if side < 0.5 else replace(scene, sun_azimuth=-scene.sun_azimuth)


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
    scene = _scene(100 * solid + 10 * colour + ground, seed)
    view = _view(scene, shape, size)
    sun = _sun(scene)
    light = _backdrop(view, floor, scene)
    below = np.flatnonzero(view.rays.z < -1e-3)
    _put(light, below, _lit_ground(view, below, shape, floor, scene, sun))
    struck, reach = _struck(view, shape)
    point = view.eye + view.rays.at(struck) * reach
    _put(light, struck, _lit_solid(point, view.rays.at(struck), shape, paint, floor, scene, sun))
    return _developed(light, size)


def silhouette(parts: tuple[int, int, int], seed: int, size: int) -> np.ndarray:
    """Return where the solid of that image is, its shadow aside: bool, (size, size), true for any part of a pixel."""
    solid, colour, ground = parts
    shape = list(shapes().values())[solid]
    view = _view(_scene(100 * solid + 10 * colour + ground, seed), shape, size)
    seen = np.zeros(len(SUBPIXELS) * size * size, dtype=bool)
    seen[_struck(view, shape)[0]] = True
    found: np.ndarray = np.logical_or.reduce(seen.reshape(len(SUBPIXELS), size, size))
    return found


def _view(scene: Scene, shape: Shape, size: int) -> View:
    flat_x, flat_y = -cos(scene.azimuth), -sin(scene.azimuth)
    forward = Vector(flat_x * cos(scene.pitch), flat_y * cos(scene.pitch), -sin(scene.pitch))
    right = Vector(flat_y, -flat_x, 0.0)
    up = Vector(flat_x * sin(scene.pitch), flat_y * sin(scene.pitch), cos(scene.pitch))
    middle = Vector(0.0, 0.0, 0.5 * shape.height)
    depth = sqrt(shape.width * max(shape.width, shape.height)) / (2.0 * HALF_VIEW * scene.share)
    eye = middle - (forward + right * (HALF_VIEW * scene.u) + up * (HALF_VIEW * scene.v)) * depth
    pixels = np.arange(size, dtype=np.float32) + 0.5
    columns = np.concatenate([np.tile(pixels + dx, size) for dx, _ in SUBPIXELS])
    rows = np.concatenate([np.repeat(pixels + dy, size) for _, dy in SUBPIXELS])
    u, v = columns * (2.0 / size) - 1.0, 1.0 - rows * (2.0 / size)
    rays = (forward + right * (u * HALF_VIEW) + up * (v * HALF_VIEW)).unit()
    return View(eye, rays, 2.0 * HALF_VIEW / size)


def _sun(scene: Scene) -> Vector:
    angle = scene.azimuth + scene.sun_azimuth
    return Vector(cos(angle) * cos(scene.sun_height), sin(angle) * cos(scene.sun_height), sin(scene.sun_height))


def _haze(floor: Ground, scene: Scene) -> Vector:
    return floor.mean().to(linear((0.90, 0.91, 0.93)), 0.52) * (scene.sun_strength * scene.ground_tone)


def _backdrop(view: View, floor: Ground, scene: Scene) -> Vector:
    haze = _haze(floor, scene)
    high = floor.mean().to(linear((0.70, 0.76, 0.84)), 0.55) * 0.8
    return haze.to(high, clamp(view.rays.z * 2.2))


def _lit_ground(view: View, below: np.ndarray, shape: Shape, floor: Ground, scene: Scene, sun: Vector) -> Vector:
    rays = view.rays.at(below)
    along = -view.eye.z / rays.z
    point = Vector(view.eye.x + rays.x * along, view.eye.y + rays.y * along, np.float32(0.0))
    blur = view.pixel * along * (0.4 + 0.6 * along / view.eye.z)
    c, s = cos(scene.ground_turn), sin(scene.ground_turn)
    x, y = c * point.x - s * point.y + scene.ground_x, s * point.x + c * point.y + scene.ground_y
    albedo = floor.colour(x, y, blur) * scene.ground_tone
    nearness = 0.42 / (0.42 + np.maximum(shape.solid.distance(point), 0.0))
    subpixel = below // (len(view.rays.x) // len(SUBPIXELS))
    open_sky = 1.0 - 0.72 * nearness * nearness
    direct = linear(SUNLIGHT) * (0.80 * scene.sun_strength * sun.z / 0.72)
    light = linear(SKYLIGHT) * (0.31 * open_sky) + direct * _sunlit(point, subpixel, shape, sun)
    far = along / (along + 9.0)
    return albedo.times(light).to(_haze(floor, scene), clamp(2.4 * far * far * far * far + 0.1 * far))


def _sunlit(point: Vector, subpixel: np.ndarray, shape: Shape, sun: Vector) -> np.ndarray:
    """Return the share of the sun that ground points see, (M,)."""
    seen = np.ones(len(subpixel), dtype=np.float32)
    offset = Vector(point.x, point.y, -0.5 * shape.height)
    along = -offset.dot(sun)
    aside = offset.dot(offset) - along * along
    reach = shape.bound + 1.5 * SUN_SIZE * np.maximum(along, 0.0)
    near = np.flatnonzero((aside < reach * reach) & (along > -shape.bound))
    origin = Vector(point.x[near], point.y[near], np.float32(1e-3))
    discs = _sun_discs(sun)
    blocked = np.zeros(len(near), dtype=np.float32)
    for sample in range(SUN_SAMPLES):
        blocked += np.isfinite(shape.solid.reach(origin, discs.at(subpixel[near] * SUN_SAMPLES + sample)))
    seen[near] = 1.0 - blocked / SUN_SAMPLES
    return seen


def _sun_discs(sun: Vector) -> Vector:
    """Return directions spread over the sun's disc: each subpixel takes its own share of them, (4 * SUN_SAMPLES,)."""
    count = len(SUBPIXELS) * SUN_SAMPLES
    aside = Vector(sun.y, -sun.x, 0.0).unit()
    upwards = Vector(-aside.y * sun.z, aside.x * sun.z, sun.x * aside.y - sun.y * aside.x)
    golden = pi * (3.0 - sqrt(5.0))
    # Index i goes to subpixel i % 4, so that each subpixel's share covers the disc from the middle to the rim.
    order = [4 * sample + part for part in range(len(SUBPIXELS)) for sample in range(SUN_SAMPLES)]
    radii = [SUN_SIZE * sqrt((index + 0.5) / count) for index in order]
    across = np.array([r * cos(golden * i) for r, i in zip(radii, order, strict=True)], dtype=np.float32)
    along = np.array([r * sin(golden * i) for r, i in zip(radii, order, strict=True)], dtype=np.float32)
    return (sun + aside * across + upwards * along).unit()


def _struck(view: View, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the rays that meet the solid, and how far it is along each."""
    rays = _towards(view, shape)
    reach = shape.solid.reach(view.eye, view.rays.at(rays))
    meets = np.isfinite(reach)
    return rays[meets], reach[meets]


def _towards(view: View, shape: Shape) -> np.ndarray:
    """Return the indices of the rays that meet the ball around the solid."""
    offset = view.eye - Vector(0.0, 0.0, 0.5 * shape.height)
    along = view.rays.dot(offset)
    return np.flatnonzero(along * along > offset.dot(offset) - shape.bound * shape.bound)


def _lit_solid(
    point: Vector, ray: Vector, shape: Shape, paint: Vector, floor: Ground, scene: Scene, sun: Vector
) -> Vector:
    normal = shape.solid.normal(point)
    facing = np.maximum(normal.dot(sun), 0.0)
    height = point.z / (point.z + 0.12)
    upward = 0.5 + 0.5 * normal.z
    sky = linear(SKYLIGHT) * ((0.16 + 0.34 * upward) * (0.35 + 0.65 * height))
    bounce = floor.mean() * ((1.0 - upward) * 0.34 * (0.25 + 0.75 * height))
    direct = linear(SUNLIGHT) * (0.82 * scene.sun_strength * facing)
    half = (sun - ray).unit()
    gloss = np.maximum(normal.dot(half), 0.0)
    for _ in range(5):
        gloss = gloss * gloss
    graze = 1.0 + np.minimum(normal.dot(ray), 0.0)
    rim = graze * graze * graze * (0.12 * upward)
    shine = linear(SUNLIGHT) * (shape.gloss * gloss * (facing > 0)) + linear(SKYLIGHT) * rim
    return paint.times(sky + bounce + direct) + shine


def _developed(light: Vector, size: int) -> np.ndarray:
    planes = np.stack([light.x, light.y, light.z]).reshape(3, len(SUBPIXELS), size, size)
    display = np.sqrt(clamp(planes))
    mean = (display[:, 0] + display[:, 1] + display[:, 2] + display[:, 3]) * 0.25
    return np.floor(mean * 255.0 + 0.5).astype(np.uint8)


def _put(light: Vector, chosen: np.ndarray, values: Vector) -> None:
    light.x[chosen], light.y[chosen], light.z[chosen] = values.x, values.y, values.z
