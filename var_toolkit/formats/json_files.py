"""JSON files: written whole, and read with every way in which they can be wrong told in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from var_toolkit.files import write_whole
from var_toolkit.formats.file_kinds import described

LARGEST = 64 * 2**20  # bytes, of an index of shards; no configuration comes near


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError in one line for anything else, NaN and infinities too."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file; expected a JSON file")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} is larger than {LARGEST // 2**20} MiB; it is not a JSON file of a model")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; a model directory needs it") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} {described(path) or 'is not JSON: it is not UTF-8 text'}") from None

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"it holds {name}, which is no number of JSON")

    try:
        content = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError(f"{path} is not the JSON of a model: its values are nested too deeply") from None
    except ValueError as error:
        told = described(path) if not text.lstrip().startswith("{") else None
        raise ValueError(f"{path} {told or f'is not JSON: {error}'}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; it must hold a JSON object")
    return content
