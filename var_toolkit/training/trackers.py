"""Trackers show a run while it trains: TensorBoard, Weights & Biases, trackio. Each is imported when it is used."""

import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from var_toolkit.files import write_whole

TRACKERS = {"tensorboard": "'var-toolkit[track]'", "wandb": "wandb", "trackio": "trackio"}  # and what pip installs
PROJECT = "var_toolkit"  # unless WANDB_PROJECT or TRACKIO_PROJECT names another


class Tracker(Protocol):
    """What a journal hands on."""

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Finite numbers of a step by name."""

    def image(self, step: int, path: Path) -> None:
        """A grid of images of a step, a PNG."""

    def close(self) -> None:
        """Write what is pending."""


def require_tracker(kind: str) -> None:
    """ValueError of one line for a tracker that is unknown or not installed."""
    if kind not in TRACKERS:
        raise ValueError(f"track is {kind!r}; allowed: {', '.join(TRACKERS)}")
    if find_spec(kind) is None:
        raise ValueError(f"track is {kind}, which is not installed: pip install {TRACKERS[kind]}")


def open_tracker(kind: str, out: Path, config: Mapping[str, Any], step: int) -> Tracker:
    """The tracker of the run in a folder, which continues what it tracked before after a step.

    ValueError of one line if the library cannot begin.
    """
    require_tracker(kind)
    try:
        return _TensorBoard(out, step) if kind == "tensorboard" else _Service(kind, out, config)
    except Exception as error:  # whatever a library raises: no account, no network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"track is {kind}, which cannot begin: {reason}") from None


class _TensorBoard:
    """Event files in `tensorboard/`; those of steps that a run repeats are replaced."""

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, path: Path) -> None:
        import numpy as np

        from var_toolkit.images import read_image

        self.writer.add_image("samples", np.asarray(read_image(path)), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _Service:
    """Weights & Biases or trackio, whose calls are the same. `tracked.txt` in the folder has the name of the run."""

    def __init__(self, kind: str, out: Path, config: Mapping[str, Any]) -> None:
        self.module: Any = import_module(kind)
        known = out / "tracked.txt"
        fresh = f"{out.resolve().name}-{secrets.token_hex(4)}"
        name = known.read_text(encoding="utf-8").strip() if known.is_file() else fresh
        own = {"id": name, "dir": str(out)} if kind == "wandb" else {}
        project = os.environ.get(f"{kind.upper()}_PROJECT", PROJECT)
        self.run: Any = self.module.init(project=project, name=name, config=dict(config), resume="allow", **own)
        if name == fresh:
            write_whole(known, lambda path: path.write_text(f"{name}\n", encoding="utf-8"))
        if kind == "wandb":
            # Its own count never goes back, as a run does that continues from an earlier checkpoint.
            self.run.define_metric("*", step_metric="step")
            self.log = lambda step, values: self.run.log({"step": step, **values})
        else:
            self.log = lambda step, values: self.run.log(values, step=step)

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        self.log(step, dict(numbers))

    def image(self, step: int, path: Path) -> None:
        self.log(step, {"samples": self.module.Image(str(path))})

    def close(self) -> None:
        self.run.finish()
