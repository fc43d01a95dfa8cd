"""Three-component vectors over numpy arrays, and the few curves the still lifes are drawn with.

Only additions, products, quotients, square roots and roundings are used on arrays: IEEE 754 fixes those to the last
bit, so an image is the same on every machine, which a vendor's sine or power would not guarantee.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, TypeAlias

import numpy as np

Scalars: TypeAlias = Any  # a float32 array with one number for each ray, (M,), or a float that holds for all of them


@dataclass(frozen=True)
class Vector:
    """One vector, or one for each ray: every component is a float or a float32 array of shape (M,)."""

    x: Scalars
    y: Scalars
    z: Scalars

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.x + other.x, self.y + other.y, self.z + other.z)

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.x - other.x, self.y - other.y, self.z - other.z)

    def __mul__(self, factor: Scalars) -> Vector:
        return Vector(self.x * factor, self.y * factor, self.z * factor)

    def times(self, other: Vector) -> Vector:
        """Return the product component by component, as for a colour lit by a colour."""
        return Vector(self.x * other.x, self.y * other.y, self.z * other.z)

    def dot(self, other: Vector) -> Scalars:
        """Return the inner product."""
        return self.x * other.x + self.y * other.y + self.z * other.z

    def unit(self) -> Vector:
        """Return the vector of length one in the same direction."""
        square = self.dot(self) + 1e-12
        # numpy's root of a Python float is a float64, which would turn every array it meets into float64.
        return self * (1.0 / (sqrt(square) if isinstance(square, float) else np.sqrt(square)))

    def at(self, chosen: np.ndarray) -> Vector:
        """Return the vectors of the chosen rays (a mask or indices)."""
        return Vector(self.x[chosen], self.y[chosen], self.z[chosen])

    def spread(self, shape: tuple[int, ...]) -> Vector:
        """Return the vector with every component a float32 array of the given shape."""
        components = (np.asarray(value, dtype=np.float32) for value in (self.x, self.y, self.z))
        return Vector(*(np.broadcast_to(value, shape) for value in components))

    def to(self, other: Vector, weight: Scalars) -> Vector:
        """Return the mixture that is this vector at weight 0 and the other at weight 1."""
        return self + (other - self) * weight


def clamp(values: Scalars, low: float = 0.0, high: float = 1.0) -> Scalars:
    """Return the values limited to [low, high]."""
    return np.minimum(np.maximum(values, low), high)


def centred(values: Scalars) -> Scalars:
    """Return each value less its nearest whole number: in [-0.5, 0.5)."""
    return values - np.floor(values + 0.5)


def wave(turns: Scalars) -> Scalars:
    """Return a sine of a number of turns, from two parabolas (within 0.001 of the true sine)."""
    part = centred(turns)
    arc = 8.0 * part - 16.0 * part * np.abs(part)
    return arc + 0.225 * (arc * np.abs(arc) - arc)
