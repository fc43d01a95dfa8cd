"""Published weight files: `.pth` or `.safetensors` in, tensors out. A file never runs code."""

from __future__ import annotations

import pickle
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var_toolkit.zoo.directory import read_safetensors

WRAPPERS = ("model", "module", "state_dict")  # the last two by DeepSpeed and Lightning


def read_weights(path: Path | str, part: str | None = None) -> dict[str, Tensor]:
    """The state dict in a published file, float tensors as stored. ValueError in one line if it is no such file.

    `part` says what of a model is wanted, "tokenizer" or "backbone", where published scripts wrap the state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a published .pth or .safetensors file")
    content = read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if isinstance(content, dict):
        content = _unwrapped(content, part)
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (names to tensors); it is no published weight file")
    return content


def _unwrapped(content: dict[Any, Any], part: str | None) -> Any:
    """What a checkpoint of VAR's training script, or a file of MAR's autoencoder or of LlamaGen, wraps."""
    if isinstance(content.get("trainer"), dict):
        return content["trainer"].get("vae_local" if part == "tokenizer" else "var_wo_ddp")
    return next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6


def _read_pickle(path: Path) -> object:
    try:
        # Warnings are about pickle protocols, beside the error that matters. LlamaGen's training script notes its
        # arguments beside the weights; a Namespace runs nothing.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([Namespace]):
            return _load(path)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is damaged, or holds objects other than tensors, which could run code; refused. "
            "Save its state dict alone, best as .safetensors"
        ) from None
    except Exception:  # a damaged file can fail in any way at all
        raise ValueError(f"{path} is damaged, or is not a weight file") from None
