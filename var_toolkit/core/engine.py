"""The engine that runs every plan.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, V vocabulary, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.conditions.condition import Asked, of_labels
from var_toolkit.core.bind import Bound, Run, Sparse
from var_toolkit.core.cache import SparseCache
from var_toolkit.core.candidates import best_candidate
from var_toolkit.core.canvas import Canvas
from var_toolkit.core.compiled import by_token
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.masked import redrawn
from var_toolkit.core.noise import Noise, RunNoise, Stream
from var_toolkit.core.plan import Group, Together, Tokens
from var_toolkit.core.preserved import Preserved
from var_toolkit.core.pruning import PrunedPass
from var_toolkit.core.schedule import Schedule
from var_toolkit.core.sketch import Sketch
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.head import Drawn, Setting


@dataclass(frozen=True)
class ScaleEvent:
    """What a callback learns after every scale, or after every group of tokens where a tokenizer decodes groups."""

    scale: int  # or the group
    tokens: Tensor  # (B, n_k), int64; continuous ones (B, n_k, C), float32
    latent: Tensor  # float32, (B, C, h, w): the sum of all scales so far, or where each codes the whole image, its map
    tokenizer: Any
    schedule: Schedule
    decoder: Any  # what decodes latents: the tokenizer, or a small decoder
    noise: Noise  # of the images

    def of(self, images: Sequence[int]) -> ScaleEvent:
        """What is told of some of the images."""
        rows = list(images)
        return replace(self, tokens=self.tokens[rows], latent=self.latent[rows], noise=self.noise.of(rows))

    def preview(self) -> Tensor:
        """The images as they would be if the finer scales stayed empty, float in [-1, 1], (B, 3, h, w).

        Of a map that codes the whole image, smaller, the image is enlarged.
        """
        image: Tensor = self.decoder.decode(self.latent, *start_of(self.decoder, self.noise))
        size = self.schedule.image_size(self.tokenizer.downsample)
        return image if image.shape[-2:] == size else F.interpolate(image, size=size, mode="bilinear")


def start_of(decoder: Any, noise: Noise) -> tuple[Tensor, ...]:
    """What a decoder takes besides latents: noise to start from, (B, 3, h, w), if it is a flow; nothing otherwise."""
    return (decoder.start(noise),) if hasattr(decoder, "start") else ()


@dataclass(frozen=True)
class Decoded:
    """What decoding returns."""

    tokens: list[Tensor]  # K maps (B, n_k), int64; continuous ones (B, n_k, C), float32
    latent: Tensor  # (B, C, h, w), float32
    forward_passes: int
    evaluations: int  # of velocities, for continuous tokens
    cache_bytes: int  # keys and values at their largest
    speculation: Any = None  # what became of the drafts (`methods.speculative.tally.Tally`), where there were some


@torch.inference_mode()
def decode(
    run: Run,
    request: Asked | Tensor,
    noise: Noise,
    *,
    preserved: Preserved | None = None,
    on_scale: Callable[[ScaleEvent], None] | None = None,
) -> Decoded:
    """Draw the tokens of one image per row of the condition (or per label, int64 (B,)), except those preserved.

    The tokens of an image depend on its condition and its own noise, not on the other images of the batch (up to the
    rounding of batched matrix products, which may differ with the batch size). FloatingPointError if logits or latents
    are not finite, which is read once, at the end, unless the networks are on the CPU.
    """
    asked = of_labels(request, run.steps[0].network.config.num_classes) if isinstance(request, Tensor) else request
    drawing = Drawing(run, asked, noise, preserved, on_scale)
    for steps, verification in run.parts:
        if verification is not None:
            drawing.leave()  # it makes caches of its own
            verification.draw(drawing)
        elif isinstance(steps[0].step.places, Together):
            _draw_together(drawing, steps[0])
        elif isinstance(steps[0].step.places, Tokens):
            _draw_tokens(drawing, steps[0])
        elif isinstance(steps[0].step.places, Group):
            _draw_group(drawing, steps[0])
        else:
            _draw_scale(drawing, steps[0])
    drawing.checks.require()
    return drawing.result()


class Drawing:
    """One batch under way: what is drawn so far, and the network at work with its condition and cache."""

    def __init__(
        self,
        run: Run,
        request: Asked,
        noise: Noise,
        preserved: Preserved | None = None,
        on_scale: Callable[[ScaleEvent], None] | None = None,
    ) -> None:
        self.run, self.request, self.preserved, self.on_scale = run, request, preserved, on_scale
        self.noise = RunNoise(noise, run.schedule.total)
        self.canvas, self.checks = Canvas(run.pyramid, run.schedule, preserved), FiniteCheck()
        # How many tokens are known after each group, where groups are decoded and somebody looks.
        self.groups: tuple[int, ...] = () if on_scale is None else getattr(self.canvas.pyramid, "groups", ())
        self.tokens: list[Tensor] = []  # of complete scales
        self.begun: Tensor | None = None  # tokens of a map that is drawn in parts, (B, L)
        self.begun_codes: list[Tensor] = []  # their codes, (B, n, C) of each part
        self.sketch: Sketch | None = None  # of a map that is drawn in groups
        self.condition: Any = None
        self.cache: Any = None
        self.rows = 0
        self.passes, self.evaluations, self.cache_bytes, self.speculation = 0, 0, 0, None

    def enter(self, one: Bound) -> None:
        """Ready the condition and the cache of a step's network; drop the null half where it is not needed any more."""
        count = one.rows * len(self.request)
        if one.fresh:
            self.leave()  # before the next network makes its own
            if one.sparse is None:
                self.cache = one.network.new_cache(count, one.capacities)
            else:
                self.cache = SparseCache.instead_of(one.network.new_cache(count, ()), len(one.sparse.kept))
            self.condition = one.network.condition(self.request.rows(one.network, one.rows))
        elif one.rows < self.rows:
            self.condition = self.condition.of_rows(slice(count))
            self.cache.keep_rows(count)
        elif one.rows > self.rows:  # of a network that caches nothing
            self.condition = one.network.condition(self.request.rows(one.network, one.rows))
        self.rows = one.rows
        if one.sparse is None:
            self.cache.resize(one.capacities)
        else:
            needed = [scale for scale, _ in one.sparse.sources]
            self.cache.begin(one.capacities, self.run.schedule.maps[one.step.scale], needed)

    def leave(self) -> None:
        """Free the condition and the cache of the network at work."""
        self.cache = self.condition = None

    def setting(self, one: Bound, tokens: range | None = None) -> Setting:
        """The place of a step, for its head; its tokens are by default those of a scale."""
        schedule, k = self.run.schedule, one.step.scale
        guidance = one.step.guidance if one.step.mixed_after is None else 0.0  # the features are mixed already
        return Setting(
            one.network,
            self.condition,
            k,
            schedule.offsets[k] if tokens is None else tokens.start,
            schedule.lengths[k] if tokens is None else len(tokens),
            schedule.progress(k),
            guidance,
            self.rows == 2,
            self.canvas.pyramid,
            self.noise,
            lambda values, what, guidance: self.checks.note(values, what, one.network, guidance),
            latent=self.canvas.latent,
        )

    def sketched(self, one: Bound) -> Sketch:
        """The map that a step draws a group of."""
        if self.sketch is None:
            preserved = self.preserved
            self.sketch = Sketch.begun(one.network, self.run.schedule, one.step.scale, self.noise, preserved)
        return self.sketch

    def put(self, scale: int, tokens: Tensor, codes: Tensor | None = None) -> None:
        """Add the tokens of a scale; `codes` if others than theirs go to the canvas."""
        latent = self.canvas.add(tokens, scale, codes)
        self.tokens.append(tokens)
        self._tell(max(scale, len(self.groups) - 1), tokens, latent)

    def _tell(self, scale: int, tokens: Tensor, latent: Tensor) -> None:
        """Call back."""
        if self.on_scale is not None:
            run = self.run
            self.on_scale(ScaleEvent(scale, tokens, latent, run.tokenizer, run.schedule, run.decoder, self.noise))

    def put_tokens(self, tokens_BL: Tensor, codes_BLC: Tensor | None = None) -> None:
        """Add tokens of the only map, a part of it; `codes` if others than theirs go to the canvas."""
        self.begun = tokens_BL if self.begun is None else torch.cat((self.begun, tokens_BL), dim=1)
        self.begun_codes.append(self.canvas.pyramid.embed(tokens_BL) if codes_BLC is None else codes_BLC)
        known, codes = self.begun.shape[1], self.begun_codes
        if known == self.run.schedule.total:
            self.put(0, self.begun, torch.cat(codes, dim=1))
        elif known in self.groups:
            latent = self.canvas.pyramid.grow(None, torch.cat(codes, dim=1), 0)
            self._tell(self.groups.index(known), self.begun, latent)

    def count(self, one: Bound, passes: int, evaluations: int = 0) -> None:
        """Enter what a step took."""
        self.passes, self.evaluations = self.passes + passes, self.evaluations + evaluations
        self.cache_bytes = max(self.cache_bytes, self.cache.nbytes)

    def add(self, tally: Any, passes: int, cache_bytes: int) -> None:
        """Enter what a verification took."""
        self.speculation = tally if self.speculation is None else self.speculation.continued(tally)
        self.passes, self.cache_bytes = self.passes + passes, max(self.cache_bytes, cache_bytes)

    def result(self) -> Decoded:
        """What was drawn, and what it took."""
        assert self.canvas.latent is not None
        return Decoded(
            self.tokens, self.canvas.latent, self.passes, self.evaluations, self.cache_bytes, self.speculation
        )


