"""Plans: which network draws which tokens of an image, and how. Data alone, that names networks by role.

A method of decoding is a way to build a plan; `core.bind` fits a plan to networks, and one engine runs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from var_toolkit.core.parts import Part
from var_toolkit.core.schedule import Schedule
from var_toolkit.core.search import BestOf, Candidates
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.head import Head
from var_toolkit.ranges import checked, flag
from var_toolkit.strict_fields import shown

BACKBONE, REFINER, DRAFT = "backbone", "refiner", "draft"
DEFAULT_HEAD = Categorical()


@dataclass(frozen=True)
class Scale(Part):
    """All tokens of one map of the schedule, at once."""

    index: int

    def __post_init__(self) -> None:
        if type(self.index) is not int or self.index < 0:
            raise ValueError(f"a step draws scale {self.index!r}; it must be 0 or more")

    def covered(self, schedule: Schedule) -> range:
        """The tokens of the pyramid that are drawn."""
        if self.index >= len(schedule):
            raise ValueError(f"a step draws scale {self.index}; the schedule has scales 0 to {len(schedule) - 1}")
        return range(schedule.offsets[self.index], schedule.offsets[self.index + 1])


@dataclass(frozen=True)
class Tokens(Part):
    """`count` tokens of the pyramid from `first` on, one after another."""

    first: int
    count: int

    def __post_init__(self) -> None:
        if not (type(self.first) is type(self.count) is int and self.first >= 0 and self.count > 0):
            raise ValueError(f"a step draws {self.count!r} tokens from {self.first!r} on; both must be whole numbers")

    def covered(self, schedule: Schedule) -> range:
        """The tokens of the pyramid that are drawn."""
        if self.first + self.count > schedule.total:
            raise ValueError(
                f"a step draws tokens {self.first} to {self.first + self.count - 1}; the schedule has {schedule.total}"
            )
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Group(Part):
    """`count` tokens of one map at once: those from rank `first` on in the order in which that map is drawn.

    The order is the network's: random and of each image (masked models), or fixed (blocks).
    """

    index: int  # of the map in the schedule
    first: int
    count: int

    def __post_init__(self) -> None:
        numbers = (self.index, self.first, self.count)
        if any(type(one) is not int or one < 0 for one in numbers) or self.count == 0:
            raise ValueError(f"a step draws {self.count!r} tokens of map {self.index!r} from rank {self.first!r} on")

    def covered(self, schedule: Schedule) -> range:
        """The ranks that are drawn, counted on from those of the maps before."""
        if self.index >= len(schedule):
            raise ValueError(f"a step draws map {self.index}; the schedule has maps 0 to {len(schedule) - 1}")
        begin, end = schedule.offsets[self.index : self.index + 2]
        if begin + self.first + self.count > end:
            raise ValueError(f"a step draws rank {self.first + self.count - 1} of a map of {end - begin} tokens")
        return range(begin + self.first, begin + self.first + self.count)


@dataclass(frozen=True)
class Together(Part):
    """`count` tokens of the pyramid from `first` on, in one pass of a distilled network: maps, or a part of one map."""

    first: int
    count: int

    def __post_init__(self) -> None:
        Tokens(self.first, self.count)  # raises ValueError

    def covered(self, schedule: Schedule) -> range:
        """The tokens of the pyramid that are drawn."""
        return Tokens(self.first, self.count).covered(schedule)

    def cut(self, begin: int, end: int) -> Together | None:
        """The part within some tokens of the pyramid; None if there is none."""
        first, stop = max(self.first, begin), min(self.first + self.count, end)
        return Together(first, stop - first) if first < stop else None


Places = Scale | Tokens | Group | Together


@dataclass(frozen=True)
class Subnet(Part):
    """Scales from `full_scales` on run through `count` layers only, spread evenly; those before through all.

    A network that has no more layers than that keeps them all (VARiant, arXiv 2511.16546).
    """

    count: int
    full_scales: int


@dataclass(frozen=True)
class Pruned(Part):
    """A share of the tokens of a scale that sub-layers skip; their outputs are restored from those at scale `source`.

    In the layers from `first` to before `end`, None for the last (FastVAR, arXiv 2503.23367).
    """

    share: float
    source: int
    first: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", checked("prune_tokens", self.share, "share"))
        for name in ("source", "first"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be 0 or more")

    def kept(self, layer: int, tokens: int) -> int:
        """How many tokens of a scale a layer computes."""
        inside = self.first <= layer and (self.end is None or layer < self.end)
        return tokens - int(tokens * self.share) if inside else tokens


@dataclass(frozen=True)
class Keys(Part):
    """The most keys that a layer holds after a step; the `whole` layers hold all (ScaleKV, arXiv 2505.19602)."""

    count: int
    whole: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", tuple(self.whole))
        for number in (self.count - 1, *self.whole):
            if type(number) is not int or number < 0:
                raise ValueError(
                    f"keys are {self.count!r} but in layers {list(self.whole)!r}; use whole numbers, 1 or more"
                )


class Verify(Part):
    """Drafts that the network verifies (`methods.speculative`), in place of one pass for each scale or token."""

    def bound(self, run: Any, steps: Any) -> Any:
        """A drawer of some steps of a run; ValueError if it does not fit them."""
        raise NotImplementedError

    def networks(self) -> tuple[str, ...]:
        """The roles of the networks that draft."""
        return ()


@dataclass(frozen=True)
class Step(Part):
    """What one network draws under one set of settings.

    `guidance` is t in (1 + t) conditional - t null, of this very step: ramps over the scales are applied when a plan is
    made. 0 is off. `layers` limits the layers, None for all. `masked` are the tokens that are redrawn in each masked
    pass after the first draw (HMAR); with `clean`, their positions are set to zero in the input of these passes.
    `pruned` says how many tokens the layers compute, and `keys` how many keys they hold afterwards, None for all.
    Consecutive steps with the same `verify` are drawn together. With `open_prefill` a network that begins here reads
    the scales before in a pass without a mask (Distilled Decoding's teacher, as published). Guidance mixes logits, or
    with `mixed_after` the features after that layer, from which on both halves have the mix (Infinity).
    Of the candidates of a `search` one is chosen.
    """

    places: Places
    network: str = BACKBONE
    guidance: float = 0.0
    head: Head = DEFAULT_HEAD
    layers: Subnet | None = None
    masked: tuple[int, ...] = ()
    clean: bool = False
    verify: Verify | None = None
    open_prefill: bool = False
    pruned: Pruned | None = None
    keys: Keys | None = None
    mixed_after: int | None = None
    search: Candidates | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", checked("cfg", self.guidance, "guidance"))
        for name in ("clean", "open_prefill"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        object.__setattr__(self, "masked", tuple(self.masked))
        if not isinstance(self.places, Places):
            raise ValueError(
                f"a step draws {shown(self.places)}; its places must be a Scale, Tokens, a Group or Together"
            )
        parts = {"layers": Subnet, "verify": Verify, "pruned": Pruned, "keys": Keys, "search": Candidates}
        for name, kind in parts.items():
            if not isinstance(getattr(self, name), kind | None):
                raise ValueError(f"{name} is {shown(getattr(self, name))}; it must be a {kind.__name__} or nothing")
        if not isinstance(self.head, Head):
            raise ValueError(f"a step has head {shown(self.head)}; it must be a head, such as a Categorical or a Flow")
        if self.mixed_after is not None and (type(self.mixed_after) is not int or self.mixed_after < 0):
            raise ValueError(f"mixed_after is {shown(self.mixed_after)}; it must be the number of a layer, or nothing")
        if self.mixed_after is not None and self.verify is not None:
            raise ValueError("guidance_layer mixes features, which drafts are not verified with; leave out one of them")
        if self.pruned is not None and self.pruned.source >= self.scale:
            raise ValueError(
                f"scale {self.scale} restores tokens from scale {self.pruned.source}; it must be an earlier one"
            )
        if self.search is not None and (self.verify is not None or not isinstance(self.places, Scale)):
            raise ValueError("candidates are of whole scales; leave candidates out, or draw by scales alone")
        if self.masked and (not isinstance(self.places, Scale) or getattr(self.head, "smooth", False)):
            raise ValueError(
                "smooth mixes codes and masked passes redraw single codes; remove smooth, or set refine off"
                if isinstance(self.places, Scale)
                else "masked passes redraw tokens of a scale; a step of single tokens has none"
            )

    @property
    def is_guided(self) -> bool:
        """Whether the null condition has an influence on what is drawn."""
        return self.head.is_guided(self.guidance)

    def with_head(self, **settings: Any) -> Self:
        """The step with other settings of its head, such as a temperature. ValueError for one that it has not."""
        known = [field.name for field in fields(self.head)]  # type: ignore[arg-type]
        if odd := settings.keys() - set(known):
            raise ValueError(f"{min(odd)} is no setting of {type(self.head).__name__}, which has {', '.join(known)}")
        return replace(self, head=replace(self.head, **settings))  # type: ignore[type-var]

    @property
    def scale(self) -> int:
        """The scale that is drawn; 0 for single tokens, which are of the only map, and for several scales at once."""
        return 0 if isinstance(self.places, Tokens | Together) else self.places.index


@dataclass(frozen=True)
class Plan(Part):
    """The steps of one image. Together they cover every token of the schedule once, in order.

    The last `skipped` scales are not drawn: what is there is decoded, as if they had nothing to add. What a network
    makes of a control image is multiplied by `control_strength`. With `best_of` the plan is of one candidate.
    """

    schedule: Schedule
    steps: tuple[Step, ...]
    skipped: int = 0
    control_strength: float = 1.0
    best_of: BestOf | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "control_strength", checked("control_strength", self.control_strength))
        object.__setattr__(self, "steps", tuple(self.steps))
        if not isinstance(self.best_of, BestOf | None):
            raise ValueError(f"best_of is {shown(self.best_of)}; it must be a BestOf or nothing")
        scales = len(self.schedule)
        if type(self.skipped) is not int or not 0 <= self.skipped < scales:
            raise ValueError(
                f"skip_scales is {self.skipped!r}; it must be from 0 (off) to {scales - 1}, of {scales} scales"
            )
        at, end = 0, self.schedule.offsets[scales - self.skipped]
        for step in self.steps:
            covered = step.places.covered(self.schedule)
            if covered.start != at:
                raise ValueError(f"token {at} is to be drawn next, but a step of the plan draws {_spoken(covered)}")
            at = covered.stop
        if at != end:
            without = f", {end} without the {self.skipped} that are skipped" if self.skipped else ""
            raise ValueError(f"the steps of the plan draw {at} tokens; the schedule has {self.schedule.total}{without}")

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return super().to_json() | {"schedule": self.schedule.to_json()}

    @classmethod
    def from_json(cls, given: object, *, where: str = "plan") -> Self:
        """The plan that `to_json` wrote. ValueError of one line, with `where`, for anything else."""
        if isinstance(given, Mapping) and "schedule" in given:
            given = {**given, "schedule": Schedule.from_json(given["schedule"], where=f"{where}: schedule")}
        return super().from_json(given, where=where)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A plan from a file that `write` made. ValueError of one line for anything else."""
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or "it is not JSON"
            raise ValueError(
                f"plan {path} cannot be read: {reason}; `vargen sample --dry-run --json` writes one"
            ) from None
        if isinstance(given, Mapping) and isinstance(given.get("plan"), Mapping):
            given = given["plan"]  # of the output of `--json`, or the settings of a set of images
        return cls.from_json(given, where=f"plan {path}")

    def within(self, scales: range) -> tuple[Step, ...]:
        """The steps that draw some scales, from which methods build new plans. ValueError if there are no such.

        A step that draws several at once is cut at the ends.
        """
        count = len(self.schedule)
        if scales.start < 0 or scales.stop > count or scales.step != 1:
            raise ValueError(
                f"a plan has no {scales}; it must be a range of consecutive scales out of 0 to {count - 1}"
            )
        begin, end = self.schedule.offsets[scales.start], self.schedule.offsets[scales.stop]
        found: list[Step] = []
        for step in self.steps:
            if not isinstance(step.places, Together):
                found += [step] if step.scale in scales else []
            elif (part := step.places.cut(begin, end)) is not None:
                found.append(replace(step, places=part))
        return tuple(found)

    def changed(self, **fields: Any) -> Self:
        """The plan with some fields of every step replaced."""
        return replace(self, steps=tuple(replace(step, **fields) for step in self.steps))

    def with_roles(self, roles: Mapping[str, str]) -> Self:
        """The plan with other names for its networks."""
        named = (replace(step, network=roles.get(step.network, step.network)) for step in self.steps)
        return replace(self, steps=tuple(named))

    @property
    def roles(self) -> list[str]:
        """The networks that the plan names, each once."""
        named = [(step.network, *(step.verify.networks() if step.verify else ())) for step in self.steps]
        return list(dict.fromkeys([*(role for roles in named for role in roles), *self.scorers]))

    @property
    def scorers(self) -> list[str]:
        """The networks that choose among candidates, each once."""
        return list(dict.fromkeys(step.search.scorer for step in self.steps if step.search is not None))


def plan_of(
    network: Any,
    *,
    schedule: Schedule | None = None,
    guidance: float | tuple[float, ...] = 0.0,
    first: float | None = None,
    head: Head | None = None,
    heads: Iterable[Head] | None = None,
    masked: Iterable[tuple[int, ...]] | None = None,
    guided: range | None = None,
    constant: bool = False,
    iterations: int | None = None,
    **fields: Any,
) -> Plan:
    """The plan by which a network draws an image of a schedule on its own; default: the schedule of the network.

    `guidance` is that of the last scale, which the ramp of the network lowers for the others unless it is `constant`;
    it acts on the scales (for a network that draws token by token: the tokens) in `guided`; several numbers are of each
    map. Of single tokens, that of the last one, to which it grows evenly from `first`, if that is given. `heads` and
    `masked` have one entry per scale. `iterations` are those of a network that draws groups of tokens. `fields` are
    further fields of every step.
    """
    schedule = schedule or network.scales
    head = head or network.default_head
    ramp, steps = (1.0,) * len(schedule) if constant else network.guidance_ramp(schedule), []
    strength = guidance if isinstance(guidance, tuple) else (guidance,) * len(schedule)
    by_scale = list(heads) if heads is not None else [head] * len(schedule)
    passes = list(masked) if masked is not None else [()] * len(schedule)
    chosen = network.places(schedule) if iterations is None else network.groups(schedule, iterations)
    if first is not None:
        chosen = tuple(Tokens(token, 1) for token in range(schedule.total))
    for places in chosen:
        for part, on in _split(places, guided):
            k = 0 if isinstance(part, Tokens | Together) else part.index
            drawn = network.head_at(by_scale[k], schedule, k)
            share = ramp[k] if constant or not isinstance(part, Group) else network.guidance_at(part, schedule)
            weight = strength[k] * share
            if first is not None and isinstance(part, Tokens):
                weight = first + (weight - first) * part.first / max(schedule.total - 1, 1)
            steps.append(Step(part, guidance=weight if on else 0.0, head=drawn, masked=passes[k], **fields))
    return Plan(schedule, tuple(steps))


def _split(places: Places, guided: range | None) -> list[tuple[Places, bool]]:
    """The places, cut where guidance is switched, and whether it is on."""
    if guided is None or isinstance(places, Together):
        return [(places, True)]
    if not isinstance(places, Tokens):
        return [(places, places.index in guided)]
    whole = range(places.first, places.first + places.count)
    ends = {whole.start, whole.stop, *(end for end in (guided.start, guided.stop) if end in whole)}
    return [(Tokens(begin, end - begin), begin in guided) for begin, end in pairwise(sorted(ends))]


def _spoken(covered: range) -> str:
    return f"tokens {covered.start} to {covered.stop - 1}"
