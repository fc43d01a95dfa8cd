"""Progress of long work on standard error: a bar on a terminal; in a log file (SLURM, CI) a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

FIRST, GROWTH, LONGEST = 5.0, 1.5, 600.0  # seconds before the first line, growth of the gaps, the longest gap


class Progress:
    """Counts up to `total`; a context manager.

    Args:
        total: how many there are.
        unit: what is counted, in the plural.
        what: the work, in front of the counts.
        done: how many an earlier run did already.
        active: False tells nothing, as in all processes but the first.
        leave: whether the finished bar stays on the terminal.
    """

    def __init__(
        self, total: int, unit: str, *, what: str = "", done: int = 0, active: bool = True, leave: bool = True
    ) -> None:
        self.total, self.unit, self.what, self.note, self.active = total, unit, what, "", active
        self.n = self.first = done
        self.began = self.told = time.monotonic()
        self.gap = FIRST
        self.bar: tqdm[Any] | None = None
        if active and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, unit=f" {unit}", desc=what or None, leave=leave)

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.n += count
        if self.bar is not None:
            self.bar.update(count)
        elif self.active and self.n < self.total and time.monotonic() - self.told >= self.gap:
            self._tell()

    def describe(self, what: str) -> None:
        """Change what is said in front of the counts."""
        self.what = what
        if self.bar is not None:
            self.bar.set_description(what)

    def remark(self, note: str) -> None:
        """Change what is said behind the counts."""
        self.note = note
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)

    def _tell(self) -> None:
        self.told = time.monotonic()
        self.gap = min(self.gap * GROWTH, LONGEST)
        print(self.line(self.told - self.began), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """Count, total, rate and remaining time, after so many seconds of this run."""
        rate = (self.n - self.first) / seconds if seconds > 0 else 0.0
        left = tqdm.format_interval((self.total - self.n) / rate) if rate else "?"
        parts = [f"{self.n:,} of {self.total:,} {self.unit}", f"{rate:.3g} a second", f"{left} left"]
        return (f"{self.what}: " if self.what else "") + ", ".join([*parts, *filter(None, [self.note])])

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
