"""The checkpoint of a run: written atomically, and refused if it is damaged or belongs to another recipe."""

import dataclasses
import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from var_toolkit.files import write_whole
from var_toolkit.training.recipe import FREE_IN_DATA, FREE_TO_CHANGE, Recipe


def write_checkpoint(path: Path, content: object) -> None:
    """torch.save that a kill cannot leave half done: the file before stays until the new one is on disk.

    OSError if the disk is full.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as handle:
            try:
                torch.save(content, handle)
            except RuntimeError as error:
                # torch replaces the OSError of the file by an error about its archive.
                if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            handle.flush()
            os.fsync(handle.fileno())

    write_whole(path, write)


def read_checkpoint(path: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The checkpoint at `path` if there is one; ValueError if it is damaged or another recipe wrote it."""
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        then, now = (_decisive(json.loads(text), recipe) for text in (content["recipe"], as_json(recipe)))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged or not the checkpoint of a run; delete it to start again") from None
    for name in now:
        if then.get(name) != now[name]:
            key, old, new = _first_difference(name, then.get(name), now[name])
            raise ValueError(
                f"{path} was written with {key} = {old!r}, but the recipe says {new!r}; "
                "restore the recipe, or start afresh in another output directory"
            )
    return content


def _decisive(recipe: dict[str, Any], of: Recipe) -> dict[str, Any]:
    """The part of a recipe that must be the same for a run to be resumed.

    What older versions did not know has its default: the kind of the optimiser, and options of the objective.
    """
    fixed = {name: value for name, value in recipe.items() if name not in FREE_TO_CHANGE}
    data = {name: value for name, value in recipe["data"].items() if name not in FREE_IN_DATA}
    optimiser = {"kind": "adamw"} | recipe["optimiser"]
    options = _defaults(of.objective_options) | (recipe.get("objective_options") or {})
    return fixed | {"data": data, "optimiser": optimiser, "objective_options": options}


def _defaults(options: Any) -> dict[str, Any]:
    fields = dataclasses.fields(options) if dataclasses.is_dataclass(options) else ()
    return {one.name: one.default for one in fields if one.default is not dataclasses.MISSING}


def as_json(recipe: Recipe) -> str:
    return json.dumps(dataclasses.asdict(recipe))


def _first_difference(name: str, then: Any, now: Any) -> tuple[str, Any, Any]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*now, *then]:
            if then.get(key) != now.get(key):
                return _first_difference(f"{name}.{key}", then.get(key), now.get(key))
    return name, then, now
