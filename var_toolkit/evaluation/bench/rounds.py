"""Measuring a table: rows take turns round by round, so that a disturbance of the machine affects all rows alike.

Each row has a process of its own and only one computes at a time. The processes stay alive between rounds if all of
them together fit into half of the free memory; otherwise each turn loads and warms up anew.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from var_toolkit.devices import find_device
from var_toolkit.evaluation.bench.child import Child, RowFailedError
from var_toolkit.evaluation.bench.memory import available
from var_toolkit.evaluation.bench.quality import judge
from var_toolkit.evaluation.bench.table import Row, Table
from var_toolkit.files import check_writable
from var_toolkit.loading import skeleton
from var_toolkit.sampling.forecast import decoder_multiply_adds
from var_toolkit.sampling.plan import Cost

SHARE = 0.5  # of the free memory, for all processes together
PROCESS = 500_000_000  # bytes of a process that has imported torch


@dataclass(frozen=True)
class Size:
    """What is known about a row without its weights."""

    plan: str
    cost: Cost
    decoder_multiply_adds: int
    parameters: int  # of the backbones
    tokenizer_parameters: int
    bytes: int  # weights, and the cache of a batch


@dataclass
class Measured:
    """What was measured of a row; `error` is the reason if it is not complete."""

    row: Row
    size: Size
    facts: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    quality: dict[str, Any] | None = None
    error: str | None = None
    quality_error: str | None = None  # the speed is known all the same

    def unfinished(self, rounds: int) -> str | None:
        """What an interruption left out; None if nothing, or if the row failed."""
        if self.error is None and len(self.turns) < rounds:
            return f"{len(self.turns)} of {rounds} rounds"
        lacks_quality = bool(self.row.quality) and self.quality is None and self.quality_error is None
        return "quality not judged" if self.error is None and lacks_quality else None


Step = Callable[[str], None]  # called before each step with its description


def size_of(row: Row) -> Size:
    """Check a row and count its work, from configurations alone; ValueError in one line if it cannot be measured."""
    try:
        shape = skeleton(row.source)
        plan = shape.plan(**row.plan)
        if row.quality and (shape.data_set != "still-lifes" or shape.tokenizer.image_side != 64):
            raise ValueError(f"quality is judged on still lifes of 64 px, which {row.source} does not draw")
    except (TypeError, ValueError) as error:  # a setting of the wrong type is compared with a number
        raise ValueError(f"row {row.name!r}: {error}") from None
    counted, dtype = plan.cost(), getattr(torch, row.dtype)
    words = "; ".join(map(str, plan.stages))
    parameters = sum({id(p): p.numel() for network in plan.networks for p in network.parameters()}.values())
    tokenizer = sum(p.numel() for p in shape.tokenizer.parameters())
    held = dtype.itemsize * (parameters + tokenizer) + row.batch * counted.cache_bytes(dtype)
    return Size(words, counted, decoder_multiply_adds(plan), parameters, tokenizer, held)


def measure(table: Table, *, cache: Path, on_step: Step) -> list[Measured]:
    """Measure every row; a row that fails keeps its error and the others continue. ValueError before any work.

    A row whose quality cannot be judged keeps its speed. After Ctrl-C the rows that were measured so far are returned,
    or KeyboardInterrupt is raised if there are none.

    `cache` is a folder that keeps the statistics of the renderings that images are compared with.
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
    """How often `on_step` is called if no row fails."""
    return table.rounds * len(table.rows) + len({row.images_key for row in table.rows if row.quality})


class Children:
    """The processes of the rows: all kept until the end, or each started anew for every order."""

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
    """Whether the processes of all rows may live at the same time."""
    needed: dict[str, int] = defaultdict(int)
    for one in found:
        needed["cpu"] += PROCESS
        needed[_place(one.row.device)] += one.size.bytes
    return all(need <= SHARE * available(place) for place, need in needed.items())


def _place(device: str) -> str:
    """Whose memory a row fills. A device that is not there is found out when the row is measured."""
    try:
        found = find_device(device)
    except ValueError:
        return "cpu"
    return f"cuda:{found.index or 0}" if found.type == "cuda" else "cpu"


def _judge_all(found: list[Measured], children: Children, cache: Path, on_step: Step) -> None:
    """The quality of the rows that ask for it, once for those that draw the same images."""
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
