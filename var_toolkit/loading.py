"""Models by zoo name, directory or hub id, with their weights or, for plans and costs, without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from var_toolkit import strict_fields
from var_toolkit.devices import find_device
from var_toolkit.pipeline import Pipeline, pair
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.zoo import registry
from var_toolkit.zoo.directory import EXPECTED, INDEX, PARTS, build, load_network, network_class, read_json
from var_toolkit.zoo.hub import snapshot
from var_toolkit.zoo.registry import CONFIG, Embedded, Entry, Hub, Sampling


@dataclass(frozen=True)
class Pair:
    """Two models by name that draw one picture together (CoDe): a source that `load` and `skeleton` take."""

    drafter: str
    refiner: str
    draft_scales: int

    def __str__(self) -> str:
        return f"{self.drafter} + {self.refiner} from scale {self.draft_scales} on"


def load(source: str | Path | Pair, *, device: str = "auto", dtype: torch.dtype = torch.float32) -> Pipeline:
    """A pipeline from a zoo name, a model directory, a hub id, or a pair of these.

    An existing directory wins over a name. `device` "auto" takes CUDA where there is one, else the CPU.
    """
    where = find_device(device)
    if isinstance(source, Pair):
        pipe = pair(load(source.drafter, device="cpu"), load(source.refiner, device="cpu"), source.draft_scales)
    elif Path(source).is_dir():
        pipe = _from_directory(Path(source))
    elif str(source) in registry.ENTRIES:
        pipe = _from_entry(registry.entry(str(source)))
    elif _is_hub_id(str(source)):
        pipe = _from_directory(snapshot(str(source)))
    else:
        pipe = _from_entry(registry.entry(str(source)))  # which says what is known
    return pipe.to(where, dtype)


def skeleton(source: str | Path | Pair) -> Pipeline:
    """A pipeline of the right sizes without weights, for plans and costs: nothing is read but configurations."""
    if isinstance(source, Pair):
        return pair(skeleton(source.drafter), skeleton(source.refiner), source.draft_scales)
    if Path(source).is_dir():
        return _from_directory(Path(source), weights=False)
    if _is_hub_id(str(source)):
        return _from_directory(snapshot(str(source), weights=False), weights=False)
    found = registry.entry(str(source))
    if isinstance(found.source, Embedded):
        networks = {part: _part(folder, weights=False) for part, folder in found.source.parts().items()}
        return _assemble(networks, found)
    return _assemble(_published_sizes(found.source, found.name), found)


def load_tokenizer(source: str | Path, *, device: str = "auto", dtype: torch.dtype = torch.float32) -> MultiScaleVQ:
    """A tokenizer alone: of anything that `load` takes, of a name like "stilllife-tokenizer", or of its own folder."""
    entry = registry.ENTRIES.get(str(source))
    if (Path(source) / CONFIG).is_file():
        tokenizer = load_network(source)
    elif entry is not None and isinstance(entry.source, Embedded) and entry.source.tokenizer:
        tokenizer = load_network(Embedded.folder(entry.source.tokenizer))
    else:
        return load(source, device=device, dtype=dtype).tokenizer
    if type(tokenizer).__name__ not in EXPECTED["tokenizer"]:
        raise ValueError(f"{source} holds a {type(tokenizer).__name__}, no tokenizer")
    return tokenizer.place(find_device(device), dtype)  # type: ignore[operator]


def _part(folder: Path, weights: bool = True) -> torch.nn.Module:
    if weights:
        return load_network(folder)
    facts = read_json(folder / CONFIG)
    settings = {name: value for name, value in facts.items() if not name.startswith("_")}
    return build(network_class(facts.get("_class_name"), folder), settings, str(folder / CONFIG))


def _from_directory(folder: Path, weights: bool = True) -> Pipeline:
    index = read_json(folder / INDEX)
    for part in PARTS:
        if part not in index or not (folder / part).is_dir():
            raise ValueError(f"{folder} lacks the part {part!r}; a model directory has {INDEX}, {' and '.join(PARTS)}")
    parts = [*PARTS, *(["refiner"] if "refiner" in index else [])]
    networks = {part: _part(folder / part, weights) for part in parts}
    for part, network in networks.items():
        if type(network).__name__ not in EXPECTED[part]:
            wanted = " or ".join(EXPECTED[part])
            raise ValueError(f"{folder / part} holds a {type(network).__name__}; it must hold a {wanted}")
    names = index.get("_class_names")
    samplings = {
        key: strict_fields.build(Sampling, index.get(key, {}), where=f"{folder / INDEX}: {key}")
        for key in ("_sampling", "_refiner_sampling")
    }
    draft_scales = strict_fields.convert(int, index.get("_draft_scales", 0), where=f"{folder / INDEX}: _draft_scales")
    return _together(networks, list(samplings.values()), names, draft_scales)


def _together(
    networks: Mapping[str, Any], samplings: Sequence[Sampling], names: str | None, draft_scales: int
) -> Pipeline:
    """The parts of a model as a pipeline; the second sampling is the refiner's."""
    drafter = Pipeline(networks["tokenizer"], networks["backbone"], samplings[0], names)
    if "refiner" not in networks:
        return drafter
    return pair(drafter, Pipeline(networks["tokenizer"], networks["refiner"], samplings[1], names), draft_scales)


def _from_entry(found: Entry) -> Pipeline:
    if isinstance(found.source, Embedded):
        return _assemble({part: _part(folder) for part, folder in found.source.parts().items()}, found)
    return _assemble(_downloaded(found.source), found)


def _published_sizes(source: Hub, name: str) -> dict[str, torch.nn.Module]:
    """The networks of published files, without their weights."""
    from var_toolkit.zoo.published import FAMILIES

    backbone = FAMILIES[source.family].network
    classes = {part: MultiScaleVQ if part == "tokenizer" else backbone for part in source.configs}
    return {part: build(classes[part], config, name) for part, config in source.configs.items()}


def _downloaded(source: Hub) -> dict[str, torch.nn.Module]:
    from var_toolkit.zoo.hub import download
    from var_toolkit.zoo.published import networks_from_tensors
    from var_toolkit.zoo.weight_files import read_weights

    tensors = {part: read_weights(download(*file)) for part, file in source.files.items()}
    networks: dict[str, torch.nn.Module] = {}
    for part in source.configs.keys() - {"tokenizer"}:
        sources = (source.files["tokenizer"][1], source.files[part][1])
        vq, networks[part] = networks_from_tensors(
            source.family, tensors["tokenizer"], tensors[part], {"backbone": dict(source.configs[part])}, sources
        )
        networks.setdefault("tokenizer", vq)
    return networks


def _assemble(networks: Mapping[str, Any], found: Entry) -> Pipeline:
    if not found.draws:
        drawing = [name for name, other in registry.ENTRIES.items() if other.draws]
        raise ValueError(
            f"model {found.name!r} draws no pictures ({found.summary}); those that do: {', '.join(drawing)}"
        )
    return _together(networks, [found.sampling] * 2, found.class_names, found.draft_scales)


def _is_hub_id(source: str) -> bool:
    """Whether a source that is no directory reads user/name; below a folder that is there it is a mistyped path."""
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name and owner[0] not in ".~" and not Path(owner).is_dir()
