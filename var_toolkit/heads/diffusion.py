"""The diffusion head (MAR, arXiv 2406.11838): tokens are denoised given their features, each in a chain of its own.

Chain, solvers and loss are float32 whatever the precision of the network: at the top of the cosine schedule one step of
100 multiplies an error of epsilon by 316. A network that predicts velocity, v = a noise - s data (Salimans and Ho,
arXiv 2202.00512), has no such factor, as MMAR argues (arXiv 2410.10798): its first step multiplies errors by 0.02.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), N tokens, c channels; a and s are the
square roots of the cumulative alpha and of its complement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from math import cos, expm1, log, pi, sqrt
from operator import mul
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from var_toolkit.core.noise import Stream
from var_toolkit.heads.head import Drawn, Head, Setting
from var_toolkit.ranges import checked
from var_toolkit.strict_fields import shown

STEPS = 1000  # of training
SOLVERS = ("published", "ddpm", "ddim", "dpm++")
PREDICTIONS = ("epsilon", "velocity")
# Data are found by a division by a, which is 5e-5 at the top of the cosine schedule: deterministic solvers, whose steps
# are long, start where that multiplies errors by no more than this (at the top of the linear schedule by 157).
LARGEST_FACTOR = 200.0
BIN, EDGE = 1 / 255, 0.999  # of the likelihood of the published loss, which was made for images of 8 bits


def cosine_betas() -> tuple[float, ...]:
    """The squared-cosine schedule (arXiv 2102.09672), of MAR."""

    def level(time: float) -> float:
        return cos((time + 0.008) / 1.008 * pi / 2) ** 2

    return tuple(min(1 - level((i + 1) / STEPS) / level(i / STEPS), 0.999) for i in range(STEPS))


def linear_betas() -> tuple[float, ...]:
    """From 1e-4 to 0.02 (arXiv 2006.11239), of ACDiT."""
    return tuple(1e-4 + (0.02 - 1e-4) * i / (STEPS - 1) for i in range(STEPS))


BETAS: dict[str, Callable[[], tuple[float, ...]]] = {"cosine": cosine_betas, "linear": linear_betas}


@dataclass(frozen=True)
class Chain:
    """A diffusion process at some of its training steps, from the least noise to the most; `indices` are theirs."""

    indices: tuple[int, ...]
    cumulative: tuple[float, ...]  # alphas, multiplied up

    @classmethod
    def of(cls, schedule: str, indices: tuple[int, ...] | None = None) -> Chain:
        """The chain of a named schedule of betas at some of its training steps; default: all."""
        levels = _cumulative(schedule)
        kept = tuple(range(STEPS)) if indices is None else indices
        return cls(kept, tuple(levels[i] for i in kept))

    @cached_property
    def before(self) -> tuple[float, ...]:
        """The cumulative alpha one step closer to the data."""
        return (1.0, *self.cumulative[:-1])

    @cached_property
    def betas(self) -> tuple[float, ...]:
        """The noise that each step of the chain adds."""
        return tuple(1 - now / last for now, last in zip(self.cumulative, self.before, strict=True))

    @cached_property
    def posterior(self) -> tuple[tuple[float, float], ...]:
        """What data and state are multiplied with in the mean of the step towards the data."""
        rows = zip(self.betas, self.cumulative, self.before, strict=True)
        return tuple((b * sqrt(p) / (1 - a), (1 - p) * sqrt(1 - b) / (1 - a)) for b, a, p in rows)

    @cached_property
    def log_variances(self) -> tuple[tuple[float, float], ...]:
        """Logarithms of the smallest and the largest variance of each step; the smallest of step 0 is step 1's."""
        rows = zip(self.betas, self.cumulative, self.before, strict=True)
        small = [b * (1 - p) / (1 - a) for b, a, p in rows]
        small[0] = small[1] if len(small) > 1 else self.betas[0]
        return tuple((log(low), log(high)) for low, high in zip(small, self.betas, strict=True))

    def roots(self, k: int) -> tuple[float, float]:
        """a and s of a step."""
        return sqrt(self.cumulative[k]), sqrt(1 - self.cumulative[k])

    def clean(self, x: Tensor, predicted: Tensor, k: int, prediction: str) -> Tensor:
        """The data that a state and what a network predicts of it mean."""
        a, s = self.roots(k)
        return a * x - s * predicted if prediction == "velocity" else x / a - sqrt(1 / a**2 - 1) * predicted

    def noise(self, x: Tensor, predicted: Tensor, k: int, prediction: str) -> Tensor:
        """The noise likewise."""
        a, s = self.roots(k)
        return s * x + a * predicted if prediction == "velocity" else predicted


