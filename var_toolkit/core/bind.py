"""Binding a plan to networks: the one moment at which data meets modules, and where what does not fit is refused.

A run lists, for every step, which scales the network reads, for how many rows, and how much cache it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, NamedTuple, Protocol, cast

from torch import Tensor

from var_toolkit.conditions.images import image_of
from var_toolkit.conditions.text import reads
from var_toolkit.core.compiled import Compiler, Pass
from var_toolkit.core.layers import Layers
from var_toolkit.core.plan import BACKBONE, Group, Places, Plan, Pruned, Scale, Step, Together, Tokens, plan_of
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.head import Head
from var_toolkit.heads.one_shot import OneShot


class Backbone(Protocol):
    """What a run requires of a network; `blocks` are its layers.

    Its `default_head` says what kind of head it has. All kinds have `condition`; networks that draw a scale at once
    have `hidden`, those that draw token by token `next_hidden`, and those that draw groups of tokens `groups`, `order`,
    `preserves`, `group_hidden`, `guidance_at`, `group_work` and `group_head_work`; categorical heads need `logits`,
    flow heads `field`, diffusion heads `denoiser`, and masked passes `refined`. Distilled ones draw any part of an
    image at once by `together`, without a cache. One that is `markov` attends to no scale but the one it draws, so it
    needs no prefill. One with `has_subnets` was made to skip layers; `sublayers` are those that can compute some
    tokens of a scale, for which `hidden` takes a `pruned` pass; one that `mixes_within` takes the layer and weight of
    guidance as `mixed`. What they draw is of `config.num_classes` classes, or a
    text network has `text` and `request` (`conditions.text`).
    """

    scales: Schedule
    config: Any
    markov: bool
    has_subnets: bool
    sublayers: tuple[str, ...]
    default_head: Head

    @property
    def blocks(self) -> Any: ...

    def places(self, schedule: Schedule) -> tuple[Places, ...]: ...

    def guidance_ramp(self, schedule: Schedule) -> tuple[float, ...]: ...

    def head_at(self, head: Head, schedule: Schedule, scale: int) -> Head: ...

    def schedule_for(self, height: int, width: int) -> Schedule: ...

    @property
    def cached_layers(self) -> int: ...

    def prefix_tokens(self, schedule: Schedule) -> int: ...

    def require_schedule(self, schedule: Schedule) -> None: ...

    def new_cache(self, rows: int, capacities: Any = None) -> Any: ...

    def cache_values(self, tokens: int) -> int: ...

    def layer_work(self, new: int, context: int) -> int: ...

    def head_work(self, drawn: int) -> int: ...


class Tokenizer(Protocol):
    """What a run requires of a tokenizer.

    `pyramid_of` a schedule knows how the latent grows by the codes of a scale, and what of it the next scale sees; that
    of discrete tokens also what code each stands for (`tokenizers.residual_quantizer`, `tokenizers.latent_pyramid`).
    `meaning` are the tensors that decide what tokens stand for: two tokenizers with the same ones can share an image.
    """

    scales: Schedule

    def pyramid_of(self, schedule: Schedule) -> Any: ...

    def meaning(self) -> Mapping[str, Tensor]: ...

    def decode(self, latent_BChw: Tensor) -> Tensor: ...


class Cost(NamedTuple):
    """The work of one image."""

    forward_passes: int
    evaluations: int  # of the small head of a backbone of continuous tokens
    multiply_adds: int  # of the backbones' matrix products
    cache_values: int  # keys and values held at the largest pass, and outputs that pruned tokens are restored from

    def cache_bytes(self, dtype: Any) -> int:
        """The same in bytes, for a torch dtype."""
        return int(self.cache_values * dtype.itemsize)


@dataclass(frozen=True)
class Sparse:
    """What a step computes and holds where tokens are pruned or keys evicted, in this step or others of its network."""

    kept: tuple[int, ...]  # tokens of the scale that each layer computes
    held: tuple[int, ...]  # keys that each layer holds before the step
    sources: tuple[
        tuple[int, tuple[int, ...]], ...
    ]  # scales whose outputs this or later steps need, and of which layers

    @property
    def outputs(self) -> tuple[tuple[int, int], ...]:
        """The scales whose outputs are held, and of how many layers."""
        return tuple((scale, len(layers)) for scale, layers in self.sources)


@dataclass(frozen=True, eq=False, repr=False)
class Bound:
    """One step, with its network."""

    step: Step
    network: Any
    layers: Layers | None  # None: all
    fresh: bool  # whether the network begins here, with an empty cache
    rows: int  # that it computes for each image: 2 where the null half is needed here or later
    scales: range  # that it reads; the last of them is drawn
    capacities: tuple[int, ...]  # tokens that each layer's cache has to hold from here on; where sparse, after the step
    sparse: Sparse | None = None  # None: every layer computes and holds everything
    scorer: Any = None  # of candidates


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A plan that fits its networks, ready for `core.engine.decode`."""

    plan: Plan
    tokenizer: Any
    networks: Mapping[str, Any]  # by role, those that the plan names
    steps: tuple[Bound, ...]
    compiler: Compiler | None = None  # None: passes run as they are
    small_decoder: Any = None  # what decodes latents in place of the tokenizer

    @property
    def decoder(self) -> Any:
        """What decodes latents."""
        return self.tokenizer if self.small_decoder is None else self.small_decoder

    def compiled(self, method: Pass) -> Pass:
        """A method of a network, compiled if the run is."""
        return method if self.compiler is None else self.compiler(method)

    @property
    def schedule(self) -> Schedule:
        """The token maps that are drawn."""
        return self.plan.schedule

    @property
    def candidates(self) -> int:
        """How many candidates are drawn for each image."""
        return 1 if self.plan.best_of is None else self.plan.best_of.count

    @property
    def stages(self) -> int:
        """How often a callback may be called: after every scale, or of a map whose groups are decoded after each."""
        return len(getattr(self.pyramid, "groups", ())) or len(self.schedule) - self.plan.skipped

    @property
    def pyramid(self) -> Any:
        """The tokenizer's pyramid for the schedule."""
        return self.tokenizer.pyramid_of(self.schedule)

    @property
    def unique_networks(self) -> list[Any]:
        """The networks, each once."""
        return list({id(network): network for network in self.networks.values()}.values())

    @cached_property
    def parts(self) -> list[tuple[list[Bound], Any]]:
        """The steps that are drawn together, and what verifies their drafts, if any (`core.plan.Verify.bound`).

        Together are consecutive steps of one verification; any other step is alone.
        """
        groups: list[list[Bound]] = []
        for one in self.steps:
            if groups and one.step.verify is not None and _continues(one.step, groups[-1][-1].step, self.networks):
                groups[-1].append(one)
            else:
                groups.append([one])
        return [(group, group[0].step.verify and group[0].step.verify.bound(self, group)) for group in groups]

    def cost(self) -> Cost:
        """The work of one image, counted from sizes alone, so the networks need no weights.

        What speculation saves is known only after decoding, so its steps count as plain decoding; and so is how many
        candidates a threshold saves, so all of them count.
        """
        return Cost(
            forward_passes=self.candidates * sum(map(_passes, self.steps)),
            evaluations=self.candidates * sum(one.step.head.evaluations() for one in self.steps),
            multiply_adds=self.candidates * sum(_work(one, self.schedule) for one in self.steps),
            cache_values=max(one.rows * _held(one, self.schedule) for one in self.steps),
        )

    def __repr__(self) -> str:
        """A line for each group of steps with the same settings."""
        same: dict[str, Any] = {"places": Scale(0), "guidance": 0.0, "masked": (), "pruned": None}
        alike = groupby(self.steps, key=lambda one: replace(one.step, **same))
        lines = [_line(list(group), self) for _, group in alike]
        count = len(self.schedule)
        lines += [f"scale {k}: skipped" for k in range(count - self.plan.skipped, count)]
        if self.plan.control_strength != 1:
            lines.append(f"control image: strength {self.plan.control_strength:g}")
        if (best := self.plan.best_of) is not None:
            until = "" if best.threshold is None else f", the first with a score of {best.threshold:g}"
            lines.append(f"best of {best.count} by {best.scorer}{until}")
        return "\n".join(lines)


