"""The keywords of a pipeline: what images are drawn of, and how; and their checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex, TypedDict

import torch

from var_toolkit.sampling.engine import ScaleEvent
from var_toolkit.sampling.methods import Method
from var_toolkit.sampling.plan import Plan, is_continuous

Labels = SupportsIndex | str | Iterable[SupportsIndex | str | None] | None
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Settings of one kind of tokens, which mean nothing for the other.
DISCRETE = ("top_k", "top_p", "temperature", "smooth", "guided_tokens")
CONTINUOUS = ("solver", "steps", "guidance_interval")


class Settings(TypedDict, total=False):
    """How images are drawn. None stands for the model's own default."""

    guidance_scale: float | None  # at the last scale, as VAR counts it (`sampling.plan.Stage`); 0 is off
    top_k: int | None  # 0 is off
    top_p: float | None  # 0 is off
    temperature: float | tuple[float, ...] | None  # one for all scales, or one a scale
    smooth: bool | None  # mix codes instead of drawing one
    subnet: int | None  # layers that draw the scales from `full_scales` on (VARiant); the two go together
    full_scales: int | None
    refine: str | Sequence[Sequence[int]] | None  # masked passes (HMAR): a name, lists (`refinement`), or "off"
    refine_clean: bool | None  # see `sampling.masked_refinement.Refinement`
    solver: str | None  # of continuous tokens (FlowAR): published, euler, midpoint, heun (`sampling.flow.Flow`)
    steps: int | None
    guidance_interval: tuple[float, float] | None  # times between 0 (data) and 1 (noise) at which guidance is on
    guided_tokens: int | None  # of next-token models (LlamaGen): how many tokens guidance has a say in
    speculate: str | None  # what drafts (`speculative.settings`): jacobi, draft, early-exit, ngram, eagle
    accept: str | None  # which drafts stand: standard (the default), kseq, lantern, grouped, decayed
    draft_length: int | str | None  # tokens, or scales, that a pass settles at most; "auto" follows what stood
    draft_tree: tuple[int, ...] | None  # instead: drafts behind each node of a level
    draft_confidence: float | None  # a drafter stops where its likeliest token has less mass than this
    jacobi_start: str | None  # of places not seen yet: random, repeat, likeliest
    jacobi_keep: bool | None  # drafts behind a rejection are tried as well
    exit_layers: int | None  # of the target, before an early exit
    delta: float | None  # LANTERN's bound on the mass that neighbours lend, or
    factor: float | None  # LANTERN++'s, in shares of a draft's own mass
    neighbours: int | None  # that may lend
    raw_codes: bool | None  # distances of codes as they are stored, as published
    group: int | None  # codes that stand or fall together
    boost: float | None  # of the first draft's chance
    decay: float | None  # of that boost with every draft
    method: str | Method | None  # from a plan to a plan, applied last: a function, or its name (`sampling.methods`)
    method_options: dict[str, Any] | None  # its keywords


class Drawing(Settings, total=False):
    """How images are drawn, and what of: the keywords of a call, which explains them."""

    seeds: int | Sequence[int] | None  # one an image
    generator: torch.Generator | Sequence[torch.Generator] | None  # of seeds that are not given
    plan: Plan | None  # in the place of settings
    batch_size: int  # images at a time, 8 by default
    output_type: str  # pil (the default), np, pt or latent
    return_dict: bool  # True by default
    callback_on_scale_end: Callable[[ScaleEvent], None] | None


def require_kind(plan: Plan, given: dict[str, Any]) -> None:
    """Refuse settings that mean nothing for any backbone of the plan."""
    kinds = {is_continuous(stage.backbone) for stage in plan.stages}
    if True not in kinds and (odd := given.keys() & set(CONTINUOUS)):
        raise ValueError(f"{min(odd)} is for continuous tokens (FlowAR); this model's are discrete")
    if False not in kinds and (odd := given.keys() & set(DISCRETE)):
        raise ValueError(f"{min(odd)} is for discrete tokens; this model's are continuous: use {', '.join(CONTINUOUS)}")


def is_one(labels: object) -> bool:
    """Whether this is one label rather than several; arrays of any length offer themselves as an index."""
    return (
        labels is None
        or isinstance(labels, str)
        or (isinstance(labels, SupportsIndex) and getattr(labels, "ndim", 0) == 0)
    )


def seeds_of(
    given: int | Sequence[int] | None, count: int, generator: torch.Generator | Sequence[torch.Generator] | None
) -> list[int]:
    """A seed for each of `count` images: those given, or from one generator or one an image, or torch's own."""
    if given is None and not isinstance(generator, Sequence):
        device = generator.device if generator is not None else "cpu"
        return torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()
    if given is None:
        given = [seeds_of(None, 1, one)[0] for one in generator]  # type: ignore[union-attr]
    seeds = [given] if isinstance(given, int) else [int(seed) for seed in given]
    if len(seeds) != count:
        raise ValueError(f"there are {len(seeds)} seeds for {count} class labels; give one seed an image")
    return seeds
