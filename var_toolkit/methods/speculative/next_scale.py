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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from var_toolkit.core.cache import KVCache
from var_toolkit.core.engine import Canvas, Decoded, ScaleEvent, labels_of_rows, scale_choices
from var_toolkit.core.filters import draw, pick
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.plan import Backbone, Plan, Stage, is_continuous, is_next_token
from var_toolkit.methods.speculative.rules import Drafted, Rule, Standard
from var_toolkit.methods.speculative.tally import Tally
from var_toolkit.ranges import checked

SHARED = ("patch_nums", "vocab_size", "latent_channels", "num_classes")


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


@dataclass(frozen=True, repr=False)
class NextScale:
    """How a VAR draws its images with the help of a smaller one.

    The proposer is a network, which drafts with the target's settings, or a stage with settings of its own; a stage
    drafts no other scales than its own. `window` is the largest number of scales that one pass of the target decides:
    the drafted ones and one from the target itself. 1 is plain decoding.
    """

    proposer: Backbone | Stage
    rule: Rule = field(default_factory=Standard)
    window: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", checked("draft_length", self.window))

    @property
    def networks(self) -> list[Backbone]:
        """The proposer's."""
        return [self.proposer.backbone if isinstance(self.proposer, Stage) else self.proposer]

    def require_fit(self, stage: Stage) -> None:
        """ValueError unless the stage and the proposer are VARs drawn plainly, for the same images."""
        self.drafting(stage)

    def drafting(self, target: Stage) -> Stage:
        """How the proposer draws for a target. ValueError unless both are VARs drawn plainly, for the same images."""
        (network,) = self.networks
        _require_fit(network, target.backbone)
        alike = replace(target, backbone=network, speculation=None)
        proposer = self.proposer if isinstance(self.proposer, Stage) else alike
        for stage in (proposer, target):
            if stage.smooth or stage.subnet is not None:
                odd = "smooth" if stage.smooth else "subnet"
                raise ValueError(f"next-scale speculation draws plainly, without {odd}; switch it off")
        return proposer

    @torch.inference_mode()
    def decode(
        self, plan: Plan, labels_B: Tensor, noise: Noise, *, on_scale: Callable[[ScaleEvent], None] | None = None
    ) -> Decoded:
        """As `sampling.engine.decode`, which calls it. The callback is called for a scale once all images have it.

        Passes and memory are those of the batch: a pass for all images that begin a round at a scale counts as one.
        """
        (target,) = plan.stages
        run = _Run(self, plan, self.drafting(target), labels_B, noise)
        for k in range(len(plan.tokenizer.scales)):
            run.round(k)
            latent = run.canvas.add(run.canvas.pyramid.embed(run.tokens[k]), k)
            if on_scale is not None:
                on_scale(ScaleEvent(k, run.tokens[k], latent, plan.tokenizer))
        run.checks.require()
        return Decoded(run.tokens, latent, run.tally.forward_passes, 0, run.tally.cache_bytes, run.tally)

    def __repr__(self) -> str:
        """All settings in words, without the network."""
        drafts = f"of {self.proposer}" if isinstance(self.proposer, Stage) else f"by {_named(self.proposer)}"
        return f"drafts {drafts}, {self.rule}, window {self.window}"


class _Draft(NamedTuple):
    """A drafted scale of some images."""

    tokens: Tensor  # (G, n_k)
    q: Tensor  # (G, n_k, V): what they were drawn from


@dataclass(frozen=True)
class _Reader:
    """A network at work on some images of a batch. Its cache is that of the whole batch."""

    stage: Stage
    condition: Any
    cache: KVCache
    rows: Tensor | slice

    @classmethod
    def begin(cls, stage: Stage, labels_B: Tensor, scales: int) -> _Reader:
        """A network that will read at most `scales` scales."""
        backbone: Any = stage.backbone
        rows_R, capacity = labels_of_rows(stage, labels_B), backbone.scales.offsets[scales]
        cache = backbone.new_cache(len(rows_R), [capacity] * backbone.config.depth)
        return cls(stage, backbone.condition(rows_R), cache, slice(None))

    def of(self, images_G: Tensor, count: int) -> _Reader:
        """The same for some of `count` images."""
        if len(images_G) == count:
            return self
        rows = torch.cat([images_G + half * count for half in range(self.stage.rows)])
        return replace(self, condition=self.condition.of_rows(rows), rows=rows)

    def features(self, canvas: Canvas, scales: range) -> Tensor:
        """(R, L, C) of some scales, which replaces what the cache holds of them and of finer ones."""
        backbone: Any = self.stage.backbone
        cache = self.cache.of_rows(self.rows, canvas.scales.offsets[scales.start])
        inputs = canvas.inputs_of(scales, self.stage.rows)
        return backbone.hidden(self.condition, inputs, scales=scales, cache=cache)

    def choices(self, features_RLC: Tensor, scale: int, checks: FiniteCheck, whose: str) -> Tensor:
        """What the tokens of a scale are drawn from, logits (G, n_k, V) before the temperature."""
        backbone: Any = self.stage.backbone
        return scale_choices(self.stage, backbone.logits(self.condition, features_RLC), scale, checks, whose)


