"""Flow matching per scale (FlowAR, arXiv 2412.15205): solvers that integrate from noise to the tokens of a map.

The network predicts velocities of the tokens of a scale: at time 1 they are noise, at time 0 data. The state is
float64 as published, so that rounding errors do not add up; the network computes in its own dtype.

Letters: B images, L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from var_toolkit.core.noise import Stream
from var_toolkit.heads.head import Drawn, Head, Setting
from var_toolkit.ranges import checked
from var_toolkit.strict_fields import shown

Velocity = Callable[[Tensor, float], Tensor]
Step = Callable[[Velocity, Tensor, float, float], Tensor]


def _euler(velocity: Velocity, x: Tensor, now: float, then: float) -> Tensor:
    return x + (then - now) * velocity(x, now)


def _midpoint(velocity: Velocity, x: Tensor, now: float, then: float) -> Tensor:
    half = (then - now) / 2
    return x + (then - now) * velocity(x + half * velocity(x, now), now + half)


def _heun(velocity: Velocity, x: Tensor, now: float, then: float) -> Tensor:
    """The last step is Euler's, as in Karras et al. (arXiv 2206.00364): at the data the velocity may be undefined."""
    first = velocity(x, now)
    if then == 0:
        return x + (then - now) * first
    return x + (then - now) / 2 * (first + velocity(x + (then - now) * first, then))


STEPS: dict[str, Step] = {"published": _euler, "euler": _euler, "midpoint": _midpoint, "heun": _heun}
SOLVERS = tuple(STEPS)
STOCHASTIC = "sde"
LAST = 0.04  # where the noise of the stochastic solver ends


@dataclass(frozen=True)
class Flow(Head):
    """How the map of a scale is drawn.

    "published" is FlowAR's own: Euler on a grid that is finer near the data, so that 25 steps are 24 evaluations of the
    network; 50 are uniform. The others have uniform grids; "midpoint" and "heun" are of second order and evaluate the
    network twice a step. "sde", of xAR, adds noise: Euler-Maruyama with the diffusion coefficient 2 t down to time
    0.04, then a step to the data without noise. `interval` says between which times guidance is on.
    """

    solver: str = "published"
    steps: int = 25
    interval: tuple[float, float] = (0.0, 0.9)

    continuous = True

    def __post_init__(self) -> None:
        if self.solver not in (*SOLVERS, STOCHASTIC):
            raise ValueError(f"solver is {self.solver!r}; it must be one of {', '.join((*SOLVERS, STOCHASTIC))}")
        steps = checked("steps", self.steps, low=2 if self.solver == "published" else 1)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "interval", _interval(self.interval))

    def times(self) -> list[float]:
        """The ends of the steps, from 1 down to 0."""
        if self.solver == STOCHASTIC:
            return [1 - (1 - LAST) * i / max(1, self.steps - 1) for i in range(self.steps)] + [0.0]
        return list(_times(self.solver == "published" and self.steps != 50, self.steps))

    def guided(self, time: float, strength: float) -> bool:
        """Whether guidance is on at a time."""
        return strength > 1 and self.interval[0] <= time <= self.interval[1]

    def is_guided(self, guidance: float) -> bool:
        """Whether guidance is on at any evaluation."""
        return any(self.guided(time, 1 + guidance) for time in self.evaluated())

    def evaluations(self) -> int:
        """Evaluations of the velocity of one scale."""
        return sum(1 for _ in self.evaluated())

    def evaluated(self) -> Iterator[float]:
        """The times at which the velocity of one scale is evaluated, in order."""
        for now, then in pairwise(self.times()):
            yield now
            if self.solver == "midpoint":
                yield now + (then - now) / 2
            if self.solver == "heun" and then != 0:
                yield then

    def rows(self, guidance: float, rows: int) -> int:
        """Rows that the head computes for each image and scale, over all evaluations."""
        return sum(2 if self.guided(time, 1 + guidance) else 1 for time in self.evaluated())

    def solve(self, velocity: Velocity, noise: Tensor) -> Tensor:
        """Noise -> data, in the dtype of the noise."""
        x, step = noise, STEPS[self.solver]
        for now, then in pairwise(self.times()):
            x = step(velocity, x, now, then)
        return x

    def walk(self, velocity: Velocity, noise: Tensor, added: tuple[Tensor, ...]) -> Tensor:
        """`solve` of the stochastic solver; `added` is the noise of each step but the last."""
        x = noise
        for number, (now, then) in enumerate(pairwise(self.times())):
            x = x + (then - now) * ((2 - now) * velocity(x, now) + x)  # the score is -(x + (1 - t) velocity) / t
            x = x + sqrt(2 * now * (now - then)) * added[number] if then > 0 else x
        return x

    def draw(self, hidden_RLC: Tensor, at: Setting) -> Drawn:
        """The map of a scale, float32 (B, L, C). Where guidance is off, the null half is not computed."""
        start, strength = self._normal(Stream.FLOW, at, 1)[0], 1 + at.guidance
        both = at.network.field_of(hidden_RLC if self.is_guided(at.guidance) else hidden_RLC[: len(start)], at)
        own = both.rows(len(start))

        def velocity(x_BLC: Tensor, time: float) -> Tensor:
            if not self.guided(time, strength):
                return own(x_BLC.float(), time).to(x_BLC.dtype)
            conditional, null = both(x_BLC.float().repeat(2, 1, 1), time).to(x_BLC.dtype).chunk(2)
            return null + strength * (conditional - null)

        wide = torch.float32 if start.device.type == "mps" else torch.float64  # MPS has no float64
        begun = both.start(start).to(wide)
        if self.solver == STOCHASTIC:
            found = self.walk(velocity, begun, self._normal(Stream.DIFFUSION_STEPS, at, self.steps - 1)).float()
        else:
            found = self.solve(velocity, begun).float()
        at.note(found, f"the latents of {at.place or f'scale {at.scale}'}", at.guidance)
        return Drawn(found, found, None)

    def _normal(self, stream: Stream, at: Setting, count: int) -> tuple[Tensor, ...]:
        """Noise of the tokens that are drawn, (B, N, C), as often as asked."""
        if count == 0:
            return ()
        width = count * at.network.config.latent_channels
        if at.positions is None:
            found = at.noise.normal(stream, at.first, at.count, width)
        else:
            found = at.noise.normal_at(stream, at.positions, width)
        return found.chunk(count, dim=-1)

    def shown(self, guidance: float) -> list[str]:
        """The settings in words."""
        low, high = self.interval
        guided = f", guided from {high:g} to {low:g}" if self.is_guided(guidance) else ""
        return [f"{self.steps} steps ({self.solver}){guided}"]


@lru_cache(maxsize=64)
def _times(fine_near_data: bool, steps: int) -> tuple[float, ...]:
    """Computed once on the CPU, because every scale needs them several times."""
    if not fine_near_data:
        return tuple(torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu").tolist())
    half = steps // 2
    coarse = torch.linspace(1, 0.3, half, dtype=torch.float64, device="cpu")
    fine = torch.linspace(0.25, 0, half + 1, dtype=torch.float64, device="cpu")
    return tuple(torch.cat((coarse, fine)).tolist())


def _interval(given: Any) -> tuple[float, float]:
    try:
        low, high = (checked("guidance_interval", end) for end in given)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if low > high:
        raise ValueError(
            f"guidance_interval is {shown(given)}; it must be two times from 0 (data) to 1 (noise), in order"
        )
    return low, high
