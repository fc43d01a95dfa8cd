"""E-CAR (arXiv 2412.14170): each scale carries noise a part of the way to data, at its own resolution.

The paper's idea on FlowAR's network; its code was not published, and what the paper leaves open is our choice. The
state goes from noise at the first scale to data at the last, over even parts of the noise level. Between scales it is
enlarged, and noise without block means is added, as in pyramidal flow matching (arXiv 2410.05954): that makes the noise
white again, at a level that follows. The transformer reads the noisy map at the end of the scale before.

Letters: B images, R rows (images, twice under guidance), L tokens, C channels of the latents, r ratio of two sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.schedule import Schedule
from var_toolkit.entries import Sampling
from var_toolkit.heads.flow import Flow
from var_toolkit.heads.head import Head, Setting
from var_toolkit.models import flowar
from var_toolkit.models.family import Family
from var_toolkit.models.flowar import FlowAR, FlowARConfig
from var_toolkit.models.layers.flow_head import Field
from var_toolkit.tokenizers.kl16 import FILES
from var_toolkit.tokenizers.latent_pyramid import sequence


@dataclass(frozen=True)
class ECARConfig(FlowARConfig):
    """Sizes of FlowAR; each side of the schedule is a multiple of the one before."""

    patch_nums: tuple[int, ...] = (1, 2, 4, 8, 16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(fine % coarse for coarse, fine in pairwise(self.patch_nums)):
            raise ValueError(
                f"patch_nums is {list(self.patch_nums)}; each side must be a multiple of the one before, as in 1 2 4 8"
            )


def end_level(scale: int, scales: int) -> float:
    """The share of noise in the state at the end of a scale: 0 at the last."""
    return 1 - (scale + 1) / scales


def start_level(scale: int, schedule: Schedule) -> float:
    """The share of noise in the state at the start of a scale: 1 at the first."""
    if scale == 0:
        return 1.0
    level, ratio = end_level(scale - 1, len(schedule)), ratio_at(scale, schedule)
    return ratio * level / (ratio * level + 1 - level)


def ratio_at(scale: int, schedule: Schedule) -> int:
    """How many times the side of the map before a map has."""
    return int(schedule.patch_nums[scale] // schedule.patch_nums[scale - 1])


def enlarged(map_BChw: Tensor, ratio: int) -> Tensor:
    """A map of which each position has become a block of r x r."""
    return F.interpolate(map_BChw, scale_factor=ratio, mode="nearest")


def renoised(map_BChw: Tensor, noise_BCHW: Tensor, scale: int, schedule: Schedule) -> Tensor:
    """The state at the start of a scale from that at the end of the one before, with fresh white noise.

    Block means of the fresh noise are taken out, since those of the enlarged noise are there.
    """
    ratio, level = ratio_at(scale, schedule), end_level(scale - 1, len(schedule))
    start, means = start_level(scale, schedule), enlarged(F.avg_pool2d(noise_BCHW, ratio), ratio)
    return start / (ratio * level) * enlarged(map_BChw, ratio) + start * (noise_BCHW - means)


class ECAR(FlowAR):
    """FlowAR whose scales are stages of one way from noise to data."""

    default_head = Flow("euler", 8, (0.0, 1.0))

    def __init__(self, config: ECARConfig) -> None:
        super().__init__(config)

    def head_at(self, head: Head, schedule: Schedule, scale: int) -> Head:
        """The head, with uniform steps where "published" asks for FlowAR's. ValueError for the stochastic solver."""
        assert isinstance(head, Flow)
        if head.solver == "sde":
            raise ValueError(
                "solver is 'sde', whose noise is of a whole way to data; ECAR takes euler, midpoint or heun"
            )
        return replace(head, solver="euler") if head.solver == "published" else head

    def field_of(self, hidden_RLC: Tensor, at: Setting) -> StageField:  # type: ignore[override]
        """The velocity field of the scale at a place, with what its state begins as."""
        return StageField(self.field(hidden_RLC, at.scale), at.latent, at.scale, self.scales)


class StageField(NamedTuple):
    """The velocity field of a scale; time runs from its start at 1 to its end at 0."""

    field: Field
    before_BChw: Tensor | None  # noqa: N815  # the state at the end of the scale before
    scale: int
    schedule: Schedule

    def rows(self, count: int) -> StageField:
        """The field of the first `count` rows."""
        return self._replace(field=self.field.rows(count))

    def start(self, noise_BLC: Tensor) -> Tensor:
        """The state at time 1."""
        if self.before_BChw is None:
            return noise_BLC
        side = self.schedule.patch_nums[self.scale]
        noise = noise_BLC.transpose(1, 2).unflatten(2, (side, side))
        return sequence(renoised(self.before_BChw, noise, self.scale, self.schedule))

    def __call__(self, x_RLC: Tensor, time: float) -> Tensor:
        """Noisy tokens -> velocities (R, L, C)."""
        return self.field(x_RLC, time)


FAMILY = Family(
    network=ECAR,
    tokenizer=FILES,
    title="E-CAR",
    paper="2412.14170",
    cfg_off=1.0,
    way="next-scale prediction of continuous tokens whose scales are stages of one way from noise to data",
    required=flowar.FAMILY.required,
    sizes=flowar.FAMILY.sizes,
    sampling=Sampling(cfg=2.0, steps=8, guidance_interval=(0.0, 1.0)),
)
NETWORKS = {"ECAR": "backbone"}
