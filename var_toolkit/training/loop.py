"""The training loop: one for every objective, alone or under torchrun.

Every step is a function of recipe, seed, step and rank, so a run that was killed continues from its checkpoint and, on
the CPU, ends with the same bits as one that was not.
"""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from var_toolkit.data.folder_listing import told
from var_toolkit.files import check_writable, made, written_whole
from var_toolkit.formats.facts import FACTS
from var_toolkit.images import ImageFileError
from var_toolkit.locks import held
from var_toolkit.models.layers.lora import require_peft
from var_toolkit.processes import Team, team_of_this_process
from var_toolkit.progress import Progress
from var_toolkit.training import parallel
from var_toolkit.training.adapters import TrainedAdapter
from var_toolkit.training.batches import stream
from var_toolkit.training.checkpoint import as_json, read_checkpoint, write_checkpoint
from var_toolkit.training.damaged_images import read_together
from var_toolkit.training.delivery import note_training
from var_toolkit.training.draws import derived
from var_toolkit.training.journal import Journal
from var_toolkit.training.objectives import Objective, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective_class
from var_toolkit.training.state import TrainingState
from var_toolkit.training.trackers import open_tracker, require_tracker


class TrainingStoppedError(Exception):
    """A signal ended the run early; its checkpoint is on disk."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    cache_dir: Path,
    device: str = "auto",
    skip_damaged: bool = False,
    track: str | None = None,
) -> Path:
    """Train as the recipe says, or continue the run in `out`; returns the directory of what it delivers.

    That is a model directory for a backbone, and the network alone for anything else. A run that is finished already
    says so and delivers again.

    Writes `checkpoint.pt`, `log.jsonl`, `samples/` and at the end `final/` under `out`. `cache_dir` keeps rendered
    images and tokens for later runs. SIGINT and SIGTERM write a checkpoint and raise `TrainingStoppedError`.
    ValueError if the recipe, the data or `out` does not fit; then nothing is left in `out`. FloatingPointError if the
    loss is no longer finite.

    `track` names a tracker that also shows the log and the images of `samples/` (`trackers.TRACKERS`); a run that goes
    on continues in the same tracked run.

    An image that cannot be read raises `ImageFileError`, a ValueError that names it, after a checkpoint. With
    `skip_damaged` the next image of its class takes its place, and the log names it.
    """
    with team_of_this_process(device) as team, ExitStack() as stack:
        require_split(recipe, team.size)
        if recipe.adapter is not None:
            require_peft()
        if track is not None:
            require_tracker(track)
        _check_out(out)
        team.led(lambda: stack.enter_context(_held(out)))
        saved = read_checkpoint(out / "checkpoint.pt", recipe)
        torch.manual_seed(derived(recipe.seed, "initialisation"))
        objective = objective_class(recipe.objective, recipe.family)(recipe, Workplace(cache_dir, team, skip_damaged))
        run = _Run(recipe, out, team, objective)
        stack.callback(run.journal.close)
        run.start(saved)
        if track is not None and run.first < run.steps:
            team.led(partial(run.track, track))
        with _stop_signals() as asked:
            run.steps_to_the_end(asked)
        return run.finish()


def require_split(recipe: Recipe, processes: int) -> None:
    """ValueError if a batch cannot be split over some processes, and there into micro-batches."""
    if recipe.batch_size % (processes * recipe.accumulate):
        parts = f" times accumulate, {recipe.accumulate}" if recipe.accumulate > 1 else ""
        raise ValueError(
            f"batch_size is {recipe.batch_size}; it must be a multiple of the {processes} processes{parts}"
        )


def _check_out(out: Path) -> None:
    """Refuse, before any work, a folder that cannot be written to, or in which the run would destroy other files."""
    check_writable(out)
    for name in ("checkpoint.pt", "log.jsonl"):
        if (out / name).is_dir():
            raise ValueError(f"{out / name} is a folder; choose another folder for the run with --out")
    for name in ("samples", "final"):
        if (out / name).exists() and not (out / name).is_dir():
            raise ValueError(f"{out / name} is a file; choose another folder for the run with --out")
    final = out / "final"
    if final.is_dir() and any(final.iterdir()) and not (final / FACTS).exists():
        raise ValueError(f"{final} holds files that no run wrote; choose another folder for the run with --out")


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder, which is made if it is missing."""
    with made(out), held(out, f"another run is training into {out}; wait until it ends, or choose another --out"):
        yield