@lru_cache
def _cumulative(schedule: str) -> tuple[float, ...]:
    return tuple(accumulate((1 - beta for beta in BETAS[schedule]()), mul))


@lru_cache
def published_indices(counts: int | tuple[int, ...]) -> tuple[int, ...]:
    """Evenly spaced training steps, first and last included; several counts are each of an equal section of them.

    Positions are added up and rounded to even, as published. 0 takes none of a section.
    """
    sections = (counts,) if isinstance(counts, int) else counts
    size, extra = divmod(STEPS, len(sections))
    found, start = [], 0
    for number, count in enumerate(sections):
        length = size + (number < extra)
        if count > length:
            raise ValueError(f"denoising_steps is {shown(counts)}; a section of {length} steps has no {count} of them")
        stride, at = (length - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):
            found.append(start + round(at))
            at += stride
        start += length
    return tuple(found)


@lru_cache
def even_indices(count: int, schedule: str) -> tuple[int, ...]:
    """Evenly spaced training steps above 0 (diffusers' "linspace") up to the last at which dividing by a is safe."""
    top = max(i for i, level in enumerate(_cumulative(schedule)) if 1 / sqrt(level) <= LARGEST_FACTOR)
    if count > top:
        raise ValueError(f"denoising_steps is {count}; it must be from 1 to {top}")
    return tuple(round(top * (i + 1) / count) for i in range(count))


class Prediction(NamedTuple):
    """What a network says of a state: epsilon or velocity, and how the variance lies between its limits."""

    value: Tensor  # (B, N, c)
    fraction: Tensor | None  # likewise, in [0, 1] or a little outside; None: the largest variance


@dataclass(frozen=True)
class Diffusion(Head):
    """How tokens are denoised.

    "ddpm" is the ancestral chain with the variance that the network learned, at `denoising_steps` of the 1000 steps of
    training; several numbers are as published for each of as many equal sections of them. `temperature` multiplies its
    noise, except the noise that a chain starts from. "ddim" and "dpm++" (arXiv 2010.02502, 2211.01095: second order
    over two steps) add none, and need a tenth of the steps. "published" means that of the network's authors, which
    `head_at` of the network puts in its place.
    """

    solver: str = "published"
    denoising_steps: int | tuple[int, ...] = 100
    temperature: float = 1.0

    continuous = True

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {shown(self.solver)}; it must be one of {', '.join(SOLVERS)}")
        object.__setattr__(self, "temperature", checked("temperature", self.temperature))
        counts = self.denoising_steps
        if isinstance(counts, tuple | list):
            found = tuple(checked("denoising_steps", one, low=0) for one in counts)
            if self.solver != "ddpm" or sum(found) < 2:
                raise ValueError(f"denoising_steps is {shown(counts)}; sections are of ddpm, 2 steps or more in all")
        else:
            found = checked("denoising_steps", counts, low=2 if self.solver == "ddpm" else 1)
        object.__setattr__(self, "denoising_steps", found)

    def published_as(self, solver: str) -> Self:
        """The head with the solver that "published" means in a network."""
        return replace(self, solver=solver) if self.solver == "published" else self

    def with_steps(self, count: int) -> Self:
        """The head with another number of steps."""
        return replace(self, denoising_steps=count)

    def chain(self, schedule: str) -> Chain:
        """The steps that the solver takes of a training schedule."""
        counts = self.denoising_steps
        if self.solver == "ddpm":
            return Chain.of(schedule, published_indices(counts))
        assert isinstance(counts, int)
        return Chain.of(schedule, even_indices(counts, schedule))

    def draw(self, hidden_RLC: Tensor, at: Setting) -> Drawn:
        """The tokens at some positions, float32 (B, N, c); both halves of a guided pair have one state."""
        assert at.positions is not None
        with torch.autocast(hidden_RLC.device.type, enabled=False):
            denoiser = at.network.denoiser(hidden_RLC, at)
            chain, channels = self.chain(denoiser.schedule), at.network.channels
            denoiser.begin(chain.indices[::-1])
            where, again = denoiser.places(at), at.attempt if denoiser.whole else 0
            x = at.noise.normal_at(Stream.DIFFUSION, where, channels, attempt=again)

            def predicted(state: Tensor, k: int) -> Prediction:
                found = denoiser(state.repeat(2, 1, 1) if at.guided else state, chain.indices[k])
                found = guided(found, at.guidance) if at.guided else found
                at.note(found.value, f"{denoiser.prediction} at denoising step {k}, {at.place},", at.guidance)
                return found

            if self.solver == "ddpm":
                width = channels * len(chain.indices)
                added = at.noise.normal_at(Stream.DIFFUSION_STEPS, where, width, attempt=again)
                found = ddpm(chain, predicted, x, added * self.temperature, denoiser)
            else:
                found = {"ddim": ddim, "dpm++": dpm}[self.solver](chain, predicted, x, denoiser)
            found = denoiser.kept(found)
        return Drawn(found, found, None)

    def evaluations(self) -> int:
        """Evaluations of the denoising network for each draw."""
        return self.denoising_steps if isinstance(self.denoising_steps, int) else sum(self.denoising_steps)

    def rows(self, guidance: float, rows: int) -> int:
        """Rows that the head computes for each image and draw, over all evaluations."""
        return rows * self.evaluations()

    def shown(self, guidance: float) -> list[str]:
        """The settings in words."""
        counts = self.denoising_steps
        steps = str(counts) if isinstance(counts, int) else "+".join(map(str, counts))
        warm = [f"temperature {self.temperature:g}"] if self.solver == "ddpm" else []
        return [f"{steps} denoising steps ({self.solver})", *warm]


