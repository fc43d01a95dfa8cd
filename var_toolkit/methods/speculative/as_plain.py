"""Fixed-point iteration (arXiv 2002.09928): several tokens a pass, and exactly those of plain decoding, seed by seed.

The noise of a position is the same whenever it is drawn, so the token of a position is a function of the tokens before
it. A pass over some guesses computes the tokens of all their positions; they are right up to the first guess that was
wrong, and the others are the guesses of the next pass. Since no choice changes a token, how many guesses a pass has may
depend on measured seconds (`Pace`).

Letters: B images, N guesses, L tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter, thread_time
from typing import NamedTuple

import torch
from torch import Tensor

from var_toolkit.core.bind import Bound, Run
from var_toolkit.core.engine import Drawing
from var_toolkit.core.filters import pick
from var_toolkit.core.plan import Verify
from var_toolkit.methods.speculative.drafts import Draft, topology
from var_toolkit.methods.speculative.tally import Tally
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.verify import Rounds, Target, rounds_of
from var_toolkit.ranges import checked

PROBES = 2  # passes of each length before one is chosen
RECENT = 32  # passes of a length that its seconds and tokens are means of
EXPECTED, TRUST = 1 / 3, 8  # a pass of n tokens decides n**EXPECTED, which weighs as much as so many passes
FORGET = 2  # passes of other lengths after which one forgets a pass of its own: another part of an image is another
LOSS, CREDIT = (
    0.02,
    0.1,
)  # share of the time of plain decoding that may be lost before it takes over; that may be saved up


@dataclass(frozen=True)
class AsPlain(Verify):
    """`window` counts the tokens of a pass at most: the guesses, and the last token before them."""

    window: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", checked("draft_length", self.window))

    def bound(self, run: Run, steps: Sequence[Bound]) -> PlainSpeculator:
        """What draws the tokens of some steps. ValueError unless they are drawn alike, token by token."""
        return PlainSpeculator(self, TokenSampling.of_steps(steps), run, steps)


class PlainSpeculator:
    """The iteration of a run, and what it has measured for each number of images."""

    def __init__(self, settings: AsPlain, sampling: TokenSampling, run: Run, steps: Sequence[Bound]) -> None:
        self.settings, self.sampling, self.run = settings, sampling, run
        self.stop = steps[-1].step.places.covered(run.schedule).stop
        self.paces: dict[int, Pace] = {}

    def draw(self, drawing: Drawing) -> None:
        """Draw the tokens of the steps."""
        rounds = rounds_of(self.sampling, drawing, self.run, self.stop)
        pace = self.paces.setdefault(rounds.images, Pace(self.settings.window, self.stop))
        tally = iterate(rounds, pace)
        drawing.add(tally, tally.forward_passes, tally.cache_bytes)
        drawing.put_tokens(rounds.tokens_BL[:, rounds.first :])

    def __str__(self) -> str:
        return f"tokens of plain decoding, up to {self.settings.window} a pass as far as that is faster"


class Pace:
    """Which length decides most tokens a second, and whether any is faster than plain decoding.

    The seconds of every length are measured, those of the shorter ones first, and then the best is taken. A few passes
    say little of how many tokens a length decides, so they are weighed with what is usual. What is lost to plain
    decoding is limited. Seconds are medians, since other work of a machine makes some passes long.
    """

    def __init__(self, longest: int, tokens: int) -> None:
        self.lengths = sorted({2**power for power in range(longest.bit_length()) if 2**power < longest} | {longest})
        self.allowed, self.credit, self.lost, self.passes = LOSS * tokens, CREDIT * tokens, 0.0, 0  # in plain passes
        self.seconds, self.gains = ({length: deque[float](maxlen=RECENT) for length in self.lengths} for _ in range(2))

    @property
    def given_up(self) -> bool:
        """Whether the rest of the batch is drawn plainly."""
        return self.lost > self.allowed or self.lengths == [1]

    def begin(self) -> None:
        """Another batch, which may lose as much as the one before, or half of it if that was given up."""
        if self.given_up:
            self.allowed /= 2
        self.lost = 0.0

    def next(self) -> int:
        """Tokens of the next pass."""
        for length in self.lengths:
            if len(self.seconds[length]) < PROBES:
                return length
        return max(self.lengths[1:], key=lambda length: self.gain(length) / median(self.seconds[length]))

    def gain(self, length: int) -> float:
        """Tokens that a pass decides for an image."""
        seen = self.gains[length]
        return (TRUST * length**EXPECTED + sum(seen)) / (TRUST + len(seen))

    def enter(self, length: int, seconds: float, gains: Sequence[int], progress: int) -> None:
        """What a pass took, what images that are not finished have gained, and what the slowest of them.

        A loss is that of the slowest image, for which the batch waits. A gain makes up for some of a later loss.
        """
        self.seconds[length].append(seconds)
        self.gains[length].append(fmean(gains))
        self.passes += 1
        if self.passes % FORGET == 0:
            for other in self.lengths:
                if other != length and self.gains[other]:
                    self.gains[other].popleft()
        if length > 1:
            plain_passes = median(self.seconds[length]) / median(self.seconds[1])
            self.lost = max(-self.credit, self.lost + plain_passes - progress)


@torch.inference_mode()
def iterate(run: Rounds, pace: Pace) -> Tally:
    """Decide all tokens of a batch (`run.tokens_BL`); returns what it took."""
    target, tally = Target(run, pace.lengths[-1] - 1), Tally(images=run.images)
    tally.decided, tally.paces = (run.total - run.first) * run.images, [[] for _ in run.counts]
    pace.begin()
    clock = _clock(run.positions_B.device)
    found = _pass(run, target, None)
    _enter(tally, run.counts, [run.first] * run.images, None)
    while any(run.left) and not pace.given_up:
        asked, before, begun = pace.next(), run.counts, clock()
        guesses_BN = _guesses(found, pace.lengths[-1] - 1)
        draft = _draft(run, guesses_BN, min(asked, max(run.left)))
        run.round += 1
        found = _pass(run, target, draft)
        found = found._replace(tokens=torch.cat((found.tokens, guesses_BN[:, found.tokens.shape[1] :]), dim=1))
        gains = _enter(tally, run.counts, before, draft)
        if asked <= run.total - min(before):  # the last passes are shorter
            pace.enter(asked, clock() - begun, gains, min(run.counts) - min(before))
    if any(run.left):
        tally.fall_backs = run.images
        ends = run.counts
        _plainly(run, target)
        for count in range(min(ends), run.total):  # those that come out again count for nothing
            _enter(tally, [max(count + 1, end) for end in ends], [max(count, end) for end in ends], None)
    run.checks.require()
    tally.forward_passes, tally.cache_bytes = run.round + 1, target.cache.nbytes
    return tally


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds, on a CPU without those in which other programs had it."""
    return thread_time if device.type == "cpu" else perf_counter


