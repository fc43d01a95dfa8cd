"""Load models by zoo name, directory or hub id, with weights, or without them for plans and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from var_toolkit import registry, strict_fields
from var_toolkit.conditions.class_names import Named
from var_toolkit.conditions.class_names import read as read_class_names
from var_toolkit.conditions.text import TextInput, text_of
from var_toolkit.conditions.text_encoders import TransformersEncoder
from var_toolkit.devices import find_device
from var_toolkit.formats.directory import (
    INDEX,
    PARTS,
    build,
    empty_network,
    expected,
    load_network,
    read_json,
)
from var_toolkit.formats.facts import Facts, of_both, of_entry, read_facts
from var_toolkit.formats.fitting import AnyTokenizer, fitted
from var_toolkit.formats.frequent_codes import read_frequent
from var_toolkit.formats.hub import at_revision, is_hub_id, snapshot, with_revision
from var_toolkit.formats.lone_tokenizers import ALONE, find_tokenizer, read_autoencoder, read_tokenizer
from var_toolkit.formats.peft_files import CONFIG as ADAPTER_CONFIG
from var_toolkit.formats.peft_files import read_adapter
from var_toolkit.formats.published import ADAPTER
from var_toolkit.formats.text_folders import checked_encoder, read_text_encoder
from var_toolkit.guidance import read_sampling, weight
from var_toolkit.loaded_adapters import require_adaptable, require_weight
from var_toolkit.methods.collaborative import collaborative, require_one_tokenizer
from var_toolkit.methods.distilled import is_distilled, with_teacher
from var_toolkit.methods.speculative.settings import DraftModel
from var_toolkit.pipeline import Pipeline
from var_toolkit.precision import precision_of
from var_toolkit.registry import CONFIG, Embedded, Entry, Hub, Sampling
from var_toolkit.tokenizers.codebook import CodebookTokenizer
from var_toolkit.tokenizers.kl import KLTokenizer


@dataclass(frozen=True)
class Pair:
    """Two models by name that draw one image together (CoDe): a source for `load` and `skeleton`."""

    drafter: str
    refiner: str
    draft_scales: int

    def __str__(self) -> str:
        return f"{self.drafter} + {self.refiner} from scale {self.draft_scales} on"


@dataclass(frozen=True)
class Drafting:
    """A model and its draft model, by name: a source for `load` and `skeleton`."""

    model: str
    draft_model: str

    def __str__(self) -> str:
        return f"{self.model}, drafts by {self.draft_model}"


Source = str | Path | Pair | Drafting


class Part(NamedTuple):
    """A network, and its name in errors."""

    network: Any
    source: str


def load(
    source: Source,
    *,
    tokenizer: str | Path | None = None,
    draft_model: str | Path | None = None,
    revision: str | None = None,
    adapters: Sequence[tuple[str | Path, float]] = (),
    device: str = "auto",
    dtype: str | torch.dtype = torch.float32,
) -> Pipeline:
    """A pipeline from a zoo name, a model directory, a hub id user/name or user/name@revision, or a pair of these.

    A `draft_model` is a smaller model of the same kind, or a head trained for this one: a name, a directory, a hub id.

    An existing directory has precedence over a name. For a model of continuous tokens, `tokenizer` replaces its own by
    any AutoencoderKL of diffusers with the same number of channels: a directory, a hub id, or a name. A `revision` of a
    hub id is a branch, a tag or a commit. `adapters` are folders in peft's format with their weights
    (`Pipeline.load_lora_weights`). `device` "auto" is CUDA if available, else the CPU. `dtype` may also be "int8" or
    "float8" (`Pipeline.quantize`) or "auto", the fastest precision for the model on the device (`precision`); a model
    that was saved in int8 stays so. ValueError in one line for a source that does not exist, is damaged or does not
    fit.
    """
    where = find_device(device)
    precision_of(dtype, where)  # raises ValueError
    if revision is not None:
        source = at_revision(str(source), revision)
    if draft_model is not None:
        source = Drafting(str(source), str(draft_model))
    if tokenizer is not None or adapters:
        # Raises ValueError for parts that do not fit, before any weights are read.
        skeleton(source, tokenizer=tokenizer, adapters=adapters)
    pipe = _opened(source, tokenizer, weights=True)
    for folder, share in adapters:
        pipe.load_lora_weights(folder, weight=share)
    precision = precision_of(dtype, where, pipe.backbones)
    if precision.quantized == "int8":
        pipe.quantize()
    pipe.to(where, precision.wide)
    return pipe.quantize("float8") if precision.quantized == "float8" else pipe  # there, since it then stays there


def skeleton(
    source: Source, *, tokenizer: str | Path | None = None, adapters: Sequence[tuple[str | Path, float]] = ()
) -> Pipeline:
    """A pipeline without weights (on the meta device), for plans and costs: only configurations are read.

    ValueError in one line for `adapters` that do not fit.
    """
    pipe = _opened(source, tokenizer, weights=False)
    for folder, share in adapters:
        require_adaptable(pipe.backbone, read_adapter(Path(folder)))
        require_weight(share, str(folder))
    return pipe


def load_tokenizer(source: str | Path, *, device: str = "auto", dtype: torch.dtype = torch.float32) -> AnyTokenizer:
    """A tokenizer alone: of any source of `load`, by a name such as "stilllife-tokenizer", or from its own folder.

    An AutoencoderKL may also be the `vae` of a pipeline of diffusers, in a directory or on the hub.
    """
    known = registry.find_entry(str(source))
    if known is not None and isinstance(known.source, Hub) and not Path(source).is_dir():
        return _published_tokenizer(known.source).place(find_device(device), dtype)
    try:
        place = find_tokenizer(source, ALONE)
    except ValueError:
        skeleton(source)  # raises ValueError for an unknown source, before anything large is downloaded
        return load(source, device=device, dtype=dtype).tokenizer
    network = read_tokenizer(place)
    tokenizer: Any = network if isinstance(network, CodebookTokenizer) else KLTokenizer(network)
    placed: AnyTokenizer = tokenizer.place(find_device(device), dtype)
    return placed


def tokenizer_network(source: str | Path) -> nn.Module:
    """The network of a tokenizer, for training: from a directory, by a name of the zoo, or from a hub id."""
    known = registry.find_entry(str(source))
    if known is None or not isinstance(known.source, Hub) or Path(source).is_dir():
        return read_tokenizer(find_tokenizer(source))
    return getattr(tokenizer := _published_tokenizer(known.source), "autoencoder", tokenizer)


def _published_tokenizer(source: Hub) -> AnyTokenizer:
    """The tokenizer of published files, with the token maps of their backbone, which is not downloaded."""
    backbone = _published_sizes(source, ["backbone"])["backbone"]
    part = _downloaded(source, ["tokenizer"])["tokenizer"]
    return fitted(part.network, backbone.network, (part.source, backbone.source))


def _opened(source: Source, tokenizer: str | Path | None, *, weights: bool) -> Pipeline:
    if isinstance(source, Pair):
        drafter, refiner = (_opened(half, tokenizer, weights=weights) for half in (source.drafter, source.refiner))
        return code(drafter, refiner, source.draft_scales)
    if isinstance(source, Drafting):
        pipe = _opened(source.model, tokenizer, weights=weights)
        pipe.draft_model = _draft_model(source.draft_model, tokenizer, weights)
        return pipe
    given = {}
    if tokenizer is not None:
        given["tokenizer"] = Part(read_autoencoder(tokenizer, weights=weights), str(tokenizer))
    if not str(source).strip():
        raise ValueError(f"the model's name is empty; give {registry.WAYS}, or a model directory")
    if Path(source).is_dir():
        return _with_codes(_from_directory(Path(source), given, weights), Path(source))
    if is_hub_id(str(source)) and registry.find_entry(str(source)) is None:
        folder = snapshot(str(source), weights)
        return _with_codes(_from_directory(folder, given, weights), folder)
    found = registry.entry(str(source))  # raises ValueError for an unknown name
    pipe = _from_entry(found, given, weights)
    own = found.source.backbone if isinstance(found.source, Embedded) else None
    return pipe if own is None else _with_codes(pipe, Embedded.folder(own))


def _with_codes(pipe: Pipeline, folder: Path) -> Pipeline:
    """The pipeline, with the frequent codes that a folder may tell."""
    pipe.frequent_codes = read_frequent(folder, getattr(pipe.backbone.config, "vocab_size", 0))
    return pipe


def _draft_model(source: str, tokenizer: str | Path | None, weights: bool) -> DraftModel:
    """A draft head by its name or folder, or the backbone of a model."""
    place = _head_folder(source)
    if place is not None:
        network = (load_network if weights else empty_network)(place)
        if type(network).__name__ not in (heads := registry.networks("draft_head")):
            raise ValueError(f"{place} holds a {type(network).__name__}; alone it must be a {' or '.join(heads)}")
        return DraftModel(network, source, frequent=read_frequent(place, cast(Any, network).config.vocab_size))
    pipe = _opened(source, tokenizer, weights=weights)
    guided = weight({}, pipe.sampling, pipe.backbone) > 0
    return DraftModel(pipe.backbone, source, guided, pipe.tokenizer, pipe.frequent_codes)


def _head_folder(source: str) -> Path | None:
    """The folder of a draft head; None for anything else."""
    folder = Path(source)
    if (folder / CONFIG).is_file() and not (folder / INDEX).is_file():
        return folder
    known = registry.find_entry(source)
    if known is None or not isinstance(known.source, Embedded) or known.source.draft_head is None:
        return None
    return Embedded.folder(known.source.draft_head)


def _from_directory(folder: Path, given: Mapping[str, Part], weights: bool) -> Pipeline:
    if not (folder / INDEX).exists() and (folder / "final" / INDEX).is_file():
        raise ValueError(f"{folder / INDEX} is missing; did you mean {folder / 'final'}?")
    if not (folder / INDEX).exists() and (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds an adapter; give its base model, and this folder as --adapter")
    index = read_json(folder / INDEX)
    for part in PARTS:
        if part not in index or not (folder / part).is_dir():
            raise ValueError(f"{folder} lacks the part {part!r}; a model directory has {INDEX}, {' and '.join(PARTS)}")
    names = [*PARTS, *(["refiner"] if "refiner" in index else [])]
    parts = {**_read({name: folder / name for name in names if name not in given}, weights), **given}
    for name, (network, where) in parts.items():
        if type(network).__name__ not in (classes := expected(name)):
            raise ValueError(f"{where} holds a {type(network).__name__}; it must hold a {' or '.join(classes)}")
    samplings = [
        read_sampling(index.get(key, {}), parts.get(part, parts["backbone"]).network, where=f"{folder / INDEX}: {key}")
        for key, part in (("_sampling", "backbone"), ("_refiner_sampling", "refiner"))
    ]
    draft_scales = strict_fields.convert(int, index.get("_draft_scales", 0), where=f"{folder / INDEX}: _draft_scales")
    facts, text = _with(given, read_facts(folder)), text_of(parts["backbone"].network)
    if text is not None:
        encoder = read_text_encoder(folder, index, text, weights)
        return _together(parts, samplings, None, draft_scales, facts, encoder)
    classes = parts["backbone"].network.config.num_classes
    class_names = read_class_names(index.get("_class_names"), classes, f"{folder / INDEX}: _class_names")
    return _together(parts, samplings, class_names, draft_scales, facts)


def _from_entry(found: Entry, given: Mapping[str, Part], weights: bool) -> Pipeline:
    if not found.draws:
        raise ValueError(
            f"model {found.name!r} draws no images ({found.summary}); give a model that does, such as "
            f"{registry.DEFAULT!r} (`vargen models` lists them)"
        )
    if isinstance(found.source, Embedded):
        folders = found.source.parts()
        own = _read({part: folder for part, folder in folders.items() if part not in given}, weights)
    else:
        lacking = [part for part in found.source.files if part not in given]
        own = _downloaded(found.source, lacking) if weights else _published_sizes(found.source, lacking)
    facts = _with(given, of_entry(found))
    parts = {**own, **given}
    text, named = text_of(parts["backbone"].network), found.class_names != "none"
    encoder = None if text is None else _encoder(found, parts, text)
    names = found.class_names if named and text is None else None
    return _together(parts, [found.sampling] * 2, names, found.draft_scales, facts, encoder)


def _encoder(found: Entry, parts: Mapping[str, Part], text: TextInput) -> Any:
    """The text encoder of a named model."""
    if isinstance(found.source, Hub):
        return found.source.text_encoder and TransformersEncoder(found.source.text_encoder, text.longest)
    return checked_encoder(*parts["text_encoder"])


def _read(folders: Mapping[str, Path], weights: bool) -> dict[str, Part]:
    open_one = load_network if weights else empty_network
    return {part: Part(open_one(folder), str(folder)) for part, folder in folders.items()}


def _together(
    parts: Mapping[str, Part],
    samplings: Sequence[Sampling],
    names: Named,
    draft_scales: int,
    facts: Facts,
    text_encoder: Any = None,
) -> Pipeline:
    """The parts of a model as a pipeline; the second sampling is the refiner's."""
    tokenizer = parts["tokenizer"]
    pipes = []
    for part, sampling in zip(("backbone", "refiner"), samplings, strict=True):
        if part in parts:
            backbone, where = parts[part]
            seen = fitted(tokenizer.network, backbone, (tokenizer.source, where))
            pipes.append(Pipeline(seen, backbone, sampling, names))
    drafter, *refiners = pipes
    pipe = code(drafter, refiners[0], draft_scales) if refiners else drafter
    pipe.facts, pipe.text_encoder = facts, text_encoder
    return pipe