def _draw_scale(drawing: Drawing, one: Bound) -> None:
    """One scale at once, and its masked passes."""
    drawing.enter(one)
    canvas, schedule, k = drawing.canvas, drawing.run.schedule, one.step.scale
    inputs = canvas.inputs_of(one.scales, one.rows)
    more: dict[str, Any] = {"open_prefill": True} if one.step.open_prefill and len(one.scales) > 1 else {}
    if one.step.mixed_after is not None and one.step.is_guided:
        more["mixed"] = (one.step.mixed_after, one.step.guidance)
    more |= {} if one.sparse is None else {"pruned": _pruned_pass(drawing, one, one.sparse)}
    read = one.network.hidden if one.sparse is not None else drawing.run.compiled(one.network.hidden)
    hidden = read(
        drawing.condition, inputs, scales=one.scales, schedule=schedule, cache=drawing.cache, layers=one.layers, **more
    )
    at = drawing.setting(one)
    features = hidden[:, -schedule.lengths[k] :]
    drawn = one.step.head.draw(features, at) if one.scorer is None else best_candidate(drawing, one, features, at)
    found = drawn.tokens
    if drawing.preserved is not None:
        found = drawing.preserved.merge_tokens(k, found)
    if one.step.masked:
        first = Drawn(found, None, drawn.logits)
        found = redrawn(one.step, first, at, canvas.inputs[k - 1], drawing.preserved)
    drawing.count(one, 1 + len(one.step.masked), one.step.head.evaluations())
    drawing.put(k, found, drawn.codes)


