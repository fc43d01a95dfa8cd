"""The rows of `vargen bench peers`, and the checkouts that they need: what is checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """A comparison: a model, images at once, and a precision.

    It is that of both, but "best" is the fastest of each, and in "int8" and "float8", which no published code has,
    that code has its fastest.
    """

    model: str
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        """The name of its row."""
        return f"{self.model}-batch-{self.batch}-{self.dtype}"


@dataclass(frozen=True)
class Code:
    """Published code: where it is, which file tells it from others, and the rows that it is compared in."""

    name: str
    commit: str
    file: str
    peers: tuple[Peer, ...]
    owner: str = "FoundationVision"
    large: tuple[Peer, ...] = ()  # for a GPU: only where they are chosen by name

    def __str__(self) -> str:
        address = f"https://github.com/{self.owner}/{self.name}"
        return f"git clone {address} && git -C {self.name} checkout {self.commit}"


def _rows(model: str, batches: tuple[int, ...], dtypes: tuple[str, ...]) -> tuple[Peer, ...]:
    return tuple(Peer(model, batch, dtype) for batch, dtype in product(batches, dtypes))


DTYPES = ("float32", "bfloat16", "int8", "best")
FAST = ("best", "int8", "float8")
LARGE = (
    *_rows("var-d16", (1, 8), ("float8",)), *_rows("var-d16", (64,), FAST), *_rows("var-d30", (1, 8, 64), FAST),
)  # fmt: skip
CODES = (
    Code(
        "VAR", "78b95394fc5896192e3a003e4b295f8ea743c48f", "models/var.py", _rows("var-d16", (1, 8), DTYPES),
        large=LARGE,
    ),
    Code(
        "LlamaGen", "ce98ec41803a74a90ce68c40ababa9eaeffeb4ec", "autoregressive/models/gpt.py",
        _rows("llamagen-b", (1, 8), DTYPES),
    ),
    Code(
        "Infinity", "4c27bbb54a9918847a2fe56b0fbe31a8523791a1", "infinity/models/infinity.py",
        _rows("infinity-2b", (1,), ("bfloat16",)),
    ),
    Code(
        "mar", "fe470ac24afbee924668d8c5c83e9fec60af3a73", "models/mar.py",
        _rows("mar-base", (1, 4), ("float32", "bfloat16", "best")), "LTH14",
    ),
)  # fmt: skip


def chosen(code: Code, patterns: list[str] | None) -> list[Peer]:
    """The comparisons whose names match one of some patterns; without patterns all but the large ones.

    ValueError if there are none.
    """
    known = (*code.peers, *code.large) if patterns else code.peers
    found = [peer for peer in known if not patterns or any(fnmatchcase(peer.name, each) for each in patterns)]
    if not found:
        raise ValueError(
            f"--only {' '.join(patterns or [])} matches no row of {code.name}; rows are "
            f"{', '.join(peer.name for peer in known)}"
        )
    return found


def code_in(folder: Path | None) -> Code:
    """The published code that a folder holds. ValueError of one line that says how to get it."""
    for code in CODES:
        if folder is not None and (folder / code.file).is_file():
            return code
    files = ", ".join(code.file for code in CODES)
    what = "--published is missing" if folder is None else f"--published {folder} holds none of {files}"
    raise ValueError(f"{what}; give a checkout: {', or '.join(map(str, CODES))}")