class Denoiser(Protocol):
    """A network with the features of the tokens that it denoises."""

    schedule: str  # of betas, that it was trained with
    prediction: str
    whole: bool  # whether each group's chain is of the whole map, again and again

    def begin(self, indices: tuple[int, ...]) -> None:
        """Note the training steps that it will be asked for, in order."""
        ...

    def places(self, at: Setting) -> Tensor:
        """Positions of the tokens that are denoised, in the pyramid, (B, N)."""
        ...

    def kept(self, x_BNc: Tensor) -> Tensor:
        """Those of the denoised tokens that a group draws."""
        ...

    def __call__(self, x_RNc: Tensor, index: int) -> Prediction:
        """What it says of states, float32, at a training step."""
        ...

    def given(self, x_BNc: Tensor, start_BNc: Tensor, chain: Chain, k: int) -> Tensor:
        """The state before a step of a chain that began with `start_BNc`, with what is known written over it."""
        ...


Predicted = Callable[[Tensor, int], Prediction]


def guided(found: Prediction, guidance: float) -> Prediction:
    """The predictions of images from rows of which the second half is null. The variance is that of the condition."""
    conditional, null = found.value.chunk(2)
    value = null + (1 + guidance) * (conditional - null)
    return Prediction(value, None if found.fraction is None else found.fraction.chunk(2)[0])


def ddpm(chain: Chain, predicted: Predicted, x: Tensor, added_BNTc: Tensor, denoiser: Denoiser) -> Tensor:
    """Ancestral sampling with noise of T steps, (B, N, T c), the first of which is for the noisiest state."""
    start = x
    steps = added_BNTc.unflatten(-1, (len(chain.indices), -1)).unbind(2)
    for k, added in zip(reversed(range(len(chain.indices))), steps, strict=True):
        x = denoiser.given(x, start, chain, k)
        found = predicted(x, k)
        mean, log_variance = posterior(chain, x, found, k, denoiser.prediction)
        x = mean if k == 0 else mean + torch.exp(0.5 * log_variance) * added
    return x


