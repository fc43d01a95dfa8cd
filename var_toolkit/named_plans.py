"""The decoding plans that the page and the server offer for a model: those that fit it, its default plan first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from var_toolkit.core.plan import Tokens
from var_toolkit.heads.diffusion import Diffusion
from var_toolkit.heads.flow import Flow
from var_toolkit.loading import Drafting, Source, skeleton
from var_toolkit.methods.masked_passes import OFF
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import ENTRIES, Entry, find_entry

Named = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Choice:
    """A named plan: the source to load and the settings for `Pipeline.plan`."""

    name: str
    source: Source
    settings: Mapping[str, Any] = field(default_factory=dict)


def choices(model: str) -> list[Choice]:
    """The plans of a model, given by name, directory or hub id; only configurations are read.

    ValueError if there is no such model.
    """
    own = [Choice(name, model, settings) for name, settings in within(skeleton(model)).items()]
    return [*own, *_together(model)]


def within(pipe: Pipeline) -> dict[str, Mapping[str, Any]]:
    """The plans of a model that need no other one, its own first: settings by name. It needs no weights."""
    own = str(pipe.bind(pipe.plan()))
    by_plan: dict[str, Named] = {}
    for name, settings in _within(pipe):
        by_plan.setdefault(str(pipe.bind(pipe.plan(**settings))), (name, settings))
    first = by_plan.pop(own, ("As the model comes", {}))
    return dict([first, *by_plan.values()])


def _within(pipe: Pipeline) -> Iterator[Named]:
    """Plans that need no other model."""
    step = pipe.plan().steps[0]
    if isinstance(step.places, Tokens):
        yield "Plain, token by token", {}
        yield "Speculative: its own last pass drafts (Jacobi)", {"speculate": "jacobi", **_same_guidance(pipe)}
    elif isinstance(step.head, Flow):
        yield f"Plain, {pipe.sampling.solver} solver with {pipe.sampling.steps} steps", {}
        yield "Midpoint solver with 8 steps", {"solver": "midpoint", "steps": 8}
    elif isinstance(step.head, Diffusion):
        yield "Plain, the published solver", {}
        yield "DPM-Solver++ with 10 steps", {"solver": "dpm++", "denoising_steps": 10}
    elif all(backbone.has_subnets for backbone in pipe.backbones):
        yield from _depths(pipe)
    elif pipe.refiner is not None:
        yield _shared(pipe.draft_scales), {}
    elif hasattr(pipe.backbone, "refined"):
        yield "Plain, one pass a scale", {"refine": OFF}
        yield "Masked passes as published (HMAR)", {"refine": "published"}
    else:
        yield "Plain, one pass a scale", {}


def _same_guidance(pipe: Pipeline) -> dict[str, Any]:
    """The mean where guidance grows from token to token, since drafts are verified with the same at all."""
    first, last = pipe.sampling.first_cfg, pipe.sampling.cfg
    return {} if first is None or last is None else {"cfg": (first + last) / 2}


def _depths(pipe: Pipeline) -> Iterator[Named]:
    """All layers, and two thirds or one third of the layers for the finest third of the scales.

    These are the subnets that the embedded VAR was trained with.
    """
    depth, scales = max(len(backbone.blocks) for backbone in pipe.backbones), len(pipe.backbone.scales)
    shared = "" if pipe.refiner is None else _shared(pipe.draft_scales)
    yield shared or "Plain, all layers", {"subnet": depth, "full_scales": scales}
    full = -(-2 * scales // 3)
    for subnet in (2 * depth // 3, depth // 3):
        if subnet >= 2:
            name = f"VARiant: {subnet} of {depth} layers from scale {full} on"
            yield f"{shared}; {name}" if shared else name, {"subnet": subnet, "full_scales": full}


def _together(model: str) -> Iterator[Choice]:
    """Plans that combine a named model with another named model that was trained for it."""
    known = find_entry(model)
    if known is None:
        return
    for pair in ENTRIES.values():
        if pair is not known and pair.draft_scales and _backbone(pair) == _backbone(known):
            yield Choice(f"{_shared(pair.draft_scales)}: {pair.name}", pair.name)
    for drafter, network in known.draft_models.items():
        yield Choice(f"Speculative: {network} drafts", Drafting(model, network), {"speculate": drafter})


def _shared(draft_scales: int) -> str:
    return f"CoDe, refiner from scale {draft_scales} on"


def _backbone(entry: Entry) -> Any:
    """The weights that draw the first scales: a folder or a file."""
    source: Any = entry.source
    return source.files["backbone"] if hasattr(source, "files") else source.backbone
