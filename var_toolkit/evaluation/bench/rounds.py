"""Measuring a table: rows take turns round by round, so that a disturbance of the machine affects all rows alike.

Each row has its own process, and only one computes at a time. The processes stay alive between rounds if all of them
fit into half of the available memory; otherwise each turn loads and warms up again.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from var_toolkit.core.bind import Cost
from var_toolkit.core.forecast import decoder_multiply_adds
from var_toolkit.devices import find_device
from var_toolkit.evaluation.bench.child import Child, RowFailedError
from var_toolkit.evaluation.bench.memory import available
from var_toolkit.evaluation.bench.quality import judge, prompts_of
from var_toolkit.evaluation.bench.table import Row, Table
from var_toolkit.files import check_writable
from var_toolkit.loading import skeleton
from var_toolkit.models.layers.float8_linear import bytes_of
from var_toolkit.models.layers.int8_layer import weights_of
from var_toolkit.pipeline import Pipeline
from var_toolkit.still_life import scene_drawing

SHARE = 0.5  # of the free memory, for all processes together
PROCESS = 500_000_000  # bytes of a process that has imported torch


@dataclass(frozen=True)
class Size:
    """The cost of a row, computed from configurations alone."""

    plan: str
    cost: Cost
    wide: torch.dtype  # of what is not in 8 bits
    decoder_multiply_adds: int
    parameters: int  # of the backbones
    tokenizer_parameters: int
    bytes: int  # weights, and the cache of a batch


@dataclass
class Measured:
    """The measurements of a row; `error` says why it failed."""

    row: Row
    size: Size
    facts: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    quality: dict[str, Any] | None = None
    error: str | None = None
    quality_error: str | None = None  # the speed is known all the same

    def unfinished(self, rounds: int) -> str | None:
        """What is missing after an interruption; None if nothing is, or if the row failed."""
        if self.error is None and len(self.turns) < rounds:
            return f"{len(self.turns)} of {rounds} rounds"
        lacks_quality = bool(self.row.quality) and self.quality is None and self.quality_error is None
        return "quality not judged" if self.error is None and lacks_quality else None


Step = Callable[[str], None]  # called before each step with its description


def size_of(row: Row) -> Size:
    """Check a row and count its work, from configurations alone; ValueError in one line if it cannot be measured."""
    try:
        shape = skeleton(row.source)
        precision = row.precision(shape.backbones)
        if precision.quantized:
            shape.quantize(precision.quantized)
        if row.compile:
            shape.compile()
        if row.decoder is not None:
            shape.load_decoder(row.decoder)
        run = shape.bind(shape.plan(**row.plan))
        _require_subjects(row, shape)
    except (TypeError, ValueError) as error:  # a setting of the wrong type is compared with a number
        raise ValueError(f"row {row.name!r}: {error}") from None
    counted, wide = run.cost(), precision.wide
    words = "; ".join(str(run).splitlines())
    weights = list({id(p): p for network in run.unique_networks for p in weights_of(network)}.values())
    tokenizer = list({id(p): p for network in (run.tokenizer, run.decoder) for p in weights_of(network)}.values())
    parameters, others = (sum(p.numel() for p in some) for some in (weights, tokenizer))
    held = sum(bytes_of(p, wide) for p in [*weights, *tokenizer]) + row.batch * counted.cache_bytes(wide)
    return Size(words, counted, wide, decoder_multiply_adds(run), parameters, others, held)


def _require_subjects(row: Row, shape: Pipeline) -> None:
    """ValueError in one line if a model cannot draw the prompts of a row, or the images that quality is judged on."""
    side = shape.tokenizer.image_side
    if shape.text is None:
        if row.prompts:
            raise ValueError(f"prompts are for models of text; {row.source} draws classes")
        if row.quality and (shape.data_set != "still-lifes" or side != 64):
            raise ValueError(f"quality is judged on still lifes of 64 px, which {row.source} does not draw")
        return
    if row.quality and side != scene_drawing.SIZE:
        raise ValueError(f"quality is judged on scenes of {scene_drawing.SIZE} px; {row.source} draws {side} px")
    if row.weights == "own":
        if shape.text_encoder is None:
            raise ValueError(f"{row.source} was saved without a text encoder, which reads prompts; give another model")
        shape.text_encoder.check(prompts_of(row, 1))


def measure(table: Table, *, cache: Path, on_step: Step) -> list[Measured]:
    """Measure every row; if one fails, its error is recorded and the others continue. ValueError before any work.

    The speed of a row is reported even if its quality cannot be judged. After Ctrl-C the rows measured so far are
    returned, or KeyboardInterrupt is raised if there are none.

    `cache` is a folder for the statistics of the reference renderings.
    """
    found = [Measured(row, size_of(row)) for row in table.rows]
    if any(row.quality for row in table.rows):
        check_writable(cache)  # not after an hour of rounds
    with Children(keep=fit_together(found)) as children:
        try:
            for number in range(table.rounds):
                _round(table, number, found, children, on_step)
            _judge_all(found, children, cache, on_step)
        except KeyboardInterrupt:
            if not any(one.turns for one in found):
                raise
    return found


def _round(table: Table, number: int, found: list[Measured], children: Children, on_step: Step) -> None:
    """A turn of every row that has not failed."""
    for one in found:
        if one.error is None:
            on_step(f"round {number + 1} of {table.rounds}: {one.row.name}")
            try:
                one.turns.append(children.ask(one, turn=number, seconds=table.seconds))
            except RowFailedError as error:
                one.error = str(error)


def steps(table: Table) -> int:
    """The number of calls of `on_step` if no row fails."""
    return table.rounds * len(table.rows) + len({row.images_key for row in table.rows if row.quality})


class Children:
    """The processes of the rows: all alive until the end, or each started again for every order."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._alive: dict[str, Child] = {}
        self._threads = torch.get_num_threads()

    def ask(self, one: Measured, **order: Any) -> dict[str, Any]:
        """An answer of a row's warm process; RowFailedError if it fails."""
        name, answered = one.row.name, False
        try:
            if name not in self._alive:
                self._alive[name] = Child(one.row, self._threads)
            one.facts = self._alive[name].facts
            answer = self._alive[name].ask(**order)
            answered = True
            return answer
        finally:
            if not (answered and self._keep) and name in self._alive:
                self._alive.pop(name).close()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *raised: object) -> None:
        for child in self._alive.values():
            child.close()


def fit_together(found: list[Measured]) -> bool:
    """Whether the processes of all rows fit into memory at the same time."""
    needed: dict[str, int] = defaultdict(int)
    for one in found:
        needed["cpu"] += PROCESS
        needed[_place(one.row.device)] += one.size.bytes
    return all(need <= SHARE * available(place) for place, need in needed.items())


def _place(device: str) -> str:
    """The memory that a row uses. A missing device is reported when the row is measured."""
    try:
        found = find_device(device)
    except ValueError:
        return "cpu"
    return f"cuda:{found.index or 0}" if found.type == "cuda" else "cpu"


def _judge_all(found: list[Measured], children: Children, cache: Path, on_step: Step) -> None:
    """Judge the rows with `quality`, once for rows that draw the same images."""
    judged: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        for one in found:
            if not one.row.quality or one.error is not None:
                continue
            key = one.row.images_key
            if key not in judged:
                on_step(f"quality, {one.row.quality} images: {one.row.name}")
                try:
                    judged[key] = judge(path, children.ask(one, images=str(path))["classes"], cache)
                except (RowFailedError, OSError, ValueError) as error:
                    one.quality_error = str(error)
                    continue
            one.quality = judged[key]
