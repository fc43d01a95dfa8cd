"""The checks of numbers that users set, against the ranges of their settings."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from var_toolkit.setting_table import SETTINGS, Range, count
from var_toolkit.strict_fields import shown

RANGES = {name: setting.range for name, setting in SETTINGS.items() if setting.range is not None} | {
    "batch_size": count(1),
    "seed": Range(0, 2**63 - 1, True),
}


def checked(name: str, value: Any, called: str | None = None, *, low: float | None = None) -> Any:
    """The value as a Python number; ValueError in one line if it is not a number or not in the range of `name`.

    NumPy numbers are accepted, booleans are not. `called` is the name in the error, `low` a higher lower limit.
    """
    span = RANGES[name] if low is None else RANGES[name]._replace(low=low, meaning="")
    number = isinstance(value, Integral if span.whole else Real) and not isinstance(value, bool)
    if not number or not span.low <= value <= span.high:
        raise ValueError(f"{called or name} is {shown(value)}; it must be {span}")
    return int(value) if span.whole else float(value)


def flag(name: str, value: Any) -> bool:
    """The value as True or False; ValueError if it is neither. NumPy booleans are accepted."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"{name} is {shown(value)}; it must be True or False")
    return bool(value)
