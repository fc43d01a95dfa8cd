"""Read the tensors of published weight files: `.pth`, `.safetensors` or shards, without running code from a file."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from var_toolkit.formats.beside_weights import harmless
from var_toolkit.formats.checkpoints import Chosen, NoSuchWeightsError, choose
from var_toolkit.formats.file_kinds import described, is_safetensors
from var_toolkit.formats.safetensors_files import INDEX_ENDING, SHARD, read_safetensors, read_shards

PICKLE_INDEX = ".bin.index.json"  # of transformers, before safetensors
UNSAFE = re.compile(r"GLOBAL ([\w.]+)|(?:function|got) <(?:class|function|built-in)\W+([\w.]+)|TorchScript")


def read_weights(path: Path | str, required: Sequence[str] = ()) -> dict[str, Tensor]:
    """The state dict in a published file, as stored. ValueError in one line for any other file.

    Inside a training checkpoint it is identified by the names of the tensors `required`.
    """
    return read_checkpoint(path, required).tensors


def read_checkpoint(path: Path | str, required: Sequence[str] = (), wanted: str | None = None) -> Chosen:
    """As `read_weights`, with a choice of weights (see `choose`) and a note about it."""
    path = Path(path)
    return choose(_content(_file(path)), required, str(path), wanted)


def read_checkpoints(files: Mapping[str, tuple[Path, Sequence[str]]], wanted: str | None = None) -> dict[str, Chosen]:
    """Several files by part, each with its required tensors. At least one of them must have the chosen weights."""
    found, refused = {}, []
    for part, (path, required) in files.items():
        try:
            found[part] = read_checkpoint(path, required, wanted)
        except NoSuchWeightsError as error:
            refused.append(error)
            found[part] = read_checkpoint(path, required)
    if refused and len(refused) == len(found):
        raise refused[-1]
    return found


def _file(path: Path) -> Path:
    """The given file, or the weight file in a folder."""
    if path.is_dir():
        for ending in (f"*{INDEX_ENDING}", f"*{PICKLE_INDEX}", "*.safetensors", "*.pth", "*.pt", "*.ckpt", "*.bin"):
            found = sorted(path.glob(ending))
            if len(found) == 1:
                return found[0]
            if found:
                raise ValueError(
                    f"{path} holds several weight files, such as {found[0].name} and {found[1].name}; give one of them"
                )
        raise ValueError(f"{path} is a folder without weights; give a published .pth or .safetensors file")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a published .pth or .safetensors file")
    return path


def _content(path: Path) -> object:
    if path.name.endswith(INDEX_ENDING) or path.name.endswith(PICKLE_INDEX):
        return read_shards(path, _single)
    if found := SHARD.search(path.name):
        raise ValueError(f"{path} is one of {int(found[1])} shards; give the file that ends in .index.json")
    return _single(path)


def _single(path: Path) -> object:
    return read_safetensors(path) if path.suffix == ".safetensors" or is_safetensors(path) else _read_pickle(path)


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6


def _read_pickle(path: Path) -> object:
    try:
        # Warnings about pickle protocols would only distract from the error.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(harmless()):
            return _load(path)
    except pickle.UnpicklingError as error:
        found = UNSAFE.search(str(error))
        told = None if found else described(path)
        raise ValueError(f"{path} {told or _unsafe(found)}") from None
    except MemoryError:
        raise
    except Exception:  # a damaged file can raise anything
        raise ValueError(f"{path} {_complaint(path)}") from None


def _unsafe(found: re.Match[str] | None) -> str:
    """The error for a pickle that the weights-only reader refuses, from what the reader found in it."""
    kind = next((name for name in found.groups() if name), None) if found else None
    what = f"holds objects other than tensors (class {kind})" if kind else "holds a TorchScript program"
    if found is None:
        what = "is damaged, or holds objects other than tensors"
    return f"{what}, which could run code; refused. Save its state dict alone, best as .safetensors"


def _complaint(path: Path) -> str:
    return described(path) or "is damaged, or is not a weight file; download it again"