def bind(
    plan: Plan,
    networks: Mapping[str, Any],
    tokenizer: Any,
    compiler: Compiler | None = None,
    small_decoder: Any = None,
) -> Run:
    """The run of a plan with networks by role. ValueError of one line for whatever does not fit."""
    for role in plan.roles:
        if role not in networks:
            raise ValueError(f"the plan names a network {role!r}; this model has {', '.join(networks)}")
    used = {role: networks[role] for role in plan.roles}
    pyramid = tokenizer.pyramid_of(plan.schedule)  # raises ValueError for a schedule that it has not
    if plan.skipped and not getattr(pyramid, "residual", False):
        raise ValueError(
            f"skip_scales leaves out what the last maps add, and each of {type(tokenizer).__name__} is a whole image; "
            "leave it out, or give a schedule of fewer maps"
        )
    for step in plan.steps:
        _require_fit(step, used[step.network], plan.schedule)
        if step.search is not None:
            _require_scorer(step, used[step.search.scorer], used[step.network], tokenizer, plan.schedule)
    if plan.control_strength != 1 and not any(_weighs_control(network) for network in used.values()):
        raise ValueError(
            "control_strength weighs what is added for a control image (ControlAR); this model adds none: leave it out"
        )
    if len({reads(used[step.network]) for step in plan.steps}) > 1:
        raise ValueError("the networks of a plan must have the same classes, or read the text of the same encoder")
    counts = [(step.layers.count, len(used[step.network].blocks)) for step in plan.steps if step.layers is not None]
    if counts and not any(2 <= count <= depth for count, depth in counts):
        count, depth = max(counts, key=lambda one: one[1])
        raise ValueError(f"subnet is {count}; it must be from 2 to {depth}, the layers of the backbone")
    run = Run(plan, tokenizer, used, tuple(_bound(plan, used)), compiler, small_decoder)
    _ = run.parts  # raises ValueError for a verification that does not fit
    return run


