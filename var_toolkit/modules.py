"""Python modules that a user names: on Python's path, else in the current folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType


@contextmanager
def current_folder() -> Iterator[None]:
    """Puts the current folder at the end of the module search path, where it shadows nothing."""
    folder = os.getcwd()
    known = folder in sys.path
    if not known:
        sys.path.append(folder)
    try:
        yield
    finally:
        if not known:
            sys.path.remove(folder)


def imported(module: str, what: str) -> ModuleType:
    """The module, which this runs. ValueError in one line if it is missing or broken; `what` is its name in errors."""
    try:
        with current_folder():
            return import_module(module)
    except Exception as error:  # whatever an author's module raises
        lacking = error.name if isinstance(error, ModuleNotFoundError) else None
        if lacking and f"{module}.".startswith(f"{lacking}."):
            reason = f"{error}; modules are searched on Python's path and in the current folder"
        elif lacking:
            reason = f"the module {module} imports {lacking}, which is not installed"
        else:
            reason = f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{what}: {reason}") from error


def source_file(module: str) -> Path | None:
    """The file of a module, which is not run (of `a.b`, a is); None if there is no such file."""
    from importlib.util import find_spec

    try:
        with current_folder():
            spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    file = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    return file if file is not None and file.suffix == ".py" else None
