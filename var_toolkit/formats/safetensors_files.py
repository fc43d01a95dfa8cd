"""Safetensors files, whole or in shards with an index, as diffusers and transformers write large models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from var_toolkit.formats.file_kinds import described
from var_toolkit.formats.json_files import read_json
from var_toolkit.registry import WEIGHTS

INDEX_ENDING = ".safetensors.index.json"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError in one line if it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; a model directory needs it") from None
    except (SafetensorError, OSError) as error:
        told = described(path) if path.is_file() else None
        raise ValueError(f"{path} {told or f'cannot be read as safetensors: {error}'}") from None


def read_folder(
    folder: Path, read: Callable[[Path], dict[str, Tensor]] = read_safetensors
) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a network's folder, in one file or in shards, and the file to name in errors."""
    index = folder / WEIGHTS_INDEX
    if index.is_file() and not (folder / WEIGHTS).exists():
        return read_shards(index, read), index
    return read(folder / WEIGHTS), folder / WEIGHTS


def shards(index: Path) -> dict[str, list[str]]:
    """The names of the tensors by shard. ValueError in one line for an invalid index."""
    found: dict[str, list[str]] = {}
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: weight_map is missing; it must map the names of tensors to files")
    for name, file in names.items():
        if not isinstance(file, str) or Path(file).name != file or file.startswith("."):
            raise ValueError(f"{index}: weight_map places {name} in {file!r}; expected a file name in the same folder")
        found.setdefault(file, []).append(name)
    return found


def read_shards(index: Path, read: Callable[[Path], Any]) -> dict[str, Tensor]:
    """The tensors that an index lists, each from its shard."""
    tensors: dict[str, Tensor] = {}
    for file, names in shards(index).items():
        path = index.with_name(file)
        if not path.is_file():
            raise ValueError(f"{path} is missing; {index.name} lists it: download all shards")
        held = read(path)
        for name in names:
            if not isinstance(held, Mapping) or name not in held:
                raise ValueError(f"{path} lacks {name!r}, which {index.name} places there; download it again")
            tensors[name] = held[name]
    return tensors
