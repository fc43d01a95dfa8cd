"""The ten solids: where a ray enters each, its surface normal, and how far a point is from it.

Every solid stands on the ground z = 0 with its axis through the origin; one unit is about its width.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin, sqrt
from typing import Protocol

import numpy as np

from var_toolkit.still_life.vectors import Scalars, Vector

TORUS_STEPS = 22


class Solid(Protocol):
    """The interface of a solid for the renderer. Rays are an origin and a direction of length one."""

    def reach(self, origin: Vector, direction: Vector) -> np.ndarray:
        """Return the distance along each ray to where it enters the solid, infinite where it misses: (M,)."""

    def normal(self, point: Vector) -> Vector:
        """Return the outward normal at points of the surface."""

    def distance(self, point: Vector) -> np.ndarray:
        """Return about how far points outside are from the solid: (M,)."""


@dataclass(frozen=True)
class Ball:
    """A sphere with its centre at the given height."""

    height: float
    radius: float

    def reach(self, origin: Vector, direction: Vector) -> np.ndarray:
        near, far = _span_of_ball(origin, direction, self.height, self.radius)
        return _entry(near, far)

    def normal(self, point: Vector) -> Vector:
        return (point - Vector(0.0, 0.0, self.height)).unit()

    def distance(self, point: Vector) -> np.ndarray:
        offset = point - Vector(0.0, 0.0, self.height)
        return np.sqrt(offset.dot(offset)) - self.radius


@dataclass(frozen=True)
class Polyhedron:
    """A convex solid: the points p with n.p <= d for every face (n of length one, d)."""

    faces: tuple[tuple[float, float, float, float], ...]

    def reach(self, origin: Vector, direction: Vector) -> np.ndarray:
        near: Scalars = -np.inf
        far: Scalars = np.inf
        for x, y, z, offset in self.faces:
            normal = Vector(x, y, z)
            slope = _away_from_zero(normal.dot(direction))
            crossing = (offset - normal.dot(origin)) / slope
            near = np.maximum(near, np.where(slope < 0, crossing, -np.inf))
            far = np.minimum(far, np.where(slope < 0, np.inf, crossing))
        return _entry(near, far)

    def normal(self, point: Vector) -> Vector:
        excess = np.stack([Vector(x, y, z).dot(point) - d for x, y, z, d in self.faces])
        table = np.asarray(self.faces, dtype=np.float32)[np.argmax(excess, axis=0)]
        return Vector(table[:, 0], table[:, 1], table[:, 2])

    def distance(self, point: Vector) -> np.ndarray:
        furthest: Scalars = -np.inf
        for x, y, z, offset in self.faces:
            furthest = np.maximum(furthest, Vector(x, y, z).dot(point) - offset)
        return furthest


@dataclass(frozen=True)
class Cone:
    """A cone cut flat: `radius` at `base`, shrinking by `taper` for each unit up, to the height `top`.

    A taper of 0 is a cylinder; a cone that runs to its tip has top = base + radius / taper.
    """

    radius: float
    top: float
    taper: float = 0.0
    base: float = 0.0

    def reach(self, origin: Vector, direction: Vector) -> np.ndarray:
        width = self.radius - self.taper * (origin.z - self.base)
        growth = -self.taper * direction.z
        a = direction.x * direction.x + direction.y * direction.y - growth * growth
        b = origin.x * direction.x + origin.y * direction.y - width * growth
        c = origin.x * origin.x + origin.y * origin.y - width * width
        a = _away_from_zero(a)
        root = b * b - a * c
        spread = np.sqrt(np.maximum(root, 0.0)) / np.abs(a)
        middle = -b / a
        down = _away_from_zero(direction.z)
        first, last = (self.base - origin.z) / down, (self.top - origin.z) / down
        enter, leave = np.minimum(first, last), np.maximum(first, last)
        # A ray steeper than the side is inside the double cone before its first and after its second crossing.
        inside_from = np.where(a > 0, middle - spread, np.where(down < 0, middle + spread, -np.inf))
        inside_to = np.where(a > 0, middle + spread, np.where(down < 0, np.inf, middle - spread))
        near, far = np.maximum(enter, inside_from), np.minimum(leave, inside_to)
        return _entry(near, np.where((root < 0) & (a > 0), -np.inf, far))

    def normal(self, point: Vector) -> Vector:
        side, above = self._outside(point)
        around = np.sqrt(point.x * point.x + point.y * point.y) + 1e-6
        lean = 1.0 / sqrt(1.0 + self.taper * self.taper)
        capped = above > side
        level = np.where(capped, 0.0, lean).astype(np.float32) / around
        up = np.where(point.z > 0.5 * (self.base + self.top), 1.0, -1.0).astype(np.float32)
        return Vector(point.x * level, point.y * level, np.where(capped, up, np.float32(lean * self.taper)))

    def distance(self, point: Vector) -> np.ndarray:
        return np.maximum(*self._outside(point))

    def _outside(self, point: Vector) -> tuple[np.ndarray, Scalars]:
        around = np.sqrt(point.x * point.x + point.y * point.y)
        lean = 1.0 / sqrt(1.0 + self.taper * self.taper)
        side = (around - self.radius + self.taper * (point.z - self.base)) * lean
        return side, np.maximum(self.base - point.z, point.z - self.top)


@dataclass(frozen=True)
class Torus:
    """A ring lying on the ground: `ring` is the radius of its core circle, `tube` that of its cross-section."""

    ring: float
    tube: float

    def reach(self, origin: Vector, direction: Vector) -> np.ndarray:
        near, far = _span_of_ball(origin, direction, self.tube, self.ring + self.tube)
        reach_M = np.full(near.shape, np.inf, dtype=np.float32)
        tried = np.flatnonzero(far > np.maximum(near, 0.0))
        start, heading = origin.spread(near.shape).at(tried), direction.at(tried)
        along, end = np.maximum(near[tried], 0.0), far[tried]
        for _ in range(TORUS_STEPS):
            gap = self.distance(start + heading * along)
            along = along + gap
        reach_M[tried] = np.where((gap < 0.01) & (along < end), along, np.inf)
        return reach_M

    def normal(self, point: Vector) -> Vector:
        around = np.sqrt(point.x * point.x + point.y * point.y) + 1e-6
        scale = (around - self.ring) / around
        return Vector(point.x * scale, point.y * scale, point.z - self.tube).unit()

    def distance(self, point: Vector) -> np.ndarray:
        around = np.sqrt(point.x * point.x + point.y * point.y) - self.ring
        height = point.z - self.tube
        return np.sqrt(around * around + height * height) - self.tube


@dataclass(frozen=True)
class Union:
    """Several solids joined into one."""

    parts: tuple[Solid, ...]

    def reach(self, origin: Vector, direction: Vector) -> np.ndarray:
        nearest: Scalars = np.inf
        for part in self.parts:
            nearest = np.minimum(nearest, part.reach(origin, direction))
        return nearest

    def normal(self, point: Vector) -> Vector:
        best, chosen = self.parts[0].normal(point), np.abs(self.parts[0].distance(point))
        for part in self.parts[1:]:
            gap, other = np.abs(part.distance(point)), part.normal(point)
            closer = gap < chosen
            best = Vector(*(np.where(closer, a, b) for a, b in zip(_xyz(other), _xyz(best), strict=True)))
            chosen = np.minimum(chosen, gap)
        return best

    def distance(self, point: Vector) -> np.ndarray:
        nearest: Scalars = np.inf
        for part in self.parts:
            nearest = np.minimum(nearest, part.distance(point))
        return nearest


@dataclass(frozen=True)
class Shape:
    """A solid with its height, its typical width seen from any side, and the radius of a ball around its middle.

    Flat faces get less gloss: they mirror the sun as a whole, which would wash out their colour.
    """

    solid: Solid
    height: float
    width: float
    bound: float
    gloss: float

    @property
    def middle(self) -> Vector:
        """Where the middle of its ball is."""
        return Vector(0.0, 0.0, 0.5 * self.height)


def shapes() -> dict[str, Shape]:
    """Return the ten solids by name, in the order of the labels."""
    return {
        "sphere": Shape(Ball(0.5, 0.5), 1.0, 1.0, 0.52, 0.34),
        "cube": Shape(_prism(4, 0.5, 1.0), 1.0, 1.25, 0.9, 0.1),
        "cylinder": Shape(Cone(0.4, 1.1), 1.1, 0.85, 0.7, 0.34),
        "cone": Shape(Cone(0.55, 1.2, taper=0.55 / 1.2), 1.2, 1.0, 0.85, 0.34),
        "torus": Shape(Torus(0.55, 0.22), 0.44, 1.35, 0.8, 0.34),
        "octahedron": Shape(_octahedron(0.64, 0.78), 1.56, 1.1, 0.8, 0.1),
        "capsule": Shape(Union((Ball(0.3, 0.3), Cone(0.3, 1.1, base=0.3), Ball(1.1, 0.3))), 1.4, 0.75, 0.72, 0.34),
        "prism": Shape(_prism(6, 0.55, 0.72), 0.72, 1.2, 0.75, 0.1),
        "pyramid": Shape(_pyramid(0.58, 1.05), 1.05, 1.3, 0.98, 0.1),
        "pawn": Shape(Union(_pawn()), 1.36, 0.95, 0.86, 0.34),
    }


def _prism(sides: int, inradius: float, height: float) -> Polyhedron:
    angles = [2.0 * pi * side / sides for side in range(sides)]
    walls = tuple((cos(angle), sin(angle), 0.0, inradius) for angle in angles)
    return Polyhedron((*walls, (0.0, 0.0, 1.0, height), (0.0, 0.0, -1.0, 0.0)))


def _pyramid(half: float, height: float) -> Polyhedron:
    slant = sqrt(half * half + height * height)
    flat, up, offset = height / slant, half / slant, half * height / slant
    walls = ((flat, 0.0, up, offset), (-flat, 0.0, up, offset), (0.0, flat, up, offset), (0.0, -flat, up, offset))
    return Polyhedron((*walls, (0.0, 0.0, -1.0, 0.0)))


def _octahedron(half: float, half_height: float) -> Polyhedron:
    length = sqrt(2.0 * half_height * half_height + half * half)
    flat, up, offset = half_height / length, half / length, half * half_height / length
    signs = [(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]
    return Polyhedron(tuple((flat * x, flat * y, up * z, offset + up * z * half_height) for x, y, z in signs))


def _pawn() -> tuple[Solid, ...]:
    return (Cone(0.48, 0.16), Cone(0.38, 1.0, taper=0.26, base=0.16), Cone(0.3, 0.86, base=0.78), Ball(1.08, 0.28))


def _span_of_ball(origin: Vector, direction: Vector, height: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    offset = origin - Vector(0.0, 0.0, height)
    middle = -offset.dot(direction)
    root = middle * middle - offset.dot(offset) + radius * radius
    spread = np.sqrt(np.maximum(root, 0.0))
    return middle - spread, np.where(root < 0, -np.inf, middle + spread)


def _entry(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    return np.where((far > near) & (near > 0), near, np.inf)


def _away_from_zero(values: Scalars) -> Scalars:
    return np.where(np.abs(values) < 1e-6, np.float32(1e-6), values)


def _xyz(vector: Vector) -> tuple[Scalars, Scalars, Scalars]:
    return vector.x, vector.y, vector.z
