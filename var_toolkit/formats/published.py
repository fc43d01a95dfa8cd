"""Published files become our networks, each family by its own facts (`models.family.Family`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from var_toolkit import registry
from var_toolkit.core.schedule import SCHEDULES, increasing_sides
from var_toolkit.entries import Sampling
from var_toolkit.formats.directory import build, fill
from var_toolkit.formats.state_dicts import Tensors, Told, require, sizes_of
from var_toolkit.strict_fields import convert

ADAPTER = "adapter"  # the part of a model that joins its backbone


def required(family: str, part: str) -> tuple[str, ...]:
    """Names of tensors that identify the files of a part."""
    kind = registry.family(family)
    if part == ADAPTER and not kind.adapter:
        raise ValueError(f"family {family} has no adapter; its backbone is one file")
    return {"tokenizer": kind.tokenizer.required, ADAPTER: kind.adapter}.get(part, kind.required)


def backbone_from_tensors(family: str, tensors: Tensors, given: Mapping[str, Any], source: str) -> Any:
    """The transformer of a published state dict. `given` are arguments that the tensors do not determine."""
    kind = registry.family(family)
    told = Told.read(given, kind.config, kind.arguments, "the configuration of the backbone")
    require(tensors, kind.required, source)
    if lacking := [name for name in kind.adapter if name not in tensors]:
        raise ValueError(f"{source} lacks {lacking[0]!r}; give the file of the adapter as well")
    ours = {kind.renamed(name): tensor for name, tensor in kind.unchunked(tensors).items()}
    settings = kind.completed(told.merged(sizes_of(kind.sizes, ours, source)), ours, source)
    network = build(kind.network, settings, source)
    fill(network, {name: tensor for name, tensor in ours.items() if not name.endswith(kind.dropped)}, source)
    return network.float().eval()


def networks_from_tensors(
    family: str, tensors: Mapping[str, Tensors], config: Mapping[str, Any], sources: Mapping[str, str]
) -> dict[str, Any]:
    """The networks of a published model by part, of those parts whose tensors are given; an adapter is none."""
    if ADAPTER in tensors:
        joined = {**tensors["backbone"], **tensors[ADAPTER]}
        tensors = {**{part: found for part, found in tensors.items() if part != ADAPTER}, "backbone": joined}
    networks = {
        part: backbone_from_tensors(family, found, config.get(part, {}), sources[part])
        for part, found in tensors.items()
        if part != "tokenizer"
    }
    if "tokenizer" in tensors:
        told = config.get("tokenizer", {})
        schedule = next(iter(networks.values())).scales.patch_nums if networks else _schedule(told)
        read = registry.family(family).tokenizer.read
        networks["tokenizer"] = read(tensors["tokenizer"], told, schedule, sources["tokenizer"])
    return networks


def published_sampling(family: str, config: Any, file: str) -> Sampling:
    """The published settings of a backbone: of that file, else of that width, else of the first of its family."""
    known = [(entry.sampling, source) for entry, source in registry.published(family) if not entry.draft_scales]
    named = [sampling for sampling, source in known if PurePosixPath(source.files["backbone"][1]).name == file]
    alike = [found for found, source in known if source.configs["backbone"].get("embed_dim") == config.embed_dim]
    return next(iter([*named, *alike, *(sampling for sampling, _ in known)]), registry.family(family).sampling)


def _schedule(told: Mapping[str, Any]) -> tuple[int, ...]:
    """The token maps of a tokenizer without a backbone: those in its configuration, else those of 256 px."""
    where = "the configuration of the tokenizer"
    for name in ("patch_nums", "v_patch_nums"):
        if name in told:
            return increasing_sides(convert(tuple[int, ...], told[name], where=f"{where}: {name}"))
    return (convert(int, told["side"], where=f"{where}: side"),) if "side" in told else SCHEDULES["256"]