class _Found(NamedTuple):
    """What a pass has computed."""

    tokens: Tensor  # (B, 1 + N): of every position, then earlier guesses
    new: Tensor  # (B): how many of them are right


def _pass(run: Rounds, target: Target, draft: Draft | None) -> _Found:
    """One pass, and the one read by the host: how many tokens each image has gained."""
    found = _computed(run, target, draft)
    run.extend(*found)
    run.gain(found.new.tolist())
    target.rewind()
    return found


def _computed(run: Rounds, target: Target, draft: Draft | None) -> _Found:
    p, _ = target.probabilities(draft)
    ranks_L = torch.arange(p.shape[1], device=p.device)
    tokens_BL = pick(p, target.uniform(run.positions_B.unsqueeze(1) + ranks_L))
    left_B = run.total - run.positions_B
    if draft is None:
        return _Found(tokens_BL, left_B.clamp(max=1))
    right_B = (draft.tokens == tokens_BL[:, :-1]).cumprod(1).sum(1)
    return _Found(tokens_BL, torch.minimum(right_B + 1, left_B))


def _guesses(found: _Found, count: int) -> Tensor:
    """The next tokens as they were found last, and behind them the last one again and again, (B, count)."""
    ranks_N = torch.arange(count, device=found.tokens.device)
    return found.tokens.gather(1, (found.new.unsqueeze(1) + ranks_N).clamp(max=found.tokens.shape[1] - 1))


def _draft(run: Rounds, guesses_BN: Tensor, length: int) -> Draft | None:
    """The guesses of a pass of some tokens; none for one token."""
    if length == 1:
        return None
    return Draft(guesses_BN[:, : length - 1], topology((1,) * (length - 1)), run.none, None, "certain")


def _plainly(run: Rounds, target: Target) -> None:
    """Token by token, without a read by the host.

    All images go on from where the slowest is, since rows of one length are faster: their tokens come out again.
    """
    run.restart(min(run.counts))
    target.rewind()
    for position in range(run.counts[0], run.total):
        p, _ = target.probabilities(None)
        here = slice(position, position + 1)
        run.tokens_BL[:, here] = pick(p, target.uniform_BL[:, here])
        run.restart(position + 1)
        run.round += 1


def _enter(tally: Tally, counts: Sequence[int], before: Sequence[int], draft: Draft | None) -> list[int]:
    """Enter a pass; returns what images that are not finished have gained."""
    gains = []
    for pace, count, earlier in zip(tally.paces, counts, before, strict=True):
        if count > earlier:
            gains.append(count - earlier)
            pace.append(count - earlier)
            tally.target_passes += 1
            if len(pace) > 1:  # the first pass of an image has no guesses
                tally.accepted_counts[count - earlier - 1] += 1
                tally.drafted += 0 if draft is None else draft.tokens.shape[1]
    return gains
