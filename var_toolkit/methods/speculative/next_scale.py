"""Next-scale speculation: a small VAR proposes some scales, and the large one scores them all in one block-causal pass.

The tokens of a scale are drawn independently, given the coarser scales. So a rule judges every token of a proposed
scale by itself, and a rejected token is redrawn from the residual distribution: the scale then has the distribution of
the target, whether all of it was accepted or not. If it was not, the finer drafts, which belong to another image, are
discarded and drafting starts again after it. If all were accepted, the target draws one more scale from the same pass.

When it is worth it: a scale of n tokens is accepted only if all n are, so with an exact rule only the coarsest are,
which are cheap anyway. With the embedded VAR of 12 layers as the target and that of 6 as the proposer, .75, .79,
.65, .48 and .46 of the tokens of scales 0 to 4 are accepted, and an image takes 5.1 passes instead of 6 with a window
of two, 4.8 with three or more. LANTERN accepts more (delta 0.2: 4.0 passes with a window of three; 0.4: 3.6, and 3.3
with four). But the proposer takes half the time of the target, and most drafts of fine scales are rejected: on a CPU,
whose time grows with the tokens, drafts of every scale take 1.4 to 2.7 times as long as plain decoding, with either
rule. A stage that drafts only the first two scales takes 1.0 to 1.1 times as long and saves 1.1 passes, 1.9 with
LANTERN at 0.4. So it can be worth it only where the time of a pass does not depend on the number of its tokens: a large
target and a far smaller proposer on a GPU, one image at a time. A batch saves less: ten images start their rounds at
different scales, so that with the standard rule 5.7 to 5.9 passes of 6 are left.

Every image advances at its own pace, so none depends on the others of its batch. Letters: B images, G those of
them that begin a round together, R rows (images, twice under guidance), L tokens, V vocabulary, C width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from var_toolkit.conditions.condition import Asked
from var_toolkit.core.bind import Bound, Run
from var_toolkit.core.cache import KVCache
from var_toolkit.core.canvas import Canvas
from var_toolkit.core.engine import Drawing
from var_toolkit.core.filters import pick
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.noise import Stream
from var_toolkit.core.plan import DRAFT, Scale, Verify
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.categorical import Categorical, guided_logits, only
from var_toolkit.methods.speculative.rules import Drafted, Rule, Standard
from var_toolkit.methods.speculative.tally import Tally
from var_toolkit.ranges import checked

SHARED = ("vocab_size", "latent_channels", "num_classes")


@dataclass
class ScaleTally(Tally):
    """Counts of drafted scales rather than of tokens; a round counts in `accepted_counts` if it had drafts."""

    judged: Counter[int] = field(default_factory=Counter)  # tokens that the rule looked at, by scale
    accepted_tokens: Counter[int] = field(default_factory=Counter)  # of them

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Self:
        counted = list(tallies)
        whole = super().total(counted)
        for one in counted:
            if isinstance(one, ScaleTally):
                whole.judged += one.judged
                whole.accepted_tokens += one.accepted_tokens
        return whole

    def as_json(self) -> dict[str, Any]:
        """The same, and the share of accepted tokens by scale; a scale is accepted only if all of them are."""
        by_scale = {str(k): round(self.accepted_tokens[k] / self.judged[k], 4) for k in sorted(self.judged)}
        return {**super().as_json(), "token_acceptance_by_scale": by_scale}


@dataclass(frozen=True)
class NextScale(Verify):
    """How a VAR draws consecutive scales with the help of a smaller one, the network of the role `draft`.

    `window` is the largest number of scales that one pass of the target decides: the drafted ones and one from the
    target itself. 1 is plain decoding. Drafts are drawn as the target draws, or with another `head` or without
    guidance (`guided`), and of the first `drafted` scales alone; None for all.
    """

    rule: Rule = field(default_factory=Standard)
    window: int = 2
    head: Categorical | None = None
    guided: bool = True
    drafted: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", checked("draft_length", self.window))

    def networks(self) -> tuple[str, ...]:
        """The roles of the networks that draft."""
        return (DRAFT,)

    def bound(self, run: Run, steps: Sequence[Bound]) -> ScaleSpeculator:
        """What draws some steps. ValueError unless both networks are VARs that draw plainly, for the same images."""
        return ScaleSpeculator(self, run, steps)


class ScaleSpeculator:
    """A speculation over scales with its networks."""

    def __init__(self, settings: NextScale, run: Run, steps: Sequence[Bound]) -> None:
        self.settings, self.run, self.steps = settings, run, {one.step.scale: one for one in steps}
        self.target, self.proposer = steps[0].network, run.networks[DRAFT]
        require_same_images(self.proposer, self.target, run.schedule)
        for one in steps:
            head = one.step.head
            plain = isinstance(head, Categorical) and not head.smooth
            if not plain or not isinstance(one.step.places, Scale) or one.step.masked or one.layers:
                raise ValueError(
                    "next-scale speculation draws plainly, without smooth, subnet or masked passes; switch it off"
                )

    @cached_property
    def rule(self) -> Rule:
        """The rule for the codes of the tokenizer."""
        return self.settings.rule.bound(self.run.pyramid)

    def draw(self, drawing: Drawing) -> None:
        """Draw the scales of the steps.

        Passes and memory are those of the batch: a pass for all images that begin a round at a scale counts as one.
        """
        batch = _Batch(self, drawing)
        for k in self.steps:
            batch.round(k)
            drawing.put(k, batch.tokens[k])
        drawing.add(batch.tally, batch.tally.forward_passes, batch.tally.cache_bytes)

    def __str__(self) -> str:
        config = self.proposer.config
        drafts = f"drafts by {type(self.proposer).__name__} {config.depth} x {config.embed_dim}"
        how = [] if self.settings.head is None else self.settings.head.shown(0.0)
        how += [] if self.settings.guided else ["without guidance"]
        how += [] if self.settings.drafted is None else [f"{self.settings.drafted} scales drafted"]
        return ", ".join([drafts, *how, str(self.settings.rule), f"window {self.settings.window}"])


class _Draft(NamedTuple):
    """A drafted scale of some images."""

    tokens: Tensor  # (G, n_k)
    q: Tensor  # (G, n_k, V): what they were drawn from


@dataclass(frozen=True)
class _Way:
    """How a network draws one scale."""

    head: Categorical
    guidance: float


@dataclass(frozen=True)
class _Reader:
    """A network at work on some images of a batch. Its cache is that of the whole batch."""

    network: Any
    ways: dict[int, _Way]  # by scale
    condition: Any
    cache: KVCache
    rows: Tensor | slice
    copies: int  # rows for each image

    @classmethod
    def begin(cls, network: Any, ways: dict[int, _Way], request: Asked, tokens: int) -> _Reader:
        """A network that will read at most `tokens` tokens of each row."""
        copies = 2 if any(way.guidance > 0 for way in ways.values()) else 1
        cache = network.new_cache(copies * len(request), [tokens] * network.config.depth)
        return cls(network, ways, network.condition(request.rows(network, copies)), cache, slice(None), copies)

    def of(self, images_G: Tensor, count: int) -> _Reader:
        """The same for some of `count` images."""
        if len(images_G) == count:
            return self
        rows = torch.cat([images_G + half * count for half in range(self.copies)])
        return replace(self, condition=self.condition.of_rows(rows), rows=rows)

    def features(self, canvas: Canvas, scales: range) -> Tensor:
        """(R, L, C) of some scales, which replaces what the cache holds of them and of finer ones."""
        cache = self.cache.of_rows(self.rows, canvas.schedule.offsets[scales.start])
        inputs = canvas.inputs_of(scales, self.copies)
        found: Tensor = self.network.hidden(
            self.condition, inputs, scales=scales, schedule=canvas.schedule, cache=cache
        )
        return found

    def choices(self, features_RLC: Tensor, scale: int, checks: FiniteCheck, whose: str) -> Tensor:
        """What the tokens of a scale are drawn from, logits (G, n_k, V) before the temperature."""
        way, logits = self.ways[scale], self.network.logits(self.condition, features_RLC)
        if self.copies == 2:
            logits = guided_logits(logits, way.guidance)
        checks.note(logits, f"the {whose}logits of scale {scale}", self.network, way.guidance)
        return way.head.filtered(logits)

    def probabilities(self, filtered_GLV: Tensor, scale: int) -> Tensor:
        """What the tokens are drawn from, (G, n_k, V)."""
        return self.ways[scale].head.probabilities(filtered_GLV)


class _Batch:
    """One batch under way."""

    def __init__(self, speculator: ScaleSpeculator, drawing: Drawing) -> None:
        settings, steps = speculator.settings, speculator.steps
        self.rule, self.window, self.noise = speculator.rule, settings.window, drawing.noise
        self.canvas, self.schedule, self.preserved = drawing.canvas, drawing.run.schedule, drawing.preserved
        self.first, self.stop = min(steps), max(steps) + 1
        # Nothing is gained by drafts of the last scale: the pass that would judge them can draw it.
        last = self.stop - 1 if settings.drafted is None else min(self.first + settings.drafted, self.stop - 1)
        self.drafted = range(self.first, last)
        ways = {k: _Way(one.step.head, one.step.guidance) for k, one in steps.items()}  # type: ignore[arg-type]
        drafts = {
            k: _Way(settings.head or way.head, way.guidance if settings.guided else 0.0) for k, way in ways.items()
        }
        request, offsets = drawing.request, self.schedule.offsets
        self.target = _Reader.begin(speculator.target, ways, request, offsets[self.stop])
        self.proposer = _Reader.begin(speculator.proposer, drafts, request, offsets[self.drafted.stop])
        count, device = len(request), next(speculator.target.parameters()).device
        self.tokens = [torch.zeros(count, n, dtype=torch.int64, device=device) for n in self.schedule.lengths]
        self.decided_B = torch.full((count,), self.first, device=device)  # scales of each image
        self.held_B = torch.zeros_like(self.decided_B)  # scales in the proposer's cache that are still valid
        self.checks = drawing.checks
        decided = sum(self.schedule.lengths[self.first : self.stop])
        self.tally = ScaleTally(images=count, decided=count * decided)
        self.tally.cache_bytes = self.target.cache.nbytes + self.proposer.cache.nbytes

    def round(self, first: int) -> None:
        """Decide the scale `first`, and finer ones if drafts are accepted, of the images that have reached it."""
        images_G = (self.decided_B == first).nonzero().squeeze(1)
        if len(images_G) == 0:
            return
        canvas = self.canvas.of(images_G)
        drafts = self._drafts(images_G, canvas, first)
        scales = range(first, first + len(drafts) + 1)
        target = self.target.of(images_G, len(self.decided_B))
        known = 0 if first == self.first else first  # the first round reads the scales of earlier steps, too
        read = target.features(canvas, range(known, scales.stop))
        read = read[:, self.schedule.offsets[first] - self.schedule.offsets[known] :]
        features = read.split(self.schedule.lengths[first : scales.stop], dim=1)
        whole = torch.arange(len(images_G), device=images_G.device)  # images whose drafts are all accepted until here
        for k, part, draft in zip(scales, features, [*drafts, None], strict=True):
            if len(whole) == 0:
                break
            images, logits = images_G[whole], target.choices(part, k, self.checks, "target's ")[whole]
            p = target.probabilities(self._preserving(logits, k), k)
            self.decided_B[images] = k + 1
            if draft is None:
                self.tokens[k][images] = pick(p, self._uniform(Stream.TOKEN, k, images))
            else:
                draft = _Draft(*(one[whole] for one in draft))
                found = self.tokens[k][images] = self._judged(draft, p, k, first, images)
                whole = whole[self._accepted_whole(draft.tokens == found, k)]
        self._record(images_G, first, len(drafts))

    def _drafts(self, images_G: Tensor, canvas: Canvas, first: int) -> list[_Draft]:
        """Scales from `first` on, each drafted from the drafts before it, which are added to the canvas."""
        proposer, drafts = self.proposer.of(images_G, len(self.decided_B)), []
        known = int(self.held_B[images_G].min())
        last = min(first + self.window - 1, self.drafted.stop) if first in self.drafted else first
        for k in range(first, last):
            features = proposer.features(canvas, range(known, k + 1))[:, -self.schedule.lengths[k] :]
            logits = proposer.choices(features, k, self.checks, "draft model's ")
            q = proposer.probabilities(self._preserving(logits, k), k)
            drafts.append(_Draft(pick(q, self._uniform(Stream.DRAFT, k, images_G)), q))
            canvas.add(drafts[-1].tokens, k)
            known = k + 1
        return drafts

    def _preserving(self, logits_GLV: Tensor, k: int) -> Tensor:
        """The logits, certain of the given token where it is preserved."""
        if self.preserved is None:
            return logits_GLV
        given, mask = (part[k].expand(len(logits_GLV), -1) for part in (self.preserved.tokens, self.preserved.mask))
        return only(given, logits_GLV, mask)

    def _judged(self, draft: _Draft, p: Tensor, k: int, first: int, images_G: Tensor) -> Tensor:
        """The tokens of a drafted scale: accepted drafts, and tokens from the residual distribution for the others."""
        tokens = draft.tokens.unsqueeze(-1)
        depth = torch.full_like(draft.tokens, k - first)
        drafted = Drafted(tokens, torch.ones_like(tokens, dtype=torch.bool), draft.q, "independent", depth)
        verdict = self.rule.judge(p, drafted, self._uniform(Stream.ACCEPT, k, images_G).unsqueeze(-1))
        redrawn = pick(verdict.residual, self._uniform(Stream.TOKEN, k, images_G))
        return torch.where(verdict.choice == 0, draft.tokens, redrawn)

    def _uniform(self, stream: Stream, k: int, images_G: Tensor) -> Tensor:
        """Numbers for the tokens of a scale, the same in every round.

        A judged scale is decided, so an image uses them in one verdict at most; discarded drafts that were never judged
        have no influence on the image.
        """
        return self.noise.uniform(stream, self.schedule.offsets[k], self.schedule.lengths[k])[images_G]

    def _accepted_whole(self, same_GL: Tensor, k: int) -> Tensor:
        """Images whose drafted scale is accepted as a whole, bool (G,)."""
        self.tally.judged[k] += same_GL.numel()
        self.tally.accepted_tokens[k] += int(same_GL.sum())
        return same_GL.all(1)

    def _record(self, images_G: Tensor, first: int, drafts: int) -> None:
        """Update the counts after a round."""
        decided_G, count = self.decided_B[images_G], len(images_G)
        self.tally.forward_passes += 1
        self.tally.target_passes += count
        if drafts:
            # The proposer's keys of a scale follow from coarser scales alone: those of a rejected scale stay valid.
            self.held_B[images_G] = decided_G.clamp(max=first + drafts)
            self.tally.draft_passes += drafts * count
            self.tally.drafted += drafts * count
            self.tally.accepted_counts.update((decided_G - first - 1).tolist())


def require_same_images(proposer: Any, target: Any, schedule: Schedule) -> None:
    """ValueError unless two networks are VARs for the same images."""
    for role, network in (("proposer", proposer), ("target", target)):
        if not getattr(network, "has_subnets", False):
            raise ValueError(f"next-scale speculation is for VAR; {type(network).__name__} cannot be its {role}")
        network.require_schedule(schedule)
    for name in SHARED:
        ours, theirs = (getattr(network.config, name) for network in (proposer, target))
        if ours != theirs:
            raise ValueError(f"the proposer has {name} {ours} and the target {theirs}; they must agree")