def _with(given: Mapping[str, Part], facts: Facts) -> Facts:
    """The facts of a model after some of its parts were replaced."""
    for part, (_, where) in given.items():
        facts = facts.altered(f"the {part} of {where}")
    return facts


def _published_sizes(source: Hub, parts: Sequence[str]) -> dict[str, Part]:
    """Networks of published files, without their weights."""
    family = registry.family(source.family)
    found = {}
    for part in parts:
        if part == ADAPTER:
            continue
        config, file = source.configs[part], source.files[part][1]
        empty = family.tokenizer.empty(config, file) if part == "tokenizer" else build(family.network, config, file)
        found[part] = Part(empty, file)
    return found


def _downloaded(source: Hub, parts: Sequence[str]) -> dict[str, Part]:
    from var_toolkit.formats.hub import download, download_folder
    from var_toolkit.formats.published import networks_from_tensors, required
    from var_toolkit.formats.weight_files import read_weights

    tensors = {}
    for part in parts:
        repository, file, commit = source.at(part)
        fetch = download_folder if file.endswith("/") else download  # a folder holds shards
        tensors[part] = read_weights(fetch(with_revision(repository, commit), file), required(source.family, part))
    files = {part: source.files[part][1] for part in parts}
    networks = networks_from_tensors(source.family, tensors, source.configs, files)
    return {part: Part(network, files[part]) for part, network in networks.items()}


