"""The record of a run: JSON lines and grids of images, which a tracker may show as well."""

import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var_toolkit.files import sweep, write_whole
from var_toolkit.images import to_uint8
from var_toolkit.training.trackers import Tracker


class Journal:
    """Writes `log.jsonl` and `samples/`, and hands both on to a tracker; all processes but the first write nothing."""

    def __init__(self, out: Path, *, active: bool) -> None:
        self.out, self.active = out, active
        self.tracker: Tracker | None = None
        self.begun = False
        self.header: dict[str, object] | None = None

    def begin(self, header: dict[str, object]) -> None:
        """Begin a new log. Its first line, `header`, is written together with the first numbers."""
        self.header = header

    def rewind(self, step: int, header: dict[str, object], note: str | None = None) -> None:
        """Drops what a killed run logged after its checkpoint, and adds a note; lines before stay as they are."""
        if not self.active:
            return
        sweep(self.out / "samples")  # what the killed run was writing
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        kept = [line for line in lines if _is_header(line) or _step(line) <= step]
        if not kept or not _is_header(kept[0]):
            kept.insert(0, json.dumps(header))
        added = json.dumps({"step": step, "note": note})
        if note is not None and added not in kept:
            kept.append(added)
        self._replace(kept)

    @property
    def _path(self) -> Path:
        return self.out / "log.jsonl"

    def _replace(self, lines: list[str]) -> None:
        write_whole(self._path, lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8"))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        if not self.active:
            return
        self._open()
        # JSON has no NaN and no infinity.
        short = {key: float(f"{value:.6g}") if math.isfinite(value) else None for key, value in numbers.items()}
        self._append({"step": step, **short})
        finite = {key: value for key, value in short.items() if value is not None}
        self._track(lambda tracker: tracker.scalars(step, finite))

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:  # add the path, which the error of a full disk lacks
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _open(self) -> None:
        if self.begun:
            return
        if self.header is not None:
            self._replace([json.dumps(self.header)])
        self.begun = True

    def note_damaged(self, step: int, names: list[str]) -> None:
        """Logs damaged images that were replaced, each once in a run, however often it is resumed."""
        if not self.active:
            return
        self._open()
        fresh = sorted(set(names) - set(self.damaged()))
        if fresh:
            self._append({"step": step, "damaged": fresh})

    def damaged(self) -> list[str]:
        """The damaged images that the log names."""
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return [name for line in lines for name in _fields(line).get("damaged", [])]

    def last_numbers(self) -> dict[str, float]:
        """The last value of every logged number."""
        found: dict[str, float] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            found |= {key: value for key, value in _fields(line).items() if isinstance(value, int | float)}
        return {key: value for key, value in found.items() if key != "step"}

    def show(self, step: int, images: Tensor) -> None:
        if not self.active:
            return
        path = self.out / "samples" / f"{step:07d}.png"
        write_sheet(path, images)
        self._track(lambda tracker: tracker.image(step, path))

    def close(self) -> None:
        self._track(lambda tracker: tracker.close())
        self.tracker = None

    def _track(self, tell: Callable[[Tracker], None]) -> None:
        """Hand something on to the tracker. Hours of training do not end because a service cannot be reached."""
        if self.tracker is None:
            return
        try:
            tell(self.tracker)
        except Exception as error:  # whatever a library raises
            failed, self.tracker = self.tracker, None
            with suppress(Exception):
                failed.close()  # it may hold what came before
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"tracking ends here, training goes on: {reason}; {self._path} has all numbers", file=sys.stderr)


def write_sheet(path: Path, images: Tensor, columns: int = 8) -> None:
    """A PNG of images in [-1, 1], (B, 3, h, w), eight to a row."""
    from PIL import Image

    bytes_BChw = to_uint8((images.detach().float() + 1) / 2).cpu()
    rows = [torch.cat(list(row), dim=2) for row in bytes_BChw.split(columns)]
    rows = [torch.nn.functional.pad(row, (0, rows[0].shape[2] - row.shape[2])) for row in rows]
    sheet = Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy())
    write_whole(path, lambda temporary: sheet.save(temporary, format="PNG"))


def _fields(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # a line that a kill cut short
        return {}
    return found if isinstance(found, dict) else {}


def _is_header(line: str) -> bool:
    return "recipe" in _fields(line)


def _step(line: str) -> float:
    return float(_fields(line).get("step", math.inf))
