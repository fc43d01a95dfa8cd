"""Two training processes."""

import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from forked import ranks_of_two, start

from var_toolkit.processes import team_of_this_process
from var_toolkit.training import loop
from var_toolkit.training.loop import train
from var_toolkit.training.recipe import Recipe

PATIENCE = 300  # seconds, of a run


class Planned(NamedTuple):
    """A run of several in the same processes, which may be asked to stop after a step, or not to show images."""

    recipe: Recipe
    out: Path
    stop: bool = False
    look: bool = True


def train_in_two(recipe: Recipe, out: Path, cache: Path, said: Path) -> None:
    """Train as two processes of torchrun would; AssertionError with what they said if one of them fails."""
    _in_two(said, train, recipe, out, cache_dir=cache, device="cpu")


def train_each_in_two(runs: Sequence[Planned], cache: Path, said: Path) -> None:
    """Train recipes one after another in the same two processes; what a run that fails says is in `failure`."""
    _in_two(said, _train_each, list(runs), cache, patience=PATIENCE * len(runs))


def failure(out: Path) -> Path:
    """What a run that failed said."""
    return out.with_name(f"{out.name}-FAILED")


def _train_each(runs: Sequence[Planned], cache: Path) -> None:
    with team_of_this_process("cpu") as team:
        loop.team_of_this_process = lambda device: nullcontext(team)
        look = loop._Run._look
        for run in runs:
            loop._Run._look = look if run.look else _look_away  # type: ignore[method-assign]
            asked = Event()
            if run.stop:
                asked.set()
            loop._stop_signals = partial(nullcontext, asked)
            try:
                train(run.recipe, run.out, cache_dir=cache, device="cpu")
            except loop.TrainingStoppedError:
                continue
            except Exception:
                failure(run.out).write_text(traceback.format_exc())


def _look_away(*arguments: Any, **keywords: Any) -> None:
    """Validate nothing, show nothing."""


def _in_two(said: Path, act: Callable[..., Any], *arguments: Any, patience: float = PATIENCE, **keywords: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [said / f"said-{rank}" for rank in range(2)]
    both = [
        start(act, *arguments, environment=rank, said=file, **keywords)
        for rank, file in zip(ranks_of_two(port), files, strict=True)
    ]
    ends = time.monotonic() + patience
    try:
        while any(process.is_alive() for process in both) and time.monotonic() < ends:
            if any(process.exitcode for process in both):
                ends = min(ends, time.monotonic() + 10)  # the other one waits for it, or says why it ends as well
            both[0].join(0.1)
            both[1].join(0.1)
    finally:
        for process in both:
            process.kill()
            process.join()
    codes = [process.exitcode for process in both]
    assert codes == [0, 0], "\n".join([str(codes), *(path.read_text()[-9000:] for path in files)])
