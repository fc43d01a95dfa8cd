"""Tokenizers without a backbone: by directory, by name, or by hub id."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from var_toolkit import registry
from var_toolkit.formats import diffusers_config
from var_toolkit.formats.directory import (
    empty_network,
    expected,
    is_ours,
    load_network,
    network_class,
    pretrained,
    read_json,
)
from var_toolkit.formats.hub import download, download_network, is_hub_id, reachable, split_revision
from var_toolkit.registry import CONFIG, Embedded

ALONE = ("", "vae")  # where a tokenizer lies in its own folder, and in a pipeline of diffusers
ANYWHERE = (*ALONE, "tokenizer")  # also in a model of ours


class Place(NamedTuple):
    """The location of a tokenizer."""

    folder: Path  # with its config.json
    repository: str | None = None  # the hub id from which its weights will be downloaded
    subfolder: str = ""


def find_tokenizer(source: str | Path, subfolders: tuple[str, ...] = ANYWHERE) -> Place:
    """Find a tokenizer: in a directory or a hub repository, in one of the subfolders, or by an embedded name.

    ValueError in one line if it does not exist.
    """
    if Path(source).is_dir():
        found = [Path(source) / name for name in subfolders if (Path(source) / name / CONFIG).is_file()]
        if not found:
            raise ValueError(f"{source} has no tokenizer: {CONFIG} is not in it, in vae/ or in tokenizer/")
        return Place(found[0])
    if is_hub_id(str(source)) and registry.find_entry(str(source)) is None:
        return _on_hub(str(source), subfolders)
    part = registry.entry(str(source)).source
    if not isinstance(part, Embedded) or part.tokenizer is None:
        raise ValueError(f"{str(source)!r} is not the name of a tokenizer; give a directory or a hub id user/name")
    return Place(Embedded.folder(part.tokenizer))


def read_tokenizer(place: Place, *, weights: bool = True) -> nn.Module:
    """The tokenizer at a location; with `weights` false, on the meta device."""
    facts = read_json(place.folder / CONFIG)
    cls = network_class(facts.get("_class_name"), place.folder)
    if cls.__name__ not in expected("tokenizer"):
        raise ValueError(f"{place.repository or place.folder} holds a {cls.__name__}, which is not a tokenizer")
    if not weights:
        return empty_network(place.folder)
    if place.repository is None:
        return load_network(place.folder)
    if not is_ours(cls):
        diffusers_config.check(cls, facts, place.folder / CONFIG)
        name, revision = split_revision(place.repository)
        return pretrained(cls, name, subfolder=place.subfolder, revision=revision, offline=not reachable())
    return load_network(download_network(place.repository, place.subfolder))


def read_autoencoder(source: str | Path, *, weights: bool = True) -> nn.Module:
    """A continuous tokenizer from any source. ValueError in one line if it is of another kind."""
    network = read_tokenizer(find_tokenizer(source), weights=weights)
    if is_ours(type(network)):
        raise ValueError(f"{source} holds a {type(network).__name__}; give an AutoencoderKL of diffusers")
    return network


def _on_hub(repository: str, subfolders: tuple[str, ...]) -> Place:
    problems = []
    for subfolder in subfolders:
        try:
            return Place(download(repository, str(Path(subfolder) / CONFIG)).parent, repository, subfolder)
        except ValueError as problem:
            problems.append(problem)
    raise problems[0]
