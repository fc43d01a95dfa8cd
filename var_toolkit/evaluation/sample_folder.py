"""The folder of a set of drawn images: its lock, its settings, and the images that exist already.

Beside the images it holds `settings.json` and, during a run, the hidden file `.lock`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from var_toolkit.data.shards import SHARD_ENDING
from var_toolkit.evaluation.image_files import IMAGE, SHARD
from var_toolkit.files import check_writable, made
from var_toolkit.formats.directory import read_json, write_json
from var_toolkit.images import ENDINGS
from var_toolkit.locks import LOCK, held

SETTINGS = "settings.json"
# Names of unfinished files of a killed run, in versions before `files.sweep`.
TEMPORARY = re.compile(rf"\.({IMAGE.pattern}|{SHARD.pattern}|settings\.json)-\w{{8}}")
WAY_OUT = "choose another folder with --out"


@contextmanager
def opened(out: Path, facts: Mapping[str, Any], numbers_in: Callable[[str], range | None]) -> Iterator[None]:
    """Lock a folder for one run, and remove unfinished files of a killed run.

    ValueError if another run holds the lock, if the folder was started with other settings, or if it holds files that
    are not of this set; `numbers_in` gives the numbers of the images in a file by its name, None for names that the
    set does not have.
    """
    check_writable(out)
    with made(out), held(out, f"another run is drawing into {out}; wait until it ends, or {WAY_OUT}"):
        check_settings(out, facts)
        _check_files(out, numbers_in)
        sweep(out, TEMPORARY)
        yield


def check_settings(out: Path, facts: Mapping[str, Any]) -> None:
    """ValueError if a folder was started with other settings; it names the first that differs."""
    if not (out / SETTINGS).exists():
        return
    begun = dict(leaves(read_json(out / SETTINGS)))
    for name, value in leaves(json.loads(json.dumps(facts))):
        if name not in begun:
            raise ValueError(f"{out / SETTINGS} lacks {name}, so that set cannot be resumed; {WAY_OUT}")
        if begun[name] != value:
            was, now = (json.dumps(v) for v in (begun[name], value))
            raise ValueError(f"{out} was started with {name} {was}, not {now}; use the same setting, or {WAY_OUT}")


def write_settings(out: Path, facts: Mapping[str, Any]) -> None:
    """Write the settings that the set is drawn with, once."""
    check_settings(out, facts)
    if not (out / SETTINGS).exists():
        write_json(out / SETTINGS, facts)


def numbers_there(out: Path, numbers_in: Callable[[str], range | None]) -> set[int]:
    """The numbers of the images in the folder; ValueError if the first process has not locked this folder."""
    if not (out / LOCK).exists():
        raise ValueError(f"{out} is not the folder that the first process opened; all machines must share it")
    found = ((numbers_in(path.name), path) for path in out.iterdir())
    # After a power failure, some file systems leave a file empty that was written shortly before.
    return {number for numbers, path in found if numbers and path.stat().st_size > 0 for number in numbers}


def sweep(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the files whose names match."""
    for path in folder.iterdir():
        if names.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _check_files(out: Path, numbers_in: Callable[[str], range | None]) -> None:
    begun = (out / SETTINGS).exists()
    for path in sorted(out.iterdir()):
        if path.name.startswith(".") or (begun and path.name == SETTINGS):
            continue
        if not begun:
            raise ValueError(f"{out} holds {path.name} and no {SETTINGS}; choose an empty or new folder with --out")
        # Any other image would be measured as one of the set.
        if numbers_in(path.name) is None and path.suffix.lower() in (*ENDINGS, SHARD_ENDING):
            raise ValueError(f"{out} holds {path.name}, which is not a file of this set; move it, or {WAY_OUT}")


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values inside nested dictionaries and lists, each with its path, such as "versions.torch"."""
    if not isinstance(value, dict | list):
        yield name, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(inner, f"{name}.{key}" if name else str(key))