class _Window:
    """Sums since the last line of the log; tensors stay on the device until then."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        self.sums: dict[str, Tensor] = dict(saved["sums"]) if saved else {}
        self.counts: dict[str, int] = dict(saved["counts"]) if saved else {}
        self.steps = 0  # of this process: with the time they took, the speed
        self.began = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {key: value.cpu() for key, value in self.sums.items()}, "counts": self.counts}

    def add(self, terms: dict[str, Tensor]) -> None:
        for key, value in terms.items():
            self.sums[key] = self.sums[key].to(value.device) + value if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1
        self.steps += 1

    def means(self) -> dict[str, float]:
        return {key: float(value) / self.counts[key] for key, value in self.sums.items()}

    def pause(self, seconds: float) -> None:
        """Leave time that went into looking at results out of the speed."""
        self.began += seconds

    def steps_per_second(self) -> float:
        return self.steps / (time.perf_counter() - self.began)


class _Run:
    def __init__(self, recipe: Recipe, out: Path, team: Team, objective: Objective) -> None:
        if len(objective.source) < recipe.batch_size:
            raise ValueError(f"batch_size is {recipe.batch_size}, but there are only {len(objective.source)} images")
        self.recipe, self.out, self.team, self.objective = recipe, out, team, objective
        self.adapter = TrainedAdapter(recipe, objective) if recipe.adapter is not None else None
        self.steps = recipe.total_steps(len(objective.source))
        self.state = TrainingState(recipe, objective, team, self.steps)
        self.journal = Journal(out, active=team.leads)
        self.first = 0
        self.checkpointed = time.perf_counter()
        self.window = _Window()

    def start(self, saved: dict[str, Any] | None) -> None:
        header: dict[str, object] = {"note": self.objective.log_note, "recipe": as_json(self.recipe)}
        if saved is None:
            self.journal.begin(header)
            return
        self.state.load_state_dict(saved)
        self.first = saved["step"]
        self.window = _Window(saved.get("window"))
        self.journal.rewind(self.first, header, _changed_length(json.loads(saved["recipe"]), self.recipe))
        if self.first >= self.steps and self.team.leads:
            tqdm.write(f"{self.out}: finished already, after step {self.first}; increase steps or epochs to continue")

    def track(self, kind: str) -> None:
        """Let a tracker show the rest of the run."""
        self.journal.tracker = open_tracker(kind, self.out, json.loads(as_json(self.recipe)), self.first)

    def steps_to_the_end(self, asked: threading.Event) -> None:
        todo, done = range(self.first, self.steps), self.first
        self.window.began = time.perf_counter()
        with Progress(self.steps, "steps", what="training", done=self.first, active=self.team.leads) as bar:
            steps = stream(self.objective.source, self.recipe, self.team, todo)
            try:
                for draws, batch in read_together(steps, self.team, self.journal.note_damaged):
                    self.window.add(self.state.train_step(batch, draws))
                    upkeep = self.objective.after_step(batch, draws)
                    bar.update()
                    done = draws.step + 1
                    if upkeep:
                        self.journal.write(done, upkeep)
                    self._report(done, bar)
                    self._save_if_due(done, asked.is_set())
            except ImageFileError:
                self._save_before_leaving(done)
                raise

    def _save_before_leaving(self, done: int) -> None:
        """Writes a checkpoint for the same command to continue from, once the image is repaired or removed."""
        if done > self.first:
            self._refuse_broken(done, self.team.mean(self.window.means()))
            self._checkpoint(done)
        self.journal.close()

    def _report(self, done: int, bar: Progress) -> None:
        if self._due(done, self.recipe.log_every):
            numbers = self._log(done)
            bar.remark(f"loss {numbers['loss']:.4g}")
        validate, show = self._due(done, self.recipe.validate_every), self._due(done, self.recipe.sample_every)
        if validate or show:
            self._look(done, validate=validate, show=show)

    def _save_if_due(self, done: int, asked: bool) -> None:
        """Writes a checkpoint when one is due or after a signal, which also ends the run."""
        # Processes must agree, which costs a round of messages: together they decide only every so many steps.
        if done == self.steps or (self.team.size > 1 and done % self.recipe.log_every):
            return
        stop = self.team.any(asked)
        overdue = time.perf_counter() - self.checkpointed > 60 * self.recipe.checkpoint_minutes
        if stop or self.team.any(overdue):
            self._refuse_broken(done, self.team.mean(self.window.means()))
            self._checkpoint(done)
        if stop:
            self.journal.close()
            raise TrainingStoppedError(f"stopped after step {done} of {self.steps}; the same command continues")

    def _due(self, done: int, every: int) -> bool:
        return done % every == 0 or done == self.steps

    def _log(self, done: int) -> dict[str, float]:
        numbers = self.team.mean(self.window.means())
        self._refuse_broken(done, numbers)
        numbers["lr"] = self.state.learning_rate(done - 1)
        numbers["images_per_second"] = self.window.steps_per_second() * self.recipe.batch_size
        self.journal.write(done, numbers)
        self.window = _Window()
        return numbers

    def _refuse_broken(self, done: int, numbers: dict[str, float]) -> None:
        """A run must be able to resume from its checkpoint, so weights that are not finite are never written."""
        for key, value in numbers.items():
            # fp16's scaler skips steps whose gradients overflow; without it they are in the weights already.
            decides = key == "loss" or (key.startswith("grad_norm") and self.recipe.precision != "fp16")
            if decides and not math.isfinite(value):
                raise FloatingPointError(
                    f"{key} is {value} near step {done}; lower the learning rate or use precision: fp32 "
                    "(the checkpoint is of an earlier step)"
                )

    def _look(self, done: int, *, validate: bool, show: bool) -> None:
        began = time.perf_counter()
        with self._delivered() as network, torch.no_grad(), self.state.autocast():
            if validate:
                numbers = self.team.mean(self.objective.validate(network))
                self.journal.write(done, {f"validation_{key}": value for key, value in numbers.items()})
            images = self.objective.preview(network) if show else None
        if images is not None:
            self.journal.show(done, images)
        self.window.pause(time.perf_counter() - began)

    @contextmanager
    def _delivered(self) -> Iterator[nn.Module]:
        """What would be delivered now, in evaluation mode; of shards a whole copy, for as long as it is looked at."""
        network = self.state.delivered
        if parallel.is_sharded(network):
            with torch.device("meta"):
                whole = self._empty_network()
            parallel.fill_from_shards(whole, network)
            yield whole.eval()
            return
        was_training = network.training
        yield network.eval()
        network.train(was_training)

    def _empty_network(self) -> nn.Module:
        return self.adapter.empty_network() if self.adapter is not None else self.objective.empty_network()

    def _checkpoint(self, done: int) -> None:
        # Several processes write checkpoints right after a line of the log, when their windows are empty.
        content = {**self.state.state_dict(done), "window": self.window.state_dict()}
        self.team.led(lambda: write_checkpoint(self.out / "checkpoint.pt", content))
        self.checkpointed = time.perf_counter()

    def finish(self) -> Path:
        if self.first < self.steps:
            self._checkpoint(self.steps)
        final = self.out / "final"
        self._deliver(final)
        if self.team.leads and (names := self.journal.damaged()):
            print(told(names, "damaged image was", "damaged images were", "replaced"), file=sys.stderr)
        self.journal.close()
        return final

    def _deliver(self, final: Path) -> None:
        """A sharded network is gathered into an ordinary one, which the first process writes."""
        weights = parallel.network_state(self.state.delivered)
        self.team.led(lambda: self._write(weights, final))

    def _write(self, weights: dict[str, Any], final: Path) -> None:
        images, name = self.steps * self.recipe.batch_size, f"{self.out.resolve().name}/{final.name}"
        # What was delivered before is of the same run, perhaps after fewer steps.
        with written_whole(final, overwrite=True) as folder:
            if self.adapter is not None:
                self.adapter.save(weights, folder)
            else:
                network = self.objective.empty_network()
                network.load_state_dict(weights)
                self.objective.save(network.eval(), folder)
            note_training(folder, self.recipe, images, self.journal.last_numbers(), name)


def _changed_length(then: dict[str, Any], now: Recipe) -> str | None:
    """What the log says where a run goes on with another length; None if it has the same."""
    changes = [
        f"{name} changed from {then.get(name)} to {getattr(now, name)}"
        for name in ("steps", "epochs")
        if then.get(name) != getattr(now, name)
    ]
    return f"{' and '.join(changes)}; the schedule follows the new length from here" if changes else None


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a run can end after its step."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
