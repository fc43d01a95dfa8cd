"""The allowed ranges of numeric settings: one table, against which every settings class checks."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, NamedTuple

COUNT = 2**31 - 1  # an upper limit of counts, far above any real number of tokens, codes or images


class Range(NamedTuple):
    """From `low` to `high`, both included."""

    low: float
    high: float
    whole: bool = False
    meaning: str = ""  # of the lowest value

    def __str__(self) -> str:
        ends = [f"{end}" if self.whole else f"{end:g}" for end in (self.low, self.high)]
        meaning = f" ({self.meaning})" if self.meaning else ""
        return f"a {'whole ' if self.whole else ''}number from {ends[0]}{meaning} to {ends[1]}"


# Limits without a mathematical reason keep float32 finite; published settings are far inside them.
RANGES = {
    "guidance": Range(0, 1e4, meaning="off"),
    "guidance_scale": Range(1, 1e4, meaning="off"),
    "top_k": Range(0, COUNT, True, "off"),
    "top_p": Range(0, 1, meaning="off"),
    "temperature": Range(1e-6, 1e6),
    "guided_tokens": Range(0, COUNT, True),
    "steps": Range(1, 10_000, True),
    "guidance_interval": Range(0, 1),
    "subnet": Range(2, COUNT, True),
    "full_scales": Range(1, COUNT, True),
    "draft_length": Range(1, COUNT, True, "plain decoding"),
    "draft_confidence": Range(0, 1, meaning="off"),
    "exit_layers": Range(1, COUNT, True),
    "delta": Range(0, 1),
    "factor": Range(1, 1e6),
    "neighbours": Range(1, COUNT, True),
    "group": Range(1, COUNT, True),
    "boost": Range(1, 1e6),
    "decay": Range(0, 1e6),
    "batch_size": Range(1, COUNT, True),
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
