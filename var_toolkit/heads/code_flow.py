"""The map from noise to codes of Distilled Decoding (arXiv 2412.17153; with the score of DD2, arXiv 2510.21003).

A distribution over codes c_j with logits l_j becomes a flow: x_t = (1 - t) c + t z with z ~ N(0, I), from noise at
time 1 to a code at time 0. The velocity is known in closed form, so each noise leads to one code, and codes of normal
noise have the distribution that they were to be drawn from. The authors' solver is not published: ours is on a
uniform grid of times, and its last step is Euler's, which ends on the mean of the codes exactly.

Letters: N points, V codes, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Step = Callable[[Velocity, Tensor, float, float], Tensor]


def posterior(x_NC: Tensor, time: float, log_p_NV: Tensor, codes_VC: Tensor) -> Tensor:
    """The probability of each code, given the point on its path at a time in (0, 1], (N, V).

    It is formed in log space: the plain exponentials are all zero in float32 near the codes. A code that a filter has
    excluded, -inf in `log_p_NV`, has none. `log_p_NV` may be logits.
    """
    # As differences, not as a matrix product: divided by t^2, the rounding errors of that are too large near the codes.
    exact = "donot_use_mm_for_euclid_dist"
    apart_NV = torch.cdist(x_NC, (1 - time) * codes_VC, compute_mode=exact)
    return (log_p_NV - apart_NV.square() / (2 * time**2)).softmax(dim=-1)


def mean_code(x_NC: Tensor, time: float, log_p_NV: Tensor, codes_VC: Tensor) -> Tensor:
    """The mean of the codes under `posterior`, (N, C): the denoised point."""
    return posterior(x_NC, time, log_p_NV, codes_VC) @ codes_VC


def velocity(x_NC: Tensor, time: float, mean_NC: Tensor) -> Tensor:
    """dx/dt of the flow, (N, C), from the mean of the codes."""
    return (x_NC - mean_NC) / time


def score(x_NC: Tensor, time: float, mean_NC: Tensor) -> Tensor:
    """The gradient of the log density at a time, (N, C): DD2's score of the teacher."""
    return -(x_NC - (1 - time) * mean_NC) / time**2


def _euler(field: Velocity, x: Tensor, now: float, then: float) -> Tensor:
    return x + (then - now) * field(x, now)


def _heun(field: Velocity, x: Tensor, now: float, then: float) -> Tensor:
    first = field(x, now)
    return x + (then - now) / 2 * (first + field(x + (then - now) * first, then))


def _midpoint(field: Velocity, x: Tensor, now: float, then: float) -> Tensor:
    half = (then - now) / 2
    return x + (then - now) * field(x + half * field(x, now), now + half)


def _rk4(field: Velocity, x: Tensor, now: float, then: float) -> Tensor:
    step = then - now
    a = field(x, now)
    b = field(x + step / 2 * a, now + step / 2)
    c = field(x + step / 2 * b, now + step / 2)
    d = field(x + step * c, then)
    return x + step / 6 * (a + 2 * b + 2 * c + d)


SOLVERS: dict[str, Step] = {"euler": _euler, "heun": _heun, "midpoint": _midpoint, "rk4": _rk4}


def flowed(noise_NC: Tensor, log_p_NV: Tensor, codes_VC: Tensor, *, solver: str = "euler", steps: int = 200) -> Tensor:
    """Noise -> points near codes, (N, C), in the dtype of the noise.

    The field is not defined at time 0, so the last step of every solver is Euler's.
    """

    def field(x_NC: Tensor, time: float) -> Tensor:
        return velocity(x_NC, time, mean_code(x_NC, time, log_p_NV, codes_VC))

    times = [1 - i / steps for i in range(steps)]
    x_NC = noise_NC
    for now, then in pairwise(times):
        x_NC = SOLVERS[solver](field, x_NC, now, then)
    return mean_code(x_NC, times[-1], log_p_NV, codes_VC)


def codes_of_noise(
    noise_NC: Tensor, log_p_NV: Tensor, codes_VC: Tensor, *, solver: str = "euler", steps: int = 200
) -> Tensor:
    """Noise -> the ids of codes, int64 (N,): the nearest to where the flow ends, of those that no filter excludes."""
    ends_NC = flowed(noise_NC, log_p_NV, codes_VC, solver=solver, steps=steps)
    apart_NV = codes_VC.square().sum(-1) - 2 * ends_NC @ codes_VC.T
    return apart_NV.masked_fill(log_p_NV == -torch.inf, torch.inf).argmin(dim=-1)
