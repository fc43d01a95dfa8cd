"""The keywords of a pipeline: which images are drawn, and how; and their checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex, TypedDict

import torch

from var_toolkit.core.engine import ScaleEvent
from var_toolkit.core.plan import Plan
from var_toolkit.heads.flow import Flow
from var_toolkit.methods.by_name import Method
from var_toolkit.ranges import RANGES, brief, checked, flag

Labels = SupportsIndex | str | Iterable[SupportsIndex | str | None] | None
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Settings of one kind of tokens, which mean nothing for the other.
DISCRETE = ("top_k", "top_p", "temperature", "smooth", "guided_tokens")
CONTINUOUS = ("solver", "steps", "guidance_interval")
FLAGS = ("smooth", "refine_clean", "jacobi_keep", "raw_codes")


class Settings(TypedDict, total=False):
    """How images are drawn. None means the model's own default."""

    cfg: float | None  # guidance at the last scale, as the authors of the model count: VAR 0 is off; LlamaGen 1
    guidance_scale: float | None  # or this, as diffusers counts for every model: 1 is off
    top_k: int | None  # 0 is off
    top_p: float | None  # 0 is off
    temperature: float | tuple[float, ...] | None  # one for all scales, or one per scale
    smooth: bool | None  # mix codes instead of drawing one
    subnet: int | None  # layers for the scales from `full_scales` on (VARiant); the two go together
    full_scales: int | None
    refine: str | Sequence[Sequence[int]] | None  # masked passes (HMAR), as `methods.masked_passes` takes them
    refine_clean: bool | None  # see `core.plan.Step`
    solver: str | None  # of continuous tokens (FlowAR): published, euler, midpoint, heun (`heads.flow.Flow`)
    steps: int | None
    guidance_interval: tuple[float, float] | None  # times between 0 (data) and 1 (noise) at which guidance is on
    guidance_scales: tuple[int | None, int | None] | None  # scales with guidance, from one to before another
    guided_tokens: int | None  # of next-token models (LlamaGen): how many tokens are guided
    speculate: str | None  # proposer (`methods.speculative.settings`): jacobi, draft, early-exit, ngram, eagle
    accept: str | None  # acceptance rule: standard (the default), kseq, lantern, grouped, decayed
    draft_length: int | str | None  # tokens (VAR: scales) that a pass decides at most; "auto" adapts
    draft_tree: tuple[int, ...] | None  # instead: children of each node, one number per level
    draft_confidence: float | None  # a proposer stops where no token is as likely as this
    jacobi_start: str | None  # of positions without a draft: random, repeat, likeliest
    jacobi_keep: bool | None  # drafts after a rejection are tried again
    exit_layers: int | None  # of the target, before an early exit
    delta: float | None  # LANTERN's bound on the probability of neighbours that counts for a draft, or
    factor: float | None  # LANTERN++'s, as a factor on the draft's own
    neighbours: int | None  # that count
    raw_codes: bool | None  # distances of codes as they are stored, as published
    group: int | None  # codes that are judged together
    boost: float | None  # factor on the acceptance probability of the first draft
    decay: float | None  # of that factor with every draft
    method: str | Method | None  # from a plan to a plan, applied last: a function, or its name (`methods.by_name`)
    method_options: dict[str, Any] | None  # its keywords


class Drawing(Settings, total=False):
    """How images are drawn, and which: the keywords of a call, which explains them."""

    seeds: int | Iterable[int] | None  # one per image
    generator: torch.Generator | Sequence[torch.Generator] | None  # of seeds that are not given
    plan: Plan | None  # instead of settings
    batch_size: int  # images at a time, 8 by default
    output_type: str  # pil (the default), np, pt or latent
    callback_on_scale_end: Callable[[ScaleEvent], None] | None


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None, numbers as Python's own. ValueError of one line if one is not in its range."""
    return {name: _checked(name, value) for name, value in settings.items() if value is not None}


def _checked(name: str, value: Any) -> Any:
    if name in FLAGS:
        return flag(name, value)
    if name == "temperature" and _is_list(value):
        return tuple(checked(name, one) for one in value)
    if name == "guidance_scales":
        return _span(value)
    other = name in ("guidance_scale", "guidance_interval") or (name == "draft_length" and value == "auto")
    return checked(name, value) if name in RANGES and not other else value


def _span(value: Any) -> tuple[int | None, int | None]:
    ends = tuple(value) if _is_list(value) else (value,)
    if len(ends) != 2 or not all(end is None or (type(end) is int and end >= 0) for end in ends):
        raise ValueError(f"guidance_scales is {brief(value)}; it must be two scales, (first, end), such as (0, 9)")
    return ends


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def require_kind(backbones: Sequence[Any], given: dict[str, Any]) -> None:
    """Refuse settings that mean nothing for the head of any backbone."""
    kinds = {isinstance(backbone.default_head, Flow) for backbone in backbones}
    if True not in kinds and (odd := given.keys() & set(CONTINUOUS)):
        raise ValueError(f"{min(odd)} is for continuous tokens (FlowAR); this model's are discrete")
    if False not in kinds and (odd := given.keys() & set(DISCRETE)):
        raise ValueError(f"{min(odd)} is for discrete tokens; this model's are continuous: use {', '.join(CONTINUOUS)}")


def is_one(labels: object) -> bool:
    """Whether this is one label rather than several; arrays of any length offer themselves as an index."""
    return (
        labels is None
        or isinstance(labels, str)
        or not isinstance(labels, Iterable)
        or (isinstance(labels, SupportsIndex) and getattr(labels, "ndim", 0) == 0)
    )


def listed(labels: Labels) -> Labels:
    """Labels of an iterator as a list, so that all of them are checked before anything is drawn."""
    return list(labels) if isinstance(labels, Iterator) else labels


def seeds_of(
    given: int | Iterable[int] | None, count: int, generator: torch.Generator | Sequence[torch.Generator] | None
) -> list[int]:
    """A seed for each of `count` images: those given, or from one generator or one per image, or torch's own.

    NumPy's numbers and arrays are taken, and tensors. ValueError names what is not a seed, or how many there are.
    """
    if given is not None:
        wanted: list[Any] = list(given) if _is_list(given) else [given]  # type: ignore[arg-type]
        seeds = [checked("seed", one.item() if getattr(one, "ndim", None) == 0 else one) for one in wanted]
    elif isinstance(generator, Sequence):
        seeds = [seed for one in generator for seed in seeds_of(None, 1, one)]
    elif generator is None or isinstance(generator, torch.Generator):
        device = generator.device if generator is not None else "cpu"
        seeds = torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()
    else:
        raise ValueError(f"generator is {brief(generator)}; it must be a torch.Generator, or one per image")
    if len(seeds) != count:
        raise ValueError(f"there are {len(seeds)} seeds for {count} class labels; give one seed per image")
    return seeds
