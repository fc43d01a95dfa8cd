"""VARiant (arXiv 2511.16546): the finer scales run through some of the layers only, of the same weights.

Most tokens belong to the last scales, and those need the least depth. The first scales run through every layer; then
the skipped layers free their keys and values. Needs nothing but one backbone, best one trained for it (the objective
`variant` of `vargen train`).
"""

from __future__ import annotations

from dataclasses import replace

from var_toolkit.core.plan import Plan, Planned, Stage, as_plan, has_subnets
from var_toolkit.core.subnet import Subnet


def variant(plan: Planned, *, subnet: int, full_scales: int) -> Plan:
    """The plan, or a pipeline's, with `subnet` layers of each backbone from scale `full_scales` on, and all before.

    In a plan of several backbones, one with no more layers than that keeps them all. ValueError if no backbone has as
    many or one has no subnets, or `full_scales` is not from 1 to the number of scales.
    """
    plan = as_plan(plan)
    for stage in plan.stages:
        if not has_subnets(stage.backbone):
            raise ValueError(f"{type(stage.backbone).__name__} has no subnets; VARiant needs VAR")
    count = len(plan.tokenizer.scales)
    if not 1 <= full_scales <= count:
        raise ValueError(f"full_scales is {full_scales}; it must be from 1 to {count}, the number of scales")
    subnet_layers(max(len(stage.backbone.blocks) for stage in plan.stages), subnet)  # which refuses what none has
    return Plan(plan.tokenizer, tuple(_shortened(stage, subnet, full_scales) for stage in plan.stages))


def _shortened(stage: Stage, subnet: int, full_scales: int) -> Stage:
    depth = len(stage.backbone.blocks)
    if subnet >= depth:
        return replace(stage, subnet=None)
    return replace(stage, subnet=Subnet(subnet_layers(depth, subnet), full_scales))


def subnet_layers(depth: int, subnet: int) -> tuple[int, ...]:
    """Which of `depth` layers a subnet of `subnet` keeps: spread evenly, with the first and the last (section 3).

    They are not nested: of 30 layers, the 8 kept are not all among the 16 kept.
    """
    if not 2 <= subnet <= depth:
        raise ValueError(f"subnet is {subnet}; it must be from 2 to {depth}, the layers of the backbone")
    return tuple(i * (depth - 1) // (subnet - 1) for i in range(subnet))