def _pruned_pass(drawing: Drawing, one: Bound, sparse: Sparse) -> PrunedPass:
    source = one.step.pruned.source if one.step.pruned is not None else None
    sources = {scale: layers for scale, layers in sparse.sources if scale in one.scales}
    return PrunedPass(drawing.cache, drawing.run.schedule, one.scales, sparse.kept, source, sources)


def _draw_together(drawing: Drawing, one: Bound) -> None:
    """Some maps, or a part of one, in one pass: from noise and from the codes before them, which are recomputed.

    What follows has no influence on them, so it is not computed.
    """
    drawing.leave()
    network, run, canvas = one.network, drawing.run, drawing.canvas
    drawing.condition, drawing.rows = network.condition(drawing.request.rows(network, 1)), 1
    new = one.step.places.covered(run.schedule)
    noise = drawing.noise.normal(Stream.FLOW, new.start, len(new), network.config.latent_channels)
    hidden = run.compiled(network.together)(
        drawing.condition, torch.cat((*canvas.codes, *drawing.begun_codes, noise), dim=1), new.start
    )
    drawn = one.step.head.draw(hidden[:, new.start :], drawing.setting(one, new))
    codes = canvas.pyramid.embed(drawn.tokens) if drawn.codes is None else drawn.codes
    drawing.passes += 1
    for scale, tokens in _within_scales(new, run.schedule):
        part = slice(tokens.start - new.start, tokens.stop - new.start)
        found, own = drawn.tokens[:, part], codes[:, part]
        if drawing.preserved is not None:
            here = slice(tokens.start - run.schedule.offsets[scale], tokens.stop - run.schedule.offsets[scale])
            found = drawing.preserved.merge_tokens(scale, found, here)
            own = drawing.preserved.merge_codes(scale, canvas.pyramid.embed(found), own, here)
        if len(run.schedule) == 1:
            drawing.put_tokens(found, own)
        else:
            drawing.put(scale, found, own)
    drawing.leave()


