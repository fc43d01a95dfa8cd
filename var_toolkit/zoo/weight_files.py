"""Published weight files: `.pth` or `.safetensors` in, tensors out. A file never runs code."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor

from var_toolkit.zoo.directory import read_safetensors

TRAINER_PARTS = ("var_wo_ddp", "vae_local")  # what VAR's training script wraps around a state dict


def read_weights(path: Path | str, part: str | None = None) -> dict[str, Tensor]:
    """The state dict in a published file, float tensors as stored. ValueError in one line if it is no such file.

    `part` picks a network out of a checkpoint of VAR's training script ("var_wo_ddp" or "vae_local").
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a published .pth or .safetensors file")
    content = read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if isinstance(content, dict) and isinstance(content.get("trainer"), dict):
        content = content["trainer"].get(part)
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (names to tensors); it is no published weight file")
    return content


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols, beside the error that matters
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is damaged, or holds objects other than tensors, which could run code; refused. "
            "Save its state dict alone, best as .safetensors"
        ) from None
    except Exception:  # a damaged file can fail in any way at all
        raise ValueError(f"{path} is damaged, or is not a weight file") from None