def run_of(tokenizer: Any, network: Any, **settings: Any) -> Run:
    """The run in which one network draws the images alone; the settings are those of `core.plan.plan_of`."""
    return bind(plan_of(network, **settings), {BACKBONE: network}, tokenizer)


def _weighs_control(network: Any) -> bool:
    reads = image_of(network)
    return reads is not None and reads.weighed


def _require_fit(step: Step, network: Any, schedule: Schedule) -> None:
    name = type(network).__name__
    network.require_schedule(schedule)
    if not isinstance(step.head, type(network.default_head)):
        ours, theirs = type(step.head).__name__, type(network.default_head).__name__
        raise ValueError(f"{name} has a {theirs} head; a step of the plan has {ours}")
    if {type(place) for place in network.places(schedule)} != {type(step.places)}:
        raise ValueError(f"{name} draws {_unit(network, schedule)}; a step of the plan draws {step.places}")
    if isinstance(step.places, Together):
        _require_whole_maps(step.places, name, schedule)
    if step.open_prefill and not network.has_subnets:
        raise ValueError(f"open_prefill is for VAR; {name} has no such pass")
    if step.layers is not None and not network.has_subnets:
        raise ValueError(f"{name} has no subnets; VARiant needs VAR")
    if getattr(step.head, "smooth", False) and isinstance(step.places, Tokens):
        raise ValueError(f"{name} draws one token after another; smooth mixes the codes of whole maps")
    if step.masked:
        _require_masked(step, network, schedule)
    if step.mixed_after is not None:
        _require_mixing(step.mixed_after, step, network)
    if step.pruned is not None or step.keys is not None:
        _require_sparse(step, network)