def _require_one_text_encoder(drafter: Pipeline, refiner: Pipeline) -> None:
    """ValueError if the refiner was trained on what another text encoder says; one without an encoder is trusted."""
    names = [half.text_encoder.name for half in (drafter, refiner) if half.text_encoder is not None]
    if len(set(names)) > 1:
        raise ValueError(
            f"drafter and refiner have different text encoders, {names[0]} and {names[1]}; train the refiner with the "
            "drafter's (objective_options: text_encoder)"
        )


def code(drafter: Pipeline, refiner: Pipeline, draft_scales: int) -> Pipeline:
    """One pipeline that draws with two models (CoDe).

    ValueError if their tokenizers, text encoders or classes differ.
    """
    if drafter.refiner or refiner.refiner:
        raise ValueError("one of the two is itself a pair; bind a plan of more than two models in Python (`core.bind`)")
    require_one_tokenizer(drafter.tokenizer, refiner.tokenizer)
    _require_one_text_encoder(drafter, refiner)
    if is_distilled(drafter.backbone):
        with_teacher(drafter.plan(), refiner.plan(), first=draft_scales)  # raises ValueError if it does not fit
    else:
        collaborative(drafter.plan(), refiner.plan(), draft_scales=draft_scales)  # raises ValueError if it does not fit
    shared = Pipeline(drafter.tokenizer, refiner.backbone, refiner.sampling, refiner.named)
    ours = (drafter.tokenizer, drafter.backbone, drafter.sampling, drafter.named)
    facts, encoder = of_both(drafter.facts, refiner.facts), drafter.text_encoder
    return Pipeline(*ours, refiner=shared, draft_scales=draft_scales, facts=facts, text_encoder=encoder)
