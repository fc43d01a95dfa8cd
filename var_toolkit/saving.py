"""Save a pipeline as a model directory in the diffusers layout, which `loading` reads."""

from __future__ import annotations

from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from var_toolkit.files import written_whole
from var_toolkit.formats.directory import FOLDERS, INDEX, read_json, write_json, write_network
from var_toolkit.formats.facts import FACTS, write_facts
from var_toolkit.formats.frequent_codes import FILE, write_frequent
from var_toolkit.formats.hub import upload, with_revision
from var_toolkit.formats.model_card import write_card
from var_toolkit.formats.text_folders import text_entry
from var_toolkit.models.layers.float8_linear import is_float8
from var_toolkit.registry import CARD

if TYPE_CHECKING:
    from var_toolkit.pipeline import Pipeline


def save(pipe: Pipeline, directory: Path, dtype: torch.dtype | None, *, overwrite: bool) -> None:
    """Write a pipeline to a directory, completely or not at all, with weights in `dtype` if given.

    ValueError if the directory exists; with `overwrite` it is replaced if it holds a model of var_toolkit and nothing
    else; and for a model in float8.
    """
    if any(map(is_float8, pipe.networks)):
        raise ValueError("a model in float8 is not saved; save it in another dtype, and load it in float8")
    if overwrite:
        _require_replaceable(directory)
    with written_whole(directory, overwrite=overwrite) as folder:
        index: dict[str, Any] = {"_class_name": "Pipeline"}
        for part, network in parts(pipe).items():
            (folder / part).mkdir()
            write_network(network, folder / part, dtype)
            index[part] = [type(network).__module__.partition(".")[0], type(network).__name__]
        index |= {"_sampling": asdict(pipe.sampling)}
        index |= text_entry(pipe.text_encoder, folder) if pipe.text is not None else {"_class_names": pipe.named}
        if pipe.refiner is not None:
            index |= {"_refiner_sampling": asdict(pipe.refiner.sampling), "_draft_scales": pipe.draft_scales}
        write_json(folder / INDEX, index)
        write_facts(folder, pipe.facts)
        if pipe.frequent_codes is not None:
            write_frequent(folder, list(pipe.frequent_codes))
        write_card(pipe, folder, directory.resolve().name)


def push(
    pipe: Pipeline,
    repo_id: str,
    *,
    dtype: torch.dtype | None,
    license: str | None,
    revision: str | None,
    **options: Any,
) -> str:
    """Commit a pipeline to the hub with its licence and a card; `options` are those of `hub.upload`."""
    shown = copy(pipe)
    shown.facts = pipe.facts.licensed(license)

    def write(folder: Path) -> None:
        save(shown, folder, dtype, overwrite=False)
        write_card(shown, folder, with_revision(repo_id, revision))

    return upload(repo_id, write, revision=revision, **options)


def parts(pipe: Pipeline) -> dict[str, torch.nn.Module]:
    """The networks of a pipeline by the names of their folders."""
    refiner = {} if pipe.refiner is None else {"refiner": pipe.refiner.backbone}
    tokenizer = getattr(pipe.tokenizer, "autoencoder", pipe.tokenizer)  # saved so that diffusers can load it too
    own: dict[str, nn.Module] = {"text_encoder": pipe.text_encoder} if isinstance(pipe.text_encoder, nn.Module) else {}
    return {"tokenizer": tokenizer, "backbone": pipe.backbone, **refiner, **own}


def _require_replaceable(folder: Path) -> None:
    """ValueError if a folder exists and holds anything but a model directory as `save` writes it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / INDEX).is_file() or "_sampling" not in read_json(folder / INDEX):
        raise ValueError(
            f"{folder} is not a model of var_toolkit, and overwrite replaces only those; choose another name"
        )
    odd = sorted({path.name for path in folder.iterdir()} - {INDEX, CARD, FACTS, FILE, *FOLDERS})
    if odd:
        raise ValueError(f"{folder} holds {odd[0]!r}, which is not part of a model; move it, or choose another name")