def _require_mixing(layer: int, step: Step, network: Any) -> None:
    name, count = type(network).__name__, len(network.blocks)
    if not getattr(network, "mixes_within", False):
        raise ValueError(f"guidance_layer is for Infinity; {name} mixes logits only: leave it out")
    if layer >= count:
        raise ValueError(f"a step mixes features after layer {layer}; {name} has layers 0 to {count - 1} here")
    layers = _layers(step, network)
    if step.is_guided and layers is not None and not layers.computes(layer, step.scale):
        computed = ", ".join(map(str, layers.active))
        raise ValueError(f"guidance_layer is {layer}, which scale {step.scale} skips; of this subnet give {computed}")


def _require_scorer(step: Step, scorer: Any, network: Any, tokenizer: Any, schedule: Schedule) -> None:
    assert step.search is not None
    known, where = scorer.config, f"latent_scorer {step.search.scorer}"
    if step.scale not in known.scales:
        raise ValueError(f"{where} scores scales {list(known.scales)}; a step of the plan asks for scale {step.scale}")
    if reads(network) != known.num_classes:
        raise ValueError(f"{where} scores {known.num_classes} classes, which this model does not draw")
    if (tokenizer.channels, schedule.finest) != (known.latent_channels, known.side):
        told = f"{known.latent_channels} channels and {known.side} x {known.side} cells"
        raise ValueError(f"{where} reads latents of {told}; this model has others")


def _require_sparse(step: Step, network: Any) -> None:
    name, setting = type(network).__name__, "prune_tokens" if step.pruned is not None else "key_share"
    if not getattr(network, "sublayers", ()):
        raise ValueError(f"{setting} needs VAR, FlexVAR, HMAR, STAR or Infinity, not {name}")
    if step.keys is not None and network.markov:
        raise ValueError(f"key_share evicts cached keys; {name} caches none: leave it out")
    if step.keys is not None and any(layer >= len(network.blocks) for layer in step.keys.whole):
        raise ValueError(
            f"key_layers is {list(step.keys.whole)}; {name} has layers 0 to {len(network.blocks) - 1} here"
        )
    if step.verify is not None:
        raise ValueError(f"{setting} changes what a draft is verified against; leave it out, or speculate")


def _unit(network: Any, schedule: Schedule) -> str:
    units = {Scale: "whole scales", Tokens: "single tokens", Group: "groups of tokens", Together: "everything at once"}
    return units[type(network.places(schedule)[0])]


def _require_whole_maps(places: Together, name: str, schedule: Schedule) -> None:
    covered = places.covered(schedule)
    if len(schedule) > 1 and not {covered.start, covered.stop} <= set(schedule.offsets):
        raise ValueError(
            f"{name} draws whole maps; a step of the plan draws tokens {covered.start} to {covered.stop - 1}"
        )


def _require_masked(step: Step, network: Any, schedule: Schedule) -> None:
    if not hasattr(network, "refined"):
        raise ValueError(f"refine needs a backbone with masked passes (HMAR), not {type(network).__name__}")
    tokens = schedule.lengths[step.scale]
    if step.scale == 0 or not all(0 < count < before for before, count in pairwise((tokens, *step.masked))):
        raise ValueError(
            f"refine: scale {step.scale} redraws {list(step.masked)} of {tokens} tokens; the numbers must fall from "
            "below its tokens to 1 or more, and the first scale, which comes from the class alone, has none"
        )


