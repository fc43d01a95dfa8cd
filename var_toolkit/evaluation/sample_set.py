"""Draw a set of images for evaluation: many of every class, by any number of processes, resumable.

Image i of a set has the class `classes[i % len(classes)]` and the seed `seed + i`, so all classes are equally frequent
among the first images. Rounding depends on the shape of a batch and, on the CPU, on the number of threads. Therefore a
batch always consists of the same consecutive numbers and is drawn completely, whichever process draws it and whichever
of its images exist already; and a process on the CPU uses one thread. So every run gives an image the same bytes, on
one kind of machine with one version of torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from var_toolkit import __version__
from var_toolkit.conditions.class_names import ClassNames
from var_toolkit.core.bind import Run
from var_toolkit.devices import find_device, tell_slow_dtype
from var_toolkit.evaluation.adm_npz import check_name, write_images
from var_toolkit.evaluation.fingerprint import fingerprint
from var_toolkit.evaluation.image_files import IMAGE, SHARD, members, write_shard
from var_toolkit.evaluation.sample_folder import numbers_there, opened, write_settings
from var_toolkit.files import Writers, check_writable
from var_toolkit.guidance import counted
from var_toolkit.loading import load, skeleton
from var_toolkit.pipeline import Pipeline
from var_toolkit.precision import precision_of
from var_toolkit.processes import team_of_this_process
from var_toolkit.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from var_toolkit.guidance import counted
from var_toolkit.loading import Source

MOST_IMAGES = 10**9  # their numbers are listed in memory
OWN = "own"  # for the tokenizer, in the settings of a set


@dataclass(frozen=True)
class ImageList:
    """The images of a set, numbered 0 to count - 1."""

    classes: tuple[int, ...]  # ascending
    per_class: int = 50
    seed: int = 0
    batch_size: int = 8
    shards: int | None = None  # number of tar files; None for one file per image

    def __post_init__(self) -> None:
        for name in ("per_class", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.count > MOST_IMAGES:
            raise ValueError(
                f"per_class is {self.per_class}; with {len(self.classes)} classes it must be at most "
                f"{MOST_IMAGES // len(self.classes)}, for a set of {MOST_IMAGES:,} images"
            )
        if not 0 <= self.seed <= 2**63 - self.count:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**63 - {self.count}, the number of images")
        if self.shards is not None and not 1 <= self.shards <= self.batches:
            raise ValueError(f"shards is {self.shards}; it must be from 1 to {self.batches}, the number of batches")

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.classes) * self.per_class

    @property
    def batches(self) -> int:
        """The number of batches."""
        return -(-self.count // self.batch_size)

    def batch(self, index: int) -> range:
        """The numbers of the images in a batch."""
        return range(index * self.batch_size, min((index + 1) * self.batch_size, self.count))

    def label(self, number: int) -> int:
        """The class of an image."""
        return self.classes[number % len(self.classes)]

    def name(self, number: int) -> str:
        """The file name of an image, also inside its shard."""
        return f"{number:06d}_class-{self.label(number)}.png"

    @property
    def parts(self) -> int:
        """The number of units of work, each drawn by one process: shards, or batches."""
        return self.shards or self.batches

    def part(self, index: int) -> list[range]:
        """The batches of a unit of work, which are consecutive."""
        first, end = (i * self.batches // self.parts for i in (index, index + 1))
        return [self.batch(i) for i in range(first, end)]

    def shard(self, index: int) -> str:
        """The file name of a shard."""
        return f"shard-{index:05d}.tar"

    def numbers_in(self, name: str) -> range | None:
        """The numbers of the images in the file of this name; None if the name is not one of this set."""
        match = (SHARD if self.shards else IMAGE).fullmatch(name)
        index = int(match[1]) if match else -1
        if not 0 <= index < (self.shards or self.count):
            return None
        if not self.shards:
            return range(index, index + 1) if name == self.name(index) else None
        batches = self.part(index)
        return range(batches[0].start, batches[-1].stop) if name == self.shard(index) else None


@dataclass(frozen=True)
class Drawn:
    """A complete set, and what this run added to it."""

    folder: Path
    images: int
    added: int  # by all processes of this run
    seconds: float  # of drawing and writing them
    npz: Path | None
    leads: bool  # whether this is the first or the only process


def draw_set(
    model: Source,
    out: Path | str,
    *,
    tokenizer: str | Path | None = None,
    classes: str | Iterable[int | str] | None = None,
    per_class: int = 50,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str | torch.dtype = torch.float32,
    npz: Path | str | None = None,
    shards: int | None = None,
) -> Drawn:
    """Draw `per_class` images of every class into a flat folder of PNG files, or those that the folder lacks.

    Runs in one process, or in several started by torchrun, on one machine or on several that share the folder. On the
    CPU a process uses one thread (see above): start as many processes as there are cores.

    `classes` is a text such as "0-9,207" or an iterable of labels, None for all. `settings` are keywords of the
    pipeline's call. With `npz` the set is also packed for the ADM evaluator. With `shards` the images are written to
    that many tar files; a process that is killed then loses an unfinished shard, not only a batch. The number of
    existing images is printed on stderr. `tokenizer` replaces the model's own, as in `load`.
    ValueError for bad input before weights are read, and after that if the folder was started with other weights.
    """
    find_device(device)
    out, npz, chosen = Path(out), Path(npz) if npz is not None else None, dict(settings or {})
    shape = skeleton(model, tokenizer=tokenizer)
    wanted = ImageList(labels_of(classes, shape.class_names), per_class, seed, batch_size, shards)
    run = shape.bind(shape.plan(**chosen))
    check_name(npz)
    with team_of_this_process(device) as team, _one_thread(team.device), ExitStack() as held:
        precision = precision_of(dtype, team.device, shape.backbones)
        facts = _facts(model, tokenizer, run, wanted, team.device, precision.name)
        team.led(lambda: held.enter_context(_places(out, npz, facts, wanted)))
        there = numbers_there(out, wanted.numbers_in)  # by every process, before any of them adds to it
        own = range(team.rank, wanted.parts, team.size)
        lacking = [i for i in own if not all(there.issuperset(numbers) for numbers in wanted.part(i))]
        if team.leads:
            _tell(out, len(there), wanted.count)
            tell_slow_dtype(team.device, precision.wide)
        pipe = None
        if lacking or team.leads:
            pipe = load(model, tokenizer=tokenizer, device=str(team.device), dtype=precision.name)
        team.led(
            lambda: write_settings(out, {**facts, "weights": run_fingerprint(_run(cast(Pipeline, pipe), chosen))}),
        )
        began = time.perf_counter()
        if pipe is not None:
            active = team.leads and bool(lacking)
            with Progress(wanted.count, "images", what="drawing", done=len(there), active=active) as bar:
                _draw(pipe.pack(), lacking, wanted, out, chosen, bar)
        team.barrier()
        seconds = time.perf_counter() - began
        if npz is not None and team.leads:
            _pack(npz, out, wanted)
    return Drawn(out, wanted.count, wanted.count - len(there), seconds, npz, team.leads)


def labels_of(classes: str | Iterable[int | str] | None, names: ClassNames) -> tuple[int, ...]:
    """The labels that a text such as "0-9,207,red cube on sand" or an iterable means, ascending, each once."""
    if classes is None:
        return tuple(range(len(names)))
    found = names.resolve_all(classes) if isinstance(classes, str) else [names.resolve(label) for label in classes]
    if not found:
        raise ValueError("classes is empty; give at least one class")
    return tuple(sorted(set(found)))


def spelled(labels: Sequence[int]) -> str:
    """Ascending labels as `labels_of` reads them: "0-9,207"."""
    starts = [i for i, label in enumerate(labels) if i == 0 or label != labels[i - 1] + 1]
    spans = [(labels[i], labels[j - 1]) for i, j in zip(starts, [*starts[1:], len(labels)], strict=True)]
    return ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in spans)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On the CPU, compute with one thread: how a convolution splits its sums depends on how many there are."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _places(out: Path, npz: Path | None, facts: Mapping[str, Any], wanted: ImageList) -> Iterator[None]:
    """Lock the folder of the set, and check that `npz` can be written."""
    with opened(out, facts, wanted.numbers_in):
        if npz is not None:
            check_writable(npz.parent)
        yield


def _facts(
    model: Source,
    tokenizer: str | Path | None,
    run: Run,
    wanted: ImageList,
    device: torch.device,
    precision: str,
) -> dict[str, Any]:
    """Everything that determines the images except the weights."""
    return {
        "model": _named(model),
        "tokenizer": OWN if tokenizer is None else _named(tokenizer),
        "classes": spelled(wanted.classes),
        "per_class": wanted.per_class,
        "images": wanted.count,
        "seed": wanted.seed,
        "batch_size": wanted.batch_size,
        "files": f"{wanted.shards} shards" if wanted.shards else "one an image",
        **counted(run),
        "plan": run.plan.to_json(),
        "plan_in_words": "; ".join(str(run).splitlines()),
        "dtype": precision,
        "device": device.type,
        "versions": {"var_toolkit": __version__, "torch": torch.__version__},
    }


def _named(model: Source) -> str:
    """The name of a model, or where its directory is."""
    return str(Path(str(model)).resolve() if Path(str(model)).is_dir() else model)


def _run(pipe: Pipeline, settings: Mapping[str, Any]) -> Run:
    return pipe.bind(pipe.plan(**settings))


def run_fingerprint(run: Run) -> str:
    """Twenty hexadecimal digits that change with any weight of the networks, or with the meaning of the latents."""
    meaning = (f"{name} {tensor.double().sum().item()!r}" for name, tensor in run.tokenizer.meaning().items())
    return fingerprint(cast(list[nn.Module], [run.tokenizer, *run.unique_networks]), meaning="".join(meaning))


def _tell(out: Path, there: int, count: int) -> None:
    if there == count:
        print(f"{out}: all {count:,} images exist already", file=sys.stderr)
    elif there:
        print(f"{out}: {there:,} of {count:,} images exist already; {count - there:,} to draw", file=sys.stderr)
    else:
        print(f"{out}: {count:,} image{'' if count == 1 else 's'} to draw", file=sys.stderr)


def _draw(
    pipe: Pipeline,
    lacking: Sequence[int],
    wanted: ImageList,
    out: Path,
    settings: Mapping[str, Any],
    bar: Progress,
) -> None:
    """Draw complete units of work, and write the images that do not exist yet."""
    batches = [batch for index in lacking for batch in wanted.part(index)]
    # A batch of the stream is one of the set: only the very last of the set can be shorter than the others.
    stream = enumerate(
        pipe.stream(
            (wanted.label(i) for batch in batches for i in batch),
            seeds=(wanted.seed + i for batch in batches for i in batch),
            batch_size=wanted.batch_size,
            plan=pipe.plan(**settings),
        ),
        start=1,
    )

    def images(numbers: range) -> Iterator[tuple[str, int, Image]]:
        done, drawn = next(stream)
        yield from zip(map(wanted.name, numbers), drawn.class_labels, drawn.images, strict=True)
        # Assume that the other processes have made the same progress.
        bar.update(bar.first + round((bar.total - bar.first) * done / len(batches)) - bar.n)

    with Writers() as writers:
        for index in lacking:
            drawn = (image for numbers in wanted.part(index) for image in images(numbers))
            if wanted.shards:
                write_shard(out / wanted.shard(index), drawn)
                continue
            for name, _, image in drawn:
                if not (out / name).exists() or (out / name).stat().st_size == 0:
                    writers.write(out / name, partial(image.save, format="png"))


def _pack(npz: Path, out: Path, wanted: ImageList) -> None:
    if wanted.shards:
        files = [image for index in range(wanted.shards) for image in members(out / wanted.shard(index))]
        if len(files) != wanted.count:
            raise ValueError(
                f"the shards in {out} hold {len(files)} images, not {wanted.count}; delete damaged ones and run again"
            )
        write_images(npz, files)
    else:
        write_images(npz, [out / wanted.name(number) for number in range(wanted.count)])
