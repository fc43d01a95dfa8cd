"""The ten grounds: the pattern and the two colours of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from var_toolkit.still_life.vectors import Vector, centred, clamp, wave

Pattern = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Ground:
    """A pattern between two colours (display values in [0, 1]); `period` is the size of one repeat in solid widths."""

    pattern: Pattern
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    period: float

    def colour(self, x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> Vector:
        """Return the linear colour at ground points: x, y and the size of a pixel there, in solid widths, (M,)."""
        first, second = linear(self.first), linear(self.second)
        weight = self.pattern(x / self.period, y / self.period, blur / self.period)
        return first.to(second, weight)

    def mean(self) -> Vector:
        """Return the linear colour halfway between the two."""
        return linear(self.first).to(linear(self.second), 0.5)


def linear(display: tuple[float, float, float]) -> Vector:
    """Return the light of a display colour: with a gamma of exactly 2, so that its inverse is a square root."""
    return Vector(*(value * value for value in display))


def grounds() -> dict[str, Ground]:
    """Return the ten grounds by name, in the order of the labels."""
    return {
        "sand": Ground(_sand, (0.90, 0.84, 0.73), (0.83, 0.75, 0.62), 2.6),
        "checks": Ground(_checks, (0.78, 0.66, 0.52), (0.47, 0.35, 0.27), 1.5),
        "stripes": Ground(_stripes, (0.90, 0.74, 0.70), (0.70, 0.42, 0.38), 0.9),
        "dots": Ground(_dots, (0.74, 0.84, 0.93), (0.30, 0.46, 0.66), 0.75),
        "rings": Ground(_rings, (0.95, 0.94, 0.91), (0.55, 0.55, 0.54), 0.95),
        "waves": Ground(_waves, (0.62, 0.63, 0.78), (0.33, 0.33, 0.50), 0.9),
        "tiles": Ground(_tiles, (0.93, 0.91, 0.95), (0.68, 0.58, 0.74), 0.95),
        "marble": Ground(_marble, (0.78, 0.80, 0.79), (0.36, 0.41, 0.43), 2.7),
        "grass": Ground(_zigzags, (0.66, 0.77, 0.56), (0.36, 0.52, 0.36), 1.2),
        "honeycomb": Ground(_honeycomb, (0.55, 0.40, 0.16), (0.89, 0.74, 0.40), 0.95),
    }


def _sand(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    ripple = wave(x + 0.2 * wave(0.7 * y)) + wave(0.8 * y + 0.25 * wave(0.6 * x))
    return 0.5 + 0.22 * ripple * _kept(blur)


def _checks(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * _bands(x, blur) * _bands(y, blur)


def _stripes(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * _bands(x, blur)


def _dots(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    row = np.floor(y / 0.866 + 0.5)
    across, along = centred(x + 0.5 * row), y - 0.866 * row
    inside = _step(0.29 - np.sqrt(across * across + along * along), blur)
    return 0.3 + (inside - 0.3) * _kept(blur)


def _rings(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * _bands(np.sqrt(x * x + y * y), blur)


def _waves(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * _bands(x + 0.3 * wave(0.6 * y), blur)


def _tiles(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    border = 0.5 - np.maximum(np.abs(centred(x)), np.abs(centred(y)))
    return 0.78 + (_step(border - 0.07, blur) - 0.78) * _kept(blur)


def _marble(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    bent_x = x + 0.35 * wave(0.9 * y + 0.15) + 0.16 * wave(1.9 * y + 1.3 * x)
    bent_y = y + 0.35 * wave(1.1 * x + 0.4) + 0.16 * wave(2.1 * x - 1.2 * y)
    cloud = wave(bent_x) * wave(0.9 * bent_y) + 0.5 * wave(1.6 * bent_x + 1.3 * bent_y)
    return 0.5 + 0.42 * clamp(cloud, -1.1, 1.1) * _kept(2.5 * blur)


def _zigzags(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * _bands(x + 1.1 * np.abs(centred(0.8 * y)), 1.4 * blur)


def _honeycomb(x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    height = 1.7320508
    near = _hexagon(centred(x), height * centred(y / height))
    far = _hexagon(centred(x + 0.5), height * centred(y / height + 0.5))
    border = 0.5 - np.minimum(near, far)
    return 0.7 + (_step(border - 0.08, blur) - 0.7) * _kept(blur)


def _hexagon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), 0.5 * np.abs(x) + 0.8660254 * np.abs(y))


def _bands(position: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """Return +1 and -1 in turns, twice for each unit, with slopes as wide as the blur."""
    return clamp((0.25 - np.abs(centred(position))) / np.maximum(blur, 0.04), -1.0, 1.0) * _kept(blur)


def _step(signed: np.ndarray, blur: np.ndarray) -> np.ndarray:
    return clamp(0.5 + 0.5 * signed / np.maximum(blur, 0.04))


def _kept(blur: np.ndarray) -> np.ndarray:
    """Return how much of a pattern's contrast is left where a pixel covers `blur` of a repeat."""
    return clamp(1.3 - 2.5 * blur)