def _bound(plan: Plan, networks: Mapping[str, Any]) -> Iterator[Bound]:
    """The steps with what their caches need. Those of one network whose layers are the same share a cache."""
    steps, offsets, known = plan.steps, plan.schedule.offsets, 0
    for index, step in enumerate(steps):
        network = networks[step.network]
        if isinstance(step.places, Together):
            yield Bound(step, network, None, True, 1, range(0), ())
            continue
        fresh = index == 0 or not _continues(step, steps[index - 1], networks)
        end = index + 1
        while end < len(steps) and _continues(steps[end], steps[end - 1], networks):
            end += 1
        rest = steps[index : index + 1] if network.markov else steps[index:end]
        known, k = 0 if fresh else known, step.scale
        scales = range(k if network.markov else known, k + 1)
        layers = _layers(step, network)
        last = offsets[steps[end - 1].scale + 1]
        if fresh:
            depth, began = len(network.blocks), scales.start
            is_sparse = any(one.pruned is not None or one.keys is not None for one in steps[index:end])
            held = (0,) * depth
        sparse = None
        if is_sparse:
            sparse = _sparse(plan.schedule, steps[index:end], network, held, scales, range(began, scales.start))
            held = () if network.markov else _held_after(step, sparse, layers, scales, plan.schedule)
        dense: tuple[int, ...] = ()
        if not (network.markov or is_sparse):
            dense = _capacities(network.cached_layers, layers, offsets, scales, last)
        prefix = network.prefix_tokens(plan.schedule)
        rows = 2 if any(one.is_guided for one in rest) else 1
        capacities = held if is_sparse else tuple(prefix + capacity for capacity in dense)
        scorer = None if step.search is None else networks[step.search.scorer]
        yield Bound(step, network, layers, fresh, rows, scales, capacities, sparse, scorer)
        known = k + 1


def _sparse(
    schedule: Schedule, steps: tuple[Step, ...], network: Any, held: tuple[int, ...], scales: range, before: range
) -> Sparse:
    """What the first of some steps of a network computes. ValueError if it is to restore from a scale it has not.

    A pass that prefills, over several scales, computes all of them.
    """
    step, depth, tokens = steps[0], range(len(network.blocks)), schedule.lengths[steps[0].scale]
    pruned = step.pruned if len(scales) == 1 else None
    if pruned is not None and pruned.source not in before:
        raise ValueError(
            f"prune_tokens: scale {step.scale} restores tokens from scale {pruned.source}, which "
            f"{type(network).__name__} has not computed before; prune fewer of the last scales"
        )
    kept = tuple(tokens if pruned is None else pruned.kept(layer, tokens) for layer in depth)
    needs: dict[int, set[int]] = {}
    for one in steps if pruned is not None else steps[1:]:
        if one.pruned is not None and one.pruned.source < scales.stop:
            needs.setdefault(one.pruned.source, set()).update(_restoring(one, one.pruned, network, schedule))
    return Sparse(kept, held or (0,) * len(depth), tuple((k, tuple(sorted(needs[k]))) for k in sorted(needs)))


def _restoring(step: Step, pruned: Pruned, network: Any, schedule: Schedule) -> list[int]:
    """The layers that restore tokens of a step."""
    layers, tokens = _layers(step, network), schedule.lengths[step.scale]
    computed = [k for k in range(len(network.blocks)) if layers is None or layers.computes(k, step.scale)]
    return [layer for layer in computed if pruned.kept(layer, tokens) < tokens]


def _held_after(
    step: Step, sparse: Sparse, layers: Layers | None, scales: range, schedule: Schedule
) -> tuple[int, ...]:
    """The keys that each layer holds after a step; a layer that a subnet skips from here on holds none."""
    more = schedule.offsets[scales.stop - 1] - schedule.offsets[scales.start]  # of scales that are prefilled
    found = []
    for layer, (held, kept) in enumerate(zip(sparse.held, sparse.kept, strict=True)):
        computed = layers is None or layers.computes(layer, step.scale)
        count = held + more + kept if computed else 0
        limited = step.keys is not None and layer not in step.keys.whole
        found.append(min(count, step.keys.count) if step.keys is not None and limited else count)
    return tuple(found)


