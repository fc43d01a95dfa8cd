"""The codes of a tokenizer by how often they occur in what a proposer learnt from, in a file beside its weights."""

from __future__ import annotations

import json
from pathlib import Path

from var_toolkit.files import write_whole
from var_toolkit.formats.json_files import read_json
from var_toolkit.strict_fields import convert

FILE, KEY = "frequent_codes.json", "codes"


def read_frequent(folder: Path, vocabulary: int) -> tuple[int, ...] | None:
    """The codes, the most frequent first; None where there is no file. ValueError in one line for a damaged one."""
    path = folder / FILE
    if not path.is_file():
        return None
    codes = convert(tuple[int, ...], read_json(path).get(KEY), where=f"{path}: {KEY}")
    if len(set(codes)) < len(codes) or not codes or not 0 <= min(codes) <= max(codes) < vocabulary:
        raise ValueError(f"{path}: {KEY} must be different numbers from 0 to {vocabulary - 1}, the most frequent first")
    return codes


def write_frequent(folder: Path, codes: list[int]) -> None:
    """Write the file whole."""
    write_whole(folder / FILE, lambda temporary: temporary.write_text(json.dumps({KEY: codes}) + "\n"))