class _Run:
    """One batch under way."""

    def __init__(self, settings: NextScale, plan: Plan, proposer: Stage, labels_B: Tensor, noise: Noise) -> None:
        self.rule, self.window, self.noise = settings.rule, settings.window, noise
        self.canvas, self.scales = Canvas(plan.tokenizer), plan.tokenizer.scales
        # Nothing is gained by drafts of the last scale: the pass that would judge them can draw it.
        self.drafted = range(proposer.scales.start, min(proposer.scales.stop, len(self.scales) - 1))
        self.target = _Reader.begin(plan.stages[0], labels_B, len(self.scales))
        self.proposer = _Reader.begin(proposer, labels_B, self.drafted.stop)
        self.tokens = [labels_B.new_zeros(len(labels_B), length) for length in self.scales.lengths]
        self.decided_B = torch.zeros_like(labels_B)  # scales of each image; the target's cache holds as many
        self.held_B = torch.zeros_like(labels_B)  # scales in the proposer's cache that are still valid
        self.checks = FiniteCheck()
        self.tally = ScaleTally(images=len(labels_B), decided=len(labels_B) * self.scales.total)
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
        features = target.features(canvas, scales).split(self.scales.lengths[first : scales.stop], dim=1)
        whole = torch.arange(len(images_G), device=images_G.device)  # images whose drafts are all accepted until here
        for k, part, draft in zip(scales, features, [*drafts, None], strict=True):
            if len(whole) == 0:
                break
            images, logits = images_G[whole], target.choices(part, k, self.checks, "target's ")[whole]
            self.decided_B[images] = k + 1
            if draft is None:
                self.tokens[k][images] = draw(
                    logits, self._uniform(Stream.TOKEN, k, images), temperature=target.stage.temperature
                )
            else:
                draft = _Draft(*(one[whole] for one in draft))
                found = self.tokens[k][images] = self._judged(draft, logits, k, first, images)
                whole = whole[self._accepted_whole(draft.tokens == found, k)]
        self._record(images_G, first, len(drafts))

    def _drafts(self, images_G: Tensor, canvas: Canvas, first: int) -> list[_Draft]:
        """Scales from `first` on, each drafted from the drafts before it, which are added to the canvas."""
        proposer, drafts = self.proposer.of(images_G, len(self.decided_B)), []
        known = int(self.held_B[images_G].min())
        last = min(first + self.window - 1, self.drafted.stop) if first in self.drafted else first
        for k in range(first, last):
            features = proposer.features(canvas, range(known, k + 1))[:, -self.scales.lengths[k] :]
            logits = proposer.choices(features, k, self.checks, "draft model's ")
            q = (logits / proposer.stage.temperature).softmax(-1)
            drafts.append(_Draft(pick(q, self._uniform(Stream.DRAFT, k, images_G)), q))
            canvas.add(canvas.pyramid.embed(drafts[-1].tokens), k)
            known = k + 1
        return drafts

    def _judged(self, draft: _Draft, logits: Tensor, k: int, first: int, images_G: Tensor) -> Tensor:
        """The tokens of a drafted scale: accepted drafts, and tokens from the residual distribution for the others."""
        p = (logits / self.target.stage.temperature).softmax(-1)
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
        return self.noise.uniform(stream, self.scales.offsets[k], self.scales.lengths[k])[images_G]

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


def _require_fit(proposer: Backbone, target: Backbone) -> None:
    for role, network in (("proposer", proposer), ("target", target)):
        if is_next_token(network) or is_continuous(network) or getattr(network, "markov", True):
            raise ValueError(f"next-scale speculation is for VAR; {type(network).__name__} cannot be its {role}")
    for name in SHARED:
        ours, theirs = (_shown(getattr(network.config, name)) for network in (proposer, target))
        if ours != theirs:
            raise ValueError(f"the proposer has {name} {ours} and the target {theirs}; they must agree")


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def _named(network: Backbone) -> str:
    return f"{type(network).__name__} {network.config.depth} x {network.config.embed_dim}"