def _held(one: Bound, schedule: Schedule) -> int:
    """Values that a row holds at a step: keys, values, and outputs that pruned tokens are restored from."""
    found: int = sum(map(one.network.cache_values, one.capacities))
    if one.sparse is not None:
        each = len(one.network.sublayers) * one.network.config.embed_dim
        found += sum(each * layers * schedule.lengths[scale] for scale, layers in one.sparse.outputs)
    return found


def _continues(step: Step, before: Step, networks: Mapping[str, Any]) -> bool:
    """Whether a step goes on with the cache of the step before it."""
    same = networks[step.network] is networks[before.network]
    return same and (step.layers, step.verify) == (before.layers, before.verify)


def _layers(step: Step, network: Any) -> Layers | None:
    if step.layers is None or step.layers.count >= len(network.blocks):
        return None
    return Layers.spread(len(network.blocks), step.layers.count, step.layers.full_scales)


def _capacities(
    depth: int, layers: Layers | None, offsets: tuple[int, ...], scales: range, last: int
) -> tuple[int, ...]:
    """Tokens for which each layer needs cache; skipped layers need none once the scales run through fewer."""
    if layers is None:
        return (last,) * depth
    full = min(offsets[min(layers.full_scales, len(offsets) - 1)], last)
    if offsets[scales.stop] <= full:
        return (full,) * depth
    skipped = full if offsets[scales.start] < full else 0
    return tuple(last if layer in layers.active else skipped for layer in range(depth))


def _passes(one: Bound) -> int:
    places = one.step.places
    return places.count if isinstance(places, Tokens) else 1 + len(one.step.masked)


def _work(one: Bound, schedule: Schedule) -> int:
    network, step = one.network, one.step
    if isinstance(step.places, Group):
        drawn = step.head.rows(step.guidance, one.rows) * network.group_head_work(step.places, schedule)
        return one.rows * network.group_work(step.places, schedule) + drawn
    if isinstance(step.places, Together):
        new, head = step.places.covered(schedule), cast(OneShot, step.head)
        coded = head.coded_of(new.start, len(new))
        layers = len(network.blocks) * network.layer_work(1 + new.stop, 1 + new.stop)  # with the class
        return int(layers + network.head_work(coded) + network.embedding_work(len(new) - coded))
    if isinstance(step.places, Tokens):
        new = step.places.covered(schedule)
        read = len(network.blocks) * network.layer_work(len(new), new.stop)
        if one.fresh and new.start > 0:  # the tokens before, in one pass
            read += len(network.blocks) * network.layer_work(new.start, new.start)
        return one.rows * (read + network.head_work(len(new)))
    depth, drawn = range(network.cached_layers), step.scale
    prefix = network.prefix_tokens(schedule)
    head = network.head_work(schedule.lengths[drawn])
    work = len(depth) * network.layer_work(prefix, prefix) if one.fresh and prefix else 0
    for k in one.scales:  # under the block-causal mask a token attends to its own scale and the coarser ones
        computed = [layer for layer in depth if one.layers is None or one.layers.computes(layer, k)]
        if one.sparse is not None and len(one.scales) == 1:
            kept, held = one.sparse.kept, one.sparse.held
            work += sum(network.layer_work(kept[layer], held[layer] + kept[layer]) for layer in computed)
        else:
            context = prefix + (schedule.lengths[k] if network.markov else schedule.offsets[k + 1])
            work += network.layer_work(schedule.lengths[k], context) * len(computed)
    again = head + len(depth) * network.layer_work(schedule.lengths[drawn], schedule.lengths[drawn])
    candidates = 1 if step.search is None else step.search.count
    # Masked passes run without guidance.
    heads = step.head.computations(candidates) * step.head.rows(step.guidance, one.rows)
    drawing = one.rows * work + heads * head + len(step.masked) * again
    return drawing + (0 if step.search is None else candidates * one.scorer.work())