def _within_scales(tokens: range, schedule: Schedule) -> Iterator[tuple[int, range]]:
    """The scales that some tokens are of, each with its part of them."""
    for scale, (begin, end) in enumerate(pairwise(schedule.offsets)):
        part = range(max(begin, tokens.start), min(end, tokens.stop))
        if part:
            yield scale, part


def _draw_tokens(drawing: Drawing, one: Bound) -> None:
    """Tokens one after another: each depends on the condition and on all before it, also preserved ones."""
    drawing.enter(one)
    at, head, cache = drawing.setting(one), cast(Categorical, one.step.head), drawing.cache
    new = one.step.places.covered(drawing.run.schedule)
    picked, read = head.picker(at, new.start, len(new)), by_token(drawing.run.compiler, one.network, cache)
    before = drawing.begun
    if before is None:
        device = next(one.network.parameters()).device
        before = torch.empty(len(drawing.request), 0, dtype=torch.int64, device=device)
    unread, found = before[:, cache.tokens :], []
    ends = {*drawing.groups, new.stop}
    for position in new:
        hidden = read(drawing.condition.tokens if cache.length == 0 else None, unread.repeat(one.rows, 1))
        logits = one.network.logits(drawing.condition, hidden[:, -1:])
        unread = picked(head.choices(logits, at, f"the logits of token {position}"), position - new.start)
        if drawing.preserved is not None:
            unread = drawing.preserved.merge_tokens(0, unread, slice(position, position + 1))
        found.append(unread)
        if position + 1 in ends:
            drawing.put_tokens(torch.cat(found, dim=1))
            found = []
    drawing.count(one, len(new))


def _draw_group(drawing: Drawing, one: Bound) -> None:
    """A group of tokens of one map together, given those that are known; nothing where all of them are preserved."""
    group, k = one.step.places, one.step.scale
    assert isinstance(group, Group)
    drawing.enter(one)
    sketch, end = drawing.sketched(one), group.first + group.count
    if end > sketch.known:
        hidden = one.network.group_hidden(drawing.condition, sketch, end, scale=k, cache=drawing.cache)
        at = replace(
            drawing.setting(one),
            positions=sketch.asked(end) + drawing.run.schedule.offsets[k],
            sketch=sketch,
            cache=drawing.cache,
            attempt=group.first,
            place=f"tokens {group.first} to {end - 1} of map {k}",
        )
        drawn = one.step.head.draw(hidden, at)
        drawing.count(one, 1, one.step.head.evaluations())
        sketch.put(drawn.tokens, end, drawing.preserved, k)
    if end == drawing.run.schedule.lengths[k]:
        drawing.sketch = None
        drawing.put(k, sketch.tokens_BLc)
