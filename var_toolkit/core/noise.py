"""Per-image noise: the only source of randomness in decoding.

An image's noise is a pure function of its own seed, the stream (what the noise is for) and the token's position. It
does not depend on the batch, the device, the order of calls or how many processes share the work. It comes from the
counter-based generator Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), the one
that torch uses on CUDA, computed here with plain integer arithmetic so that every device gives the same bits.

Letters: B images, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from math import pi
from typing import Any

import torch
from torch import Tensor

from var_toolkit.ranges import checked

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Stream(IntEnum):
    """What noise is drawn for; different streams of one image are independent."""

    TOKEN = 0
    SMOOTH = 1
    REFINE = 2
    FLOW = 3
    DRAFT = 4
    ACCEPT = 5
    ORDER = 6
    DIFFUSION = 7
    DIFFUSION_STEPS = 8
    CANDIDATE = 9
    PIXELS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four counter words and two key words (int64 holding 32 bits each) -> four random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for number in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        if number > 0:
            k0, k1 = k0 + _KEY_STEPS[0], k1 + _KEY_STEPS[1]
        # What is multiplied next must have 32 bits. The others may carry more: they are masked where they are used.
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & _MASK, p1, ((p0 >> 32) ^ c3 ^ k1) & _MASK, p0
    return c0, c1 & _MASK, c2, c3 & _MASK


class Noise:
    """The noise of a batch of images, one 64-bit seed each."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        known = [checked("seed", seed) for seed in seeds]
        self._seeds_B11 = torch.tensor(known, dtype=torch.int64, device=device).view(-1, 1, 1)

    def of_candidates(self, count: int) -> Tensor:
        """The seeds of `count` candidates of each image, int64 (B, count); the first is the image's own."""
        high, low = self.words(Stream.CANDIDATE, 1, count - 1, 2).unbind(-1)
        return torch.cat((self._seeds_B11.flatten(1), ((high & (_MASK >> 1)) << 32) | low), dim=1)

    def candidates(self, count: int) -> Noise:
        """The noise of `count` candidates of each image, one image after another."""
        found = Noise.__new__(Noise)
        found._seeds_B11 = self.of_candidates(count).view(-1, 1, 1)
        return found

    def of(self, images: Sequence[int]) -> Noise:
        """The noise of some of the images, by their places in the batch."""
        found = Noise.__new__(Noise)
        found._seeds_B11 = self._seeds_B11[list(images)]
        return found

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self._seeds_B11)

    @property
    def device(self) -> torch.device:
        """Where the noise is."""
        return self._seeds_B11.device

    def words(self, stream: Stream, position: int, tokens: int, width: int, attempt: int = 0) -> Tensor:
        """Independent uniform 32-bit words, int64 (B, tokens, width), of the tokens from `position` on.

        Where a token is drawn more than once, `attempt` counts the draws.
        """
        device = self._seeds_B11.device
        return self._words(stream, torch.arange(position, position + tokens, device=device)[None], width, attempt)

    def _words(self, stream: Stream, positions_BL: Tensor, width: int, attempt: int | Tensor) -> Tensor:
        """`words` of tokens at some positions, of each image (B, L), or the same of all (1, L).

        `attempt` is one of all, or of each token, (1, L, 1).
        """
        block = torch.arange((width + 3) // 4, device=positions_BL.device).view(1, 1, -1)
        index, zero = positions_BL.unsqueeze(-1), torch.zeros((), dtype=torch.int64, device=positions_BL.device)
        key = (self._seeds_B11, self._seeds_B11 >> 32)
        words = philox((block, index, zero + int(stream), zero + attempt), key)
        return torch.stack(words, dim=-1).flatten(2)[..., :width]

    def uniform(self, stream: Stream, position: int, tokens: int, *, attempt: int = 0) -> Tensor:
        """One number in (0, 1) a token, float32 (B, tokens)."""
        return _unit(self.words(stream, position, tokens, 1, attempt)).squeeze(-1)

    def uniform_of_attempts(self, stream: Stream, tokens: int, attempts: range) -> Tensor:
        """`uniform` of the first tokens in several attempts at once, float32 (B, attempts, tokens)."""
        device = self.device
        position_1L = torch.arange(tokens, device=device).repeat(len(attempts))[None]
        attempt_1L1 = torch.arange(attempts.start, attempts.stop, device=device).repeat_interleave(tokens)[
            None, :, None
        ]
        words = self._words(stream, position_1L, 1, attempt_1L1)
        return _unit(words).view(-1, len(attempts), tokens)

    def uniforms(self, stream: Stream, position: int, tokens: int, width: int) -> Tensor:
        """Several numbers in (0, 1) a token, float32 (B, tokens, width); the first is that of `uniform`."""
        return _unit(self.words(stream, position, tokens, width))

    def gumbel(self, stream: Stream, position: int, tokens: int, width: int) -> Tensor:
        """Standard Gumbel noise, float32 (B, tokens, width): logits + noise, argmax, is one draw from softmax."""
        # -log1p(-u) rather than -log(u): small exponentials decide who wins, and small u is where float32 is fine.
        return -torch.log(-torch.log1p(-_unit(self.words(stream, position, tokens, width))))

    def normal(self, stream: Stream, position: int, tokens: int, width: int) -> Tensor:
        """Standard normal noise, float32 (B, tokens, width), by Box and Muller's transform."""
        return _normal(self.words(stream, position, tokens, 2 * ((width + 1) // 2)), width)

    def normal_at(self, stream: Stream, positions_BL: Tensor, width: int, *, attempt: int = 0) -> Tensor:
        """Standard normal noise of the tokens at some positions of each image, float32 (B, L, width)."""
        return _normal(self._words(stream, positions_BL, 2 * ((width + 1) // 2), attempt), width)

    def order(self, first: int, count: int) -> Tensor:
        """A random permutation of the numbers below `count`, int64 (B, count), of the tokens from `first` on."""
        return self.words(Stream.ORDER, first, count, 1).squeeze(-1).argsort(dim=1, stable=True)


def candidate_seeds(seeds: Sequence[int], count: int) -> list[list[int]]:
    """The seeds of `count` candidates: of each, those of all images, which follow from theirs; the first has these."""
    found: list[list[int]] = Noise(seeds).of_candidates(count).t().tolist()
    return found


def _normal(words: Tensor, width: int) -> Tensor:
    radius, angle = _unit(words).chunk(2, dim=-1)
    # log(u) here rather than log1p(-u): the tail of the normal comes from small u, where float32 is fine.
    length = (-2 * torch.log(radius)).sqrt()
    pair = torch.cat((length * (2 * pi * angle).cos(), length * (2 * pi * angle).sin()), dim=-1)
    return pair[..., :width]


class RunNoise(Noise):
    """Some noise, computed at once for all tokens of a run, so that a step finds its part without an operator.

    That of a draft or of an acceptance is other noise in every round, so it is computed when it is asked for, and so is
    Gumbel noise, which is as large as the logits.
    """

    STREAMS = (Stream.TOKEN, Stream.REFINE, Stream.FLOW)

    def __init__(self, noise: Noise, tokens: int) -> None:
        self._noise, self._tokens, self._seeds_B11 = noise, tokens, noise._seeds_B11
        self._known: dict[tuple[Any, ...], Tensor] = {}

    def words(self, stream: Stream, position: int, tokens: int, width: int, attempt: int = 0) -> Tensor:
        return self._noise.words(stream, position, tokens, width, attempt)

    def gumbel(self, stream: Stream, position: int, tokens: int, width: int) -> Tensor:
        return self._noise.gumbel(stream, position, tokens, width)

    def uniform_of_attempts(self, stream: Stream, tokens: int, attempts: range) -> Tensor:
        return self._noise.uniform_of_attempts(stream, tokens, attempts)

    def normal_at(self, stream: Stream, positions_BL: Tensor, width: int, *, attempt: int = 0) -> Tensor:
        return self._noise.normal_at(stream, positions_BL, width, attempt=attempt)

    def order(self, first: int, count: int) -> Tensor:
        return self._noise.order(first, count)

    def uniform(self, stream: Stream, position: int, tokens: int, *, attempt: int = 0) -> Tensor:
        return self._part(partial(self._noise.uniform, stream, attempt=attempt), position, tokens, stream, attempt)

    def uniforms(self, stream: Stream, position: int, tokens: int, width: int) -> Tensor:
        return self._part(partial(self._noise.uniforms, stream, width=width), position, tokens, stream, "many", width)

    def normal(self, stream: Stream, position: int, tokens: int, width: int) -> Tensor:
        return self._part(partial(self._noise.normal, stream, width=width), position, tokens, stream, "normal", width)

    def _part(self, make: Callable[..., Tensor], position: int, tokens: int, stream: Stream, *what: Any) -> Tensor:
        if stream not in self.STREAMS:
            return make(position, tokens)
        if (stream, what) not in self._known:
            self._known[stream, what] = make(0, self._tokens)
        return self._known[stream, what][:, position : position + tokens]


class RoundNoise:
    """Uniform numbers of the first `count` tokens in round after round, computed for many rounds at a time.

    They are those of `Noise.uniform` with the round as its attempt. One round costs as many operators as many.
    """

    ROUNDS = 32

    def __init__(self, noise: Noise, stream: Stream, count: int) -> None:
        self._noise, self._stream, self._count = noise, stream, count
        self._rounds, self._numbers = range(0), torch.empty(0)

    def of(self, number: int) -> Tensor:
        """Those of a round, float32 (B, count)."""
        if number not in self._rounds:
            self._rounds = range(number, number + self.ROUNDS)
            self._numbers = self._noise.uniform_of_attempts(self._stream, self._count, self._rounds)
        return self._numbers[:, number - self._rounds.start]


def _unit(words: Tensor) -> Tensor:
    """32-bit words -> float32 in (0, 1). A word near 2**32 would round to 1, hence the clamp."""
    return ((words.float() + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)
