"""The table of a benchmark: what is measured, read from one YAML file and checked before any work."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, get_type_hints

import torch
from torch import nn

from var_toolkit.config_files import find_config, read_yaml
from var_toolkit.devices import find_device
from var_toolkit.loading import Drafting, Pair
from var_toolkit.precision import Precision, precision_of
from var_toolkit.setting_table import SETTINGS, Settings
from var_toolkit.strict_fields import build, convert, refuse_unknown_keys


@dataclass(frozen=True)
class Row:
    """A model, a plan, a dtype and a device: what is measured together."""

    name: str
    model: Any  # a name, a directory or a hub id; or a mapping: drafter, refiner, draft_scales; or model, draft_model
    weights: Literal["own", "random"] = "own"  # random: for speed and memory; nothing is downloaded
    plan: Any = field(default_factory=dict)  # keywords of `Pipeline.plan`
    dtype: Literal["float32", "bfloat16", "float16", "int8", "float8", "auto"] = "float32"
    device: str = "auto"
    decoder: str | None = None  # a small one in place of the tokenizer's own, as `Pipeline.load_decoder` takes it
    compile: bool = False  # networks compiled by torch.compile (`Pipeline.compile`)
    batch: int = 8
    quality: int = 0  # how many images are judged, of classes 0, 1, ... or prompts of scenes; 0 is off
    prompts: tuple[str, ...] = ()  # of a model of text, in turns; none: those that judge models of scenes

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable():
            raise ValueError(f"name is {self.name!r}; expected text of one line")
        if not isinstance(self.model, str):
            _ = self.source  # which refuses a mapping of other keys
        if not isinstance(self.plan, Mapping):
            raise ValueError(f"plan is {self.plan!r}; expected a mapping of settings, such as {{cfg: 0}}")
        refuse_unknown_keys(self.plan, list(SETTINGS), where="plan")
        hints = get_type_hints(Settings)
        read = {key: convert(hints[key], value, where=f"plan: {key}") for key, value in self.plan.items()}
        object.__setattr__(self, "plan", read)  # 1e-3 is text in YAML; and 0 and 0.0 draw the same images
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; expected 1 or more")
        if self.quality < 0 or self.quality == 1:
            raise ValueError(f"quality is {self.quality}; expected 2 images or more, or 0 for none")
        if not all(text.strip() for text in self.prompts):
            raise ValueError("prompts has an empty one; say what each image is to show")
        if self.quality and self.prompts:
            raise ValueError("quality is judged on prompts of its own; remove quality or prompts")
        if self.decoder is not None and self.weights == "random":
            raise ValueError("a small decoder is made for the tokenizer's own weights; remove decoder or weights")
        if self.quality and self.weights == "random":
            raise ValueError("random weights have no quality; remove quality or weights")

    @property
    def source(self) -> str | Pair | Drafting:
        """What `load` and `skeleton` take."""
        if isinstance(self.model, str):
            return self.model
        drafting = isinstance(self.model, Mapping) and "draft_model" in self.model
        two: type[Pair] | type[Drafting] = Drafting if drafting else Pair
        return build(two, self.model, where="model")

    def precision(self, networks: Sequence[nn.Module] = ()) -> Precision:
        """What the dtype means on the device, for these backbones.

        That this machine lacks a device is reported when the row is measured.
        """
        try:
            device = find_device(self.device)
        except ValueError:
            device = torch.device("cuda" if self.device.startswith("cuda") and self.dtype != "auto" else "cpu")
        return precision_of(self.dtype, device, networks)

    @property
    def images_key(self) -> str:
        """Rows with the same key draw the same images: batch and name do not matter."""
        return repr(dataclasses.replace(self, name="any", batch=1))


@dataclass(frozen=True)
class Table:
    """Rows, and how they are measured: each `rounds` times in turn, at least `seconds` and one batch a turn."""

    rows: tuple[Row, ...]
    rounds: int = 5
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows is empty; give at least one row")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; expected 1 or more")
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"seconds is {self.seconds}; expected 0 or more")
        name, count = Counter(row.name for row in self.rows).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} rows have the name {name!r}; give each its own")

    def only(self, patterns: Sequence[str]) -> Table:
        """The rows whose names match one of the shell patterns, in the order of the table."""
        names = matching([row.name for row in self.rows], patterns)
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if row.name in names))


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names of rows that match one of the shell patterns, in their order; ValueError if a pattern matches none."""
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(f"no row matches {pattern!r}; rows are {', '.join(names)}")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def find_table(name: str) -> Path:
    """The file of a table: a path, or the name of one that comes with the package."""
    return find_config(name, "table", "bench")


def read_table(path: Path, *, allow_code: bool = False) -> Table:
    """The table in a YAML file; ValueError in one line for whatever is wrong with it.

    `allow_code`: rows may name methods as `module:function`, which are imported. The file must then be trusted.
    """
    return table_from(read_yaml(path), where=str(path), allow_code=allow_code)


def table_from(values: object, *, where: str = "table", allow_code: bool = False) -> Table:
    """The table in a mapping: settings of the table, `defaults` for every row, and `rows`.

    A row's own field replaces the default as a whole, `plan` as well. `allow_code`: as in `read_table`.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a mapping with rows, got {short(values)}")
    allowed = [*(one.name for one in dataclasses.fields(Table)), "defaults"]
    refuse_unknown_keys(values, allowed, where=where)
    defaults, rows = values.get("defaults") or {}, values.get("rows") or []
    if not isinstance(defaults, Mapping):
        raise ValueError(f"{where}: defaults: expected a mapping of settings, got {short(defaults)}")
    fields = [one.name for one in dataclasses.fields(Row)]
    refuse_unknown_keys(defaults, [name for name in fields if name != "name"], where=f"{where}: defaults")
    if not isinstance(rows, list):
        raise ValueError(f"{where}: rows is {short(rows)}; expected a list")
    settings = {name: value for name, value in values.items() if name != "defaults"}
    read = tuple(_row(row, defaults, where=f"{where}: {_called(row, i)}") for i, row in enumerate(rows, start=1))
    if not allow_code:
        _refuse_code(read, where)
    return build(Table, {**settings, "rows": read}, where=where)


def _refuse_code(rows: Sequence[Row], where: str) -> None:
    """A table that was found somewhere must not run what lies beside it."""
    for row in rows:
        method = row.plan.get("method")
        if method is not None and (not isinstance(method, str) or ":" in method):
            raise ValueError(
                f"{where}: row {row.name!r}: plan: method {method!r} imports code; add --allow-code (in Python: "
                "allow_code=True) if you trust it, or give the name of an installed method"
            )


def _row(values: object, defaults: Mapping[str, Any], *, where: str) -> Row:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a mapping of settings, got {short(values)}")
    return build(Row, {**defaults, **values}, where=where)


def _called(values: object, number: int) -> str:
    name = values.get("name") if isinstance(values, Mapping) else None
    return f"row {name!r}" if isinstance(name, str) else f"row {number}"
