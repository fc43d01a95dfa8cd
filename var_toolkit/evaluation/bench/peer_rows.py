"""The rows of `vargen bench peers`, and the checkout that they need: what is checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

REPOSITORY, COMMIT = "https://github.com/FoundationVision/VAR", "78b95394fc5896192e3a003e4b295f8ea743c48f"


@dataclass(frozen=True)
class Peer:
    """A comparison: VAR of a depth, images at once, and the precision of both; "best" is the fastest of each there."""

    depth: int
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        """The name of its row."""
        return f"var-d{self.depth}-batch-{self.batch}-{self.dtype}"


PEERS = tuple(Peer(16, batch, dtype) for batch in (1, 8) for dtype in ("float32", "bfloat16", "best"))


def chosen(patterns: list[str] | None) -> list[Peer]:
    """The comparisons whose names match one of some patterns; all without patterns. ValueError if there are none."""
    found = [peer for peer in PEERS if not patterns or any(fnmatchcase(peer.name, each) for each in patterns)]
    if not found:
        raise ValueError(
            f"--only {' '.join(patterns or [])} matches no row; rows are {', '.join(p.name for p in PEERS)}"
        )
    return found


def require_checkout(folder: Path | None) -> Path:
    """The folder if it holds the published code. ValueError of one line that says how to get it."""
    if folder is None or not (folder / "models" / "var.py").is_file():
        what = "--published is missing" if folder is None else f"--published {folder} holds no models/var.py"
        raise ValueError(f"{what}; give a checkout: git clone {REPOSITORY} && git -C VAR checkout {COMMIT}")
    return folder.resolve()