def _line(group: list[Bound], run: Run) -> str:
    """Some steps with the same settings, in words."""
    first, last = group[0].step, group[-1].step
    config = group[0].network.config
    told = [
        f"{type(group[0].network).__name__} {config.depth} x {config.embed_dim}",
        *_layers_in_words(group),
        _guidance_in_words(group),
        *last.head.shown(max(one.step.guidance for one in group)),
        *_masked_in_words(group, run.schedule.lengths),
        *_sparse_in_words(group),
        *([] if first.search is None else [f"{first.search.count} candidates by {first.search.scorer}"]),
    ]
    if first.verify is not None:
        told.append(next(str(verification) for steps, verification in run.parts if group[0] in steps))
    if isinstance(first.places, Together):
        steps = [one.step.places.covered(run.schedule) for one in group]
        where = " then ".join(f"tokens {each.start}-{each.stop - 1} at once" for each in steps)
    elif isinstance(first.places, Tokens):
        covered = range(first.places.first, last.places.covered(run.schedule).stop)
        where = "scale 0" if len(covered) == run.schedule.total else f"tokens {covered.start}-{covered.stop - 1}"
        off = next((one.step.places.covered(run.schedule).start for one in group if one.step.guidance == 0), 0)
        if off and first.guidance > 0:
            told.append(f"{off} tokens guided")
    else:
        where = f"scales {first.scale}-{last.scale}" if last.scale > first.scale else f"scale {first.scale}"
    if isinstance(first.places, Group):
        told.append(f"{len(group)} iterations")
    return f"{where}: {', '.join(told)}"


def _guidance_in_words(group: list[Bound]) -> str:
    values = [one.step.guidance for one in group]
    if group[0].step.mixed_after is not None:
        return f"guidance {max(values):g} after layer {group[0].step.mixed_after}"
    if isinstance(group[0].step.places, Tokens) and len({*values} - {0.0}) > 1:
        end = next(value for value in reversed(values) if value)  # it may be off from some token on
        return f"guidance {values[0]:g} to {end:g}, {'growing' if end > values[0] else 'falling'} with the tokens"
    if min(values) == max(values) or isinstance(group[0].step.places, Tokens):  # whose end is told in tokens
        return f"guidance {max(values):g}"
    last = max(one.step.scale for one in group if one.step.guidance == max(values))
    ends = "" if values[-1] == max(values) else f" at scale {last}"
    return f"guidance {min(values):g} to {max(values):g}{ends}"


def _layers_in_words(group: list[Bound]) -> list[str]:
    layers, first, last = group[0].layers, group[0].step.scale, group[-1].step.scale
    if layers is None or layers.full_scales > last:
        return []
    since = f" from scale {layers.full_scales} on" if layers.full_scales > first else ""
    return [f"{len(layers.active)} layers{since}"]


def _sparse_in_words(group: list[Bound]) -> list[str]:
    told, keys = [], group[0].step.keys
    pruned = [(one.step.scale, one.step.pruned) for one in group if one.step.pruned is not None]
    if pruned:
        listed = ", ".join(f"{how.share:g} of scale {k} as at {how.source}" for k, how in pruned)
        told.append(f"tokens pruned ({listed})")
    if keys is not None:
        but = f" but all in layers {','.join(map(str, keys.whole))}" if keys.whole else ""
        told.append(f"{keys.count} keys a layer{but}")
    return told


def _masked_in_words(group: list[Bound], lengths: tuple[int, ...]) -> list[str]:
    refined = [one for one in group if one.step.masked]
    if not refined:
        return []
    extra = sum(len(one.step.masked) for one in refined)
    listed = "; ".join(f"{one.step.scale}: {','.join(map(str, _decided(one, lengths)))}" for one in refined)
    return [f"{extra} masked passes ({listed}){' clean' if refined[0].step.clean else ''}"]


def _decided(one: Bound, lengths: tuple[int, ...]) -> list[int]:
    """How many tokens of a scale are decided in each pass."""
    return [before - after for before, after in pairwise((lengths[one.step.scale], *one.step.masked, 0))]
