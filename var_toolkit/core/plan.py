"""Decoding plans: which backbone draws which scales of an image, and how.

A method of next-scale decoding is a way to build a plan; one engine runs every plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from var_toolkit.core.refinement_schedule import Refinement
from var_toolkit.core.schedule import Scales
from var_toolkit.core.subnet import Subnet
from var_toolkit.heads.flow import Flow
from var_toolkit.ranges import checked


class Backbone(Protocol):
    """What a plan requires of a network; `blocks` are its layers.

    The engine requires more, depending on the kind: of one that draws ids of a codebook scale by scale `condition`,
    `hidden` and `logits` (`backbones.var`), and for masked refinement `refined` (`backbones.hmar`); of one that draws
    continuous tokens `field` in place of `logits` (`backbones.flowar`); of one that draws a map token by token
    `next_hidden` and `next_logits` (`backbones.raster_gpt`). One that is `markov` attends to no scale but the
    one it draws, so it needs no prefill.
    """

    scales: Scales
    config: Any
    markov: bool

    @property
    def blocks(self) -> Any: ...

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> Any: ...

    def cache_values(self, tokens: int) -> int: ...

    def layer_work(self, new: int, context: int) -> int: ...

    def head_work(self, drawn: int) -> int: ...


class Tokenizer(Protocol):
    """What the engine requires of a tokenizer.

    `pyramid` knows how the latent grows by the codes of a scale, and what of it the next scale sees; that of discrete
    tokens also what code each stands for (`tokenizers.residual_quantizer`, `tokenizers.latent_pyramid`). `meaning` are
    the tensors that decide what tokens stand for: two tokenizers with the same ones can share an image.
    """

    scales: Scales

    @property
    def pyramid(self) -> Any: ...

    def meaning(self) -> Mapping[str, Tensor]: ...

    def decode(self, latent_BChw: Tensor) -> Tensor: ...


class Speculates(Protocol):
    """Speculative decoding of a plan of one stage (`speculative`); `networks` are those that draft."""

    @property
    def networks(self) -> Sequence[Any]: ...

    def require_fit(self, stage: Stage) -> None: ...

    def decode(self, plan: Plan, labels_B: Tensor, noise: Any, *, on_scale: Any = None) -> Any: ...


@dataclass(frozen=True)
class Stage:
    """Some consecutive scales, drawn by one backbone under one set of settings.

    `guidance` is VAR's: what the last scale of the image gets, even if the stage draws others. Scale k of K gets
    guidance * k / (K - 1), the first one none; the usual guidance scale is 1 more. A next-token model has one
    scale, and all of it at every token. 0 switches guidance off and halves the work. `subnet` says which layers the
    finer scales run through; None for all. `refine` says which scales are drawn in several masked passes. `flow` says
    how maps of continuous tokens are drawn; backbones of such tokens have one, and no others. `guided_tokens` is
    the number of guided tokens at the start of a next-token model's map; None for all. `speculation` replaces most
    passes by drafts; a plan with one has no other stage.
    """

    backbone: Backbone
    scales: range
    guidance: float = 0.0
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0
    smooth: bool = False
    subnet: Subnet | None = None
    refine: Refinement | None = None
    flow: Flow | None = None
    guided_tokens: int | None = None
    speculation: Speculates | None = None

    def __post_init__(self) -> None:
        self._require_scales(len(self.backbone.scales))
        for name in ("guidance", "top_k", "top_p", "temperature", "guided_tokens"):
            if getattr(self, name) is not None or name != "guided_tokens":
                object.__setattr__(self, name, checked(name, getattr(self, name)))
        self._require_kind(type(self.backbone).__name__)
        if self.refine is not None:
            self._require_refinable(self.refine)
        if self.speculation is not None:
            self.speculation.require_fit(self)

    def _require_scales(self, last: int) -> None:
        found = self.scales
        if not (isinstance(found, range) and 0 <= found.start < found.stop <= last and found.step == 1):
            raise ValueError(f"a stage has {found}; it must be a range of consecutive scales out of 0 to {last - 1}")

    def _require_kind(self, name: str) -> None:
        """ValueError for settings that only another kind of backbone has."""
        if self.flow is None and is_continuous(self.backbone):
            raise ValueError(f"{name} draws continuous tokens and needs a flow (`sampling.flow.Flow`)")
        if self.flow is not None and not is_continuous(self.backbone):
            raise ValueError(f"{name} draws discrete tokens; flow is for continuous ones")
        if self.smooth and is_next_token(self.backbone):
            raise ValueError(f"{name} draws one token after another; smooth mixes the codes of whole maps")
        if self.subnet is not None and not has_subnets(self.backbone):
            raise ValueError(f"{name} has no subnets; VARiant needs VAR")
        if self.guided_tokens is not None and not is_next_token(self.backbone):
            raise ValueError(f"guided_tokens is for next-token models, not {name}")

    def _require_refinable(self, refine: Refinement) -> None:
        if not hasattr(self.backbone, "refined"):
            raise ValueError(f"refine needs a backbone with masked passes (HMAR), not {type(self.backbone).__name__}")
        if self.smooth:
            raise ValueError(
                "smooth mixes codes and masked passes redraw single codes; remove smooth, or set refine off"
            )
        refine.require_fit(self.backbone.scales)

    def masked(self, scale: int) -> tuple[int, ...]:
        """How many tokens of a scale are redrawn in each of its masked passes."""
        return () if self.refine is None else self.refine.masked(scale)

    def forward_passes(self, scale: int) -> int:
        """Number of forward passes that draw a scale."""
        if is_next_token(self.backbone):
            return self.backbone.scales.lengths[scale]
        return 1 + len(self.masked(scale))

    def evaluations(self) -> int:
        """Number of velocity evaluations of each scale; 0 for discrete tokens."""
        return 0 if self.flow is None else sum(1 for _ in self.flow.evaluations())

    def strength(self, progress: float) -> float:
        """The usual guidance scale at a position between the first scale (0) and the last (1)."""
        return 1 + self.guidance * progress

    @property
    def rows(self) -> int:
        """Rows that the backbone computes for each image."""
        guided = self.guidance > 0 and (self.flow is None or self.flow.is_guided(self.strength(1)))
        return 2 if guided else 1

    def continues(self, before: Stage) -> bool:
        """Whether this stage continues with the cache of the stage before it."""
        return (self.backbone is before.backbone, self.rows, self.subnet) == (True, before.rows, before.subnet)

    def __str__(self) -> str:
        c, first, last = self.backbone.config, self.scales.start, self.scales.stop - 1
        settings = [
            f"{type(self.backbone).__name__} {c.depth} x {c.embed_dim}",
            *_shown(self.subnet, self.scales),
            f"guidance {self.guidance:g}",
            *([self.flow.shown(self.strength(1))] if self.flow else self._choice()),
            *filter(None, [self.refine.shown(self.scales) if self.refine else "", str(self.speculation or "")]),
        ]
        return f"scale{f's {first}-{last}' if last > first else f' {first}'}: {', '.join(settings)}"

    def _choice(self) -> list[str]:
        """How discrete tokens are chosen, in words."""
        chosen = [f"top-k {self.top_k}", f"top-p {self.top_p:g}", f"temperature {self.temperature:g}"]
        guided = [f"{self.guided_tokens} tokens guided"] if self.guided_tokens is not None else []
        return [*chosen, *guided, *(["smooth"] if self.smooth else [])]


class Pass(NamedTuple):
    """One forward pass of a plan."""

    stage: Stage
    scales: range  # that the backbone prefills; the last of them is drawn
    fresh: bool  # whether the stage's backbone begins here, with an empty cache
    capacities: tuple[int, ...]  # tokens that each layer's cache has to hold from here on


class Cost(NamedTuple):
    """The work of one image."""

    forward_passes: int
    evaluations: int  # of velocities, by the small head of a backbone of continuous tokens
    multiply_adds: int  # of the backbones' matrix products
    cache_values: int  # keys and values held at the largest pass

    def cache_bytes(self, dtype: Any) -> int:
        """The same in bytes, for a torch dtype."""
        return int(self.cache_values * dtype.itemsize)


@dataclass(frozen=True)
class Plan:
    """The stages of one image, coarse to fine. Together they cover every scale of the tokenizer once."""

    tokenizer: Tokenizer
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        ends = [0, *(stage.scales.stop for stage in self.stages)]
        starts = [*(stage.scales.start for stage in self.stages), len(self.tokenizer.scales)]
        if starts != ends:
            raise ValueError(
                f"the stages cover {self.ranges}; they must cover 0 to {len(self.tokenizer.scales) - 1} once"
            )
        for stage in self.stages:
            if stage.backbone.scales != self.tokenizer.scales:
                raise ValueError(
                    f"a backbone draws patch_nums {list(stage.backbone.scales.patch_nums)}, its tokenizer has "
                    f"{list(self.tokenizer.scales.patch_nums)}; they must be the same"
                )
        if len(self.stages) > 1 and any(stage.speculation for stage in self.stages):
            raise ValueError(f"speculation needs a plan of one stage; this one has {len(self.stages)}")
        for one, other in pairwise(self.stages):
            if one.backbone.config.num_classes != other.backbone.config.num_classes:
                raise ValueError("the backbones of a plan must have the same classes")

    def __str__(self) -> str:
        return "\n".join(str(stage) for stage in self.stages)

    @property
    def networks(self) -> list[Any]:
        """The backbones and draft models, each once."""
        drafting = (network for stage in self.stages if stage.speculation for network in stage.speculation.networks)
        found = [*(stage.backbone for stage in self.stages), *drafting]
        return list({id(network): network for network in found}.values())

    @property
    def ranges(self) -> str:
        """The scales of the stages in words."""
        return ", ".join(f"{stage.scales.start}-{stage.scales.stop - 1}" for stage in self.stages) or "nothing"

    def within(self, scales: range) -> tuple[Stage, ...]:
        """The stages, cut to some scales, from which methods build new plans. ValueError if the plan lacks a scale."""
        count = len(self.tokenizer.scales)
        if scales.start < 0 or scales.stop > count or scales.step != 1:
            raise ValueError(
                f"a plan has no {scales}; it must be a range of consecutive scales out of 0 to {count - 1}"
            )
        cut = (
            (stage, range(max(stage.scales.start, scales.start), min(stage.scales.stop, scales.stop)))
            for stage in self.stages
        )
        return tuple(replace(stage, scales=left) for stage, left in cut if left)

    def passes(self) -> Iterator[Pass]:
        """The forward passes that draw a scale, in order; masked passes are not included.

        A backbone that takes over prefills the scales before it, all in its first pass, unless it is Markov.
        """
        known = 0
        for index, stage in enumerate(self.stages):
            fresh = index == 0 or not stage.continues(self.stages[index - 1])
            known = 0 if fresh else known
            for k in stage.scales:
                scales = range(k if stage.backbone.markov else known, k + 1)
                yield Pass(stage, scales, fresh, self._capacities(index, scales))
                fresh, known = False, k + 1

    def _capacities(self, index: int, scales: range) -> tuple[int, ...]:
        """Tokens for which each layer needs cache; layers that a subnet skips need none after the switch to it."""
        stage, offsets = self.stages[index], self.tokenizer.scales.offsets
        if stage.backbone.markov:
            return ()
        last = stage.scales.stop
        for before, after in pairwise(self.stages[index:]):
            if not after.continues(before):
                break
            last = after.scales.stop
        depth, subnet = len(stage.backbone.blocks), stage.subnet
        if subnet is None:
            return (offsets[last],) * depth
        full = min(subnet.full_scales, last)
        if scales.stop <= full:
            return (offsets[full],) * depth
        skipped = offsets[full] if scales.start < full else 0
        return tuple(offsets[last] if layer in subnet.layers else skipped for layer in range(depth))

    def cost(self) -> Cost:
        """The work of one image, counted from sizes alone, so the networks need no weights.

        What speculation saves is known only after decoding, so its plans count as plain decoding.
        """
        passes = list(self.passes())
        return Cost(
            forward_passes=sum(one.stage.forward_passes(one.scales.stop - 1) for one in passes),
            evaluations=sum(one.stage.evaluations() for one in passes),
            multiply_adds=sum(self._work(one) for one in passes),
            cache_values=max(
                one.stage.rows * sum(map(one.stage.backbone.cache_values, one.capacities)) for one in passes
            ),
        )

    def _work(self, one: Pass) -> int:
        scales, stage = self.tokenizer.scales, one.stage
        backbone, drawn = stage.backbone, one.scales.stop - 1
        layers = range(len(backbone.blocks))
        head = backbone.head_work(scales.lengths[drawn])
        work = 0
        for k in one.scales:  # under the block-causal mask a token attends to its own scale and the coarser ones
            context = scales.lengths[k] if backbone.markov else scales.offsets[k + 1]
            each = backbone.layer_work(scales.lengths[k], context)
            active = (
                stage.subnet is None or layer in stage.subnet.layers or k < stage.subnet.full_scales for layer in layers
            )
            work += each * sum(active)
        again = head + len(layers) * backbone.layer_work(scales.lengths[drawn], scales.lengths[drawn])
        shown = stage.rows if stage.flow is None else stage.flow.rows(stage.strength(scales.progress(drawn)))
        return stage.rows * work + shown * head + len(stage.masked(drawn)) * again  # masked passes run without guidance


def is_continuous(backbone: Backbone) -> bool:
    """Whether a backbone draws continuous tokens rather than ids of a codebook."""
    return hasattr(backbone, "field")


def is_next_token(backbone: Backbone) -> bool:
    """Whether a backbone draws a map token by token rather than at once."""
    return hasattr(backbone, "next_logits")


def has_subnets(backbone: Backbone) -> bool:
    """Whether a backbone supports subnets, which skip layers."""
    return not (backbone.markov or is_continuous(backbone) or is_next_token(backbone))


class HasPlan(Protocol):
    """A pipeline, as far as methods are concerned."""

    def plan(self) -> Plan: ...


Planned = Plan | HasPlan


def as_plan(source: Planned) -> Plan:
    """A plan as it is, or a pipeline's at its own settings."""
    return source if isinstance(source, Plan) else source.plan()


def _shown(subnet: Subnet | None, scales: range) -> list[str]:
    if subnet is None or subnet.full_scales >= scales.stop:
        return []
    since = f" from scale {subnet.full_scales} on" if subnet.full_scales > scales.start else ""
    return [f"{len(subnet.layers)} layers{since}"]
