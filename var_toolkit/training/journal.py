"""What a run tells: JSON lines, TensorBoard where it is installed, and sheets of pictures."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Journal:
    """Writes `log.jsonl`, `samples/` and `tensorboard/`; in all processes but the first it writes nothing."""

    def __init__(self, out: Path, *, active: bool) -> None:
        self.out, self.active = out, active
        self.board: Any = None
        if active:
            (out / "samples").mkdir(parents=True, exist_ok=True)
            self.board = _tensorboard(out / "tensorboard")

    def rewind(self, step: int, header: dict[str, object]) -> None:
        """Drops what a killed run logged after its checkpoint; the first line of the log describes the run."""
        if not self.active:
            return
        path = self.out / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines[1:] if _step(line) <= step]
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text("\n".join([json.dumps(header), *kept]) + "\n", encoding="utf-8")
        os.replace(unfinished, path)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        if not self.active:
            return
        short = {key: float(f"{value:.6g}") for key, value in numbers.items()}
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": step, **short}) + "\n")
        if self.board is not None:
            for key, value in numbers.items():
                self.board.add_scalar(key, value, step)

    def show(self, step: int, pictures: Tensor) -> None:
        if self.active:
            write_sheet(self.out / "samples" / f"{step:07d}.png", pictures)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def write_sheet(path: Path, pictures: Tensor, columns: int = 8) -> None:
    """A PNG of pictures in [-1, 1], (B, 3, h, w), eight to a row."""
    from PIL import Image

    bytes_BChw = pictures.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    rows = [torch.cat(list(row), dim=2) for row in bytes_BChw.split(columns)]
    rows = [torch.nn.functional.pad(row, (0, rows[0].shape[2] - row.shape[2])) for row in rows]
    unfinished = path.with_suffix(".unfinished")
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(unfinished, format="PNG")
    os.replace(unfinished, path)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")  # a line that a kill cut short


def _tensorboard(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory))
