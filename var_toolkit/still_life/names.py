"""The names and numbers of the 1000 classes: label = 100 * solid + 10 * colour + ground."""

from __future__ import annotations

from var_toolkit.still_life.grounds import grounds
from var_toolkit.still_life.ray_tracing import colours
from var_toolkit.still_life.solids import shapes

SOLIDS: tuple[str, ...] = tuple(shapes())
COLOURS: tuple[str, ...] = tuple(colours())
GROUNDS: tuple[str, ...] = tuple(grounds())
CLASSES = len(SOLIDS) * len(COLOURS) * len(GROUNDS)


def class_name(label: int) -> str:
    """Return the name of a class, such as "red cylinder on checks". ValueError for an unknown label."""
    solid, colour, ground = parts(label)
    return f"{COLOURS[colour]} {SOLIDS[solid]} on {GROUNDS[ground]}"


def label_of(solid: int | str, colour: int | str, ground: int | str) -> int:
    """Return the label of a solid, a colour and a ground, each a number or a name. ValueError for an unknown one."""
    found = (_number("solid", solid, SOLIDS), _number("colour", colour, COLOURS), _number("ground", ground, GROUNDS))
    return 100 * found[0] + 10 * found[1] + found[2]


def parts(label: int) -> tuple[int, int, int]:
    """Return the numbers of a label's solid, colour and ground. ValueError for an unknown label."""
    if not 0 <= label < CLASSES:
        raise ValueError(f"label {label} must be from 0 to {CLASSES - 1}")
    return label // 100, label // 10 % 10, label % 10


def _number(kind: str, value: int | str, names: tuple[str, ...]) -> int:
    if value in names:
        return names.index(value)
    if isinstance(value, str) or not 0 <= value < len(names):
        raise ValueError(f"{kind} {value!r} must be one of {', '.join(names)}, or from 0 to {len(names) - 1}")
    return value
