"""The checks of numbers that users set, against the ranges of their settings."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from var_toolkit.setting_table import SETTINGS, Range, count

RANGES = {name: setting.range for name, setting in SETTINGS.items() if setting.range is not None} | {
    "guidance": Range(0, 1e4, meaning="off"),  # of a step, however users count it
    "batch_size": count(1),
    "seed": Range(0, 2**63 - 1, True),
}


def checked(name: str, value: Any, shown: str | None = None, *, low: float | None = None) -> Any:
    """The value as a Python number; ValueError in one line if it is not a number or not in the range of `name`.

    NumPy numbers are accepted, booleans are not. `shown` is the name in the error, `low` a higher lower limit.
    """
    span = RANGES[name] if low is None else RANGES[name]._replace(low=low, meaning="")
    number = isinstance(value, Integral if span.whole else Real) and not isinstance(value, bool)
    if not number or not span.low <= value <= span.high:
        raise ValueError(f"{shown or name} is {brief(value)}; it must be {span}")
    return int(value) if span.whole else float(value)


def flag(name: str, value: Any) -> bool:
    """The value as True or False; ValueError if it is neither. NumPy booleans are accepted."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"{name} is {brief(value)}; it must be True or False")
    return bool(value)


def brief(value: Any, length: int = 60) -> str:
    """The repr of a value in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
