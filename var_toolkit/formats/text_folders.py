"""The text encoder of a model directory: its own folders, or the name of one on the hub in `model_index.json`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from var_toolkit import registry
from var_toolkit.conditions.text import TextInput
from var_toolkit.conditions.text_encoders import TransformersEncoder
from var_toolkit.entries import TextSource
from var_toolkit.formats.directory import INDEX, TEXT_FOLDERS, empty_network, load_network
from var_toolkit.formats.json_files import read_json
from var_toolkit.registry import CONFIG
from var_toolkit.strict_fields import build

TOLD = "_text_encoder"  # of transformers: how the model uses it


def text_entry(encoder: Any, folder: Path) -> dict[str, Any]:
    """What `model_index.json` tells of an encoder of transformers, whose files are copied if they are a directory's."""
    if not isinstance(encoder, TransformersEncoder):
        return {}
    told = encoder.told
    if not Path(told.source).is_dir():
        return {TOLD: asdict(told)}
    for name, source in zip(TEXT_FOLDERS, (told.source, told.tokenizer or told.source), strict=True):
        shutil.copytree(source, folder / name)
    return {TOLD: asdict(replace(told, source="", tokenizer=""))}


def read_text_encoder(folder: Path, index: Mapping[str, Any], text: TextInput, weights: bool) -> Any:
    """The text encoder of a model directory; None if it has none. ValueError of one line if it is damaged."""
    own = folder / TEXT_FOLDERS[0]
    name = read_json(own / CONFIG).get("_class_name") if (own / CONFIG).is_file() else None
    if name is not None and TOLD not in index:
        return checked_encoder((load_network if weights else empty_network)(own), str(own))
    if TOLD not in index:
        return None
    told = build(TextSource, index[TOLD], where=f"{folder / INDEX}: {TOLD}")
    if not told.source:
        told = replace(told, source=str(own), tokenizer=str(folder / TEXT_FOLDERS[1]))
        if missing := [one for one in (told.source, told.tokenizer) if not Path(one).is_dir()]:
            raise ValueError(f"{missing[0]} is missing; {folder / INDEX} says that the text encoder lies there")
    return TransformersEncoder(told, text.longest)


def checked_encoder(network: nn.Module, where: str) -> nn.Module:
    """A network that is a text encoder. ValueError of one line for any other."""
    if type(network).__name__ not in (known := registry.networks("text_encoder")):
        raise ValueError(f"{where} holds a {type(network).__name__}; it must hold a {' or '.join(known)}")
    return network