def posterior(chain: Chain, x: Tensor, found: Prediction, k: int, prediction: str) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the state one step closer to the data."""
    of_data, of_state = chain.posterior[k]
    mean = of_data * chain.clean(x, found.value, k, prediction) + of_state * x
    low, high = chain.log_variances[k]
    if found.fraction is None:  # the largest, except at the last step, whose variance has no influence
        return mean, torch.full_like(mean, high if k else low)
    return mean, found.fraction * high + (1 - found.fraction) * low


def ddim(chain: Chain, predicted: Predicted, x: Tensor, denoiser: Denoiser) -> Tensor:
    """The deterministic solver of first order (arXiv 2010.02502)."""
    start = x
    for k in reversed(range(len(chain.indices))):
        x = denoiser.given(x, start, chain, k)
        value = predicted(x, k).value
        data, noise = (part(x, value, k, denoiser.prediction) for part in (chain.clean, chain.noise))
        x = sqrt(chain.before[k]) * data + sqrt(1 - chain.before[k]) * noise
    return x


def dpm(chain: Chain, predicted: Predicted, x: Tensor, denoiser: Denoiser) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), with a last step of first order, to the data.

    Not by diffusers' scheduler, which it agrees with: that holds the state of one draw and has to be made for each, and
    looks every step up in a tensor.
    """
    start = x
    last, before = None, 0.0  # data and half the logarithm of the signal-to-noise ratio, one step earlier
    for k in reversed(range(len(chain.indices))):
        x = denoiser.given(x, start, chain, k)
        data = chain.clean(x, predicted(x, k).value, k, denoiser.prediction)
        if k == 0:
            return data
        now, then = _half_log_ratio(chain, k), _half_log_ratio(chain, k - 1)
        slope = data if last is None else data + 0.5 * (then - now) / (now - before) * (data - last)
        (_, s), (a_then, s_then) = chain.roots(k), chain.roots(k - 1)
        x = s_then / s * x - a_then * expm1(now - then) * slope
        last, before = data, now
    return x


def _half_log_ratio(chain: Chain, k: int) -> float:
    a, s = chain.roots(k)
    return log(a / s)


def noisy(schedule: str, data: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """Data, (..., c), at training steps, (...)."""
    a, s = (_table(roots, steps) for roots in zip(*map(Chain.of(schedule).roots, range(STEPS)), strict=True))
    return a * data + s * noise


def losses(
    schedule: str, prediction: str, output: Tensor, data: Tensor, state: Tensor, noise: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """The two parts of MAR's loss of every token, (...), from outputs (..., 2c) for states (..., c) at steps (...).

    The squared error of epsilon or velocity, and the variational bound in bits a channel, from which only the variance
    learns. As published the bound has the weight 1, and at step 0 it is a likelihood made for images of 8 bits.
    """
    value, variance = output.float().chunk(2, dim=-1)
    chain, fixed = Chain.of(schedule), value.detach()
    a, s = (_table(roots, steps) for roots in zip(*map(chain.roots, range(STEPS)), strict=True))
    error = squared_error(schedule, prediction, value, data, noise, steps)
    guess = a * state - s * fixed if prediction == "velocity" else (state - s * fixed) / a
    of_data, of_state = (_table(rows, steps) for rows in zip(*chain.posterior, strict=True))
    low, high = (_table(rows, steps) for rows in zip(*chain.log_variances, strict=True))
    fraction = (variance + 1) / 2
    mean, log_variance = of_data * guess + of_state * state, fraction * high + (1 - fraction) * low
    bound = _divergence(of_data * data + of_state * state, low, mean, log_variance)
    bound = torch.where(steps.unsqueeze(-1) == 0, -_log_likelihood(data, mean, log_variance), bound)
    return error, bound.mean(dim=-1) / log(2)


def squared_error(schedule: str, prediction: str, value: Tensor, data: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """The mean over channels of every token, (...), for predictions (..., c) of epsilon or velocity at steps (...)."""
    if prediction == "velocity":
        a, s = (_table(roots, steps) for roots in zip(*map(Chain.of(schedule).roots, range(STEPS)), strict=True))
        noise = a * noise - s * data
    return (value.float() - noise).square().mean(dim=-1)


def _table(values: tuple[float, ...], steps: Tensor) -> Tensor:
    """Values of training steps, with a dimension for the channels."""
    return torch.tensor(values, dtype=torch.float32, device=steps.device)[steps].unsqueeze(-1)


def _divergence(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two normal distributions."""
    ratio = torch.exp(log_variance1 - log_variance2) + (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 - 1 + ratio)


def _log_likelihood(data: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of a bin around the data, under a normal distribution; the bins at the edges are open (arXiv 2006.11239)."""
    inverse = torch.exp(-0.5 * log_variance)
    above, below = _distribution(inverse * (data - mean + BIN)), _distribution(inverse * (data - mean - BIN))
    inside = torch.where(data > EDGE, 1 - below, above - below)
    return torch.where(data < -EDGE, above, inside).clamp(min=1e-12).log()


def _distribution(x: Tensor) -> Tensor:
    """The cumulative standard normal distribution, in the published approximation."""
    return 0.5 * (1 + torch.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
