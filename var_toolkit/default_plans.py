"""The default plan of a model, built from its settings, before subnets, speculative decoding or a method change it."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from var_toolkit.core.plan import Plan, Stage, is_continuous
from var_toolkit.core.refinement_schedule import OFF, refinement
from var_toolkit.guidance import weight
from var_toolkit.heads.flow import Flow
from var_toolkit.methods.collaborative import code
from var_toolkit.methods.variant import variant

if TYPE_CHECKING:
    from var_toolkit.pipeline import Pipeline


def default_plan(pipe: Pipeline, given: dict[str, Any]) -> Plan:
    """The plan for some settings, with the model's default number of layers, and its refiner if it has one."""
    defaults = pipe.sampling
    plan = _full_depth(pipe, asdict(defaults) | given | {"guidance": weight(given, defaults, pipe.backbone)})
    if defaults.subnet is not None or defaults.full_scales is not None:
        plan = with_subnet(plan, defaults.subnet, defaults.full_scales)
    if pipe.refiner is None:
        return plan
    return code(plan, default_plan(pipe.refiner, given), draft_scales=pipe.draft_scales)


def with_subnet(plan: Plan, subnet: int | None, full_scales: int | None) -> Plan:
    """The plan with fewer layers on the finer scales (VARiant). ValueError if only one of the two is given."""
    if subnet is None or full_scales is None:
        raise ValueError(
            "subnet (layers of the finer scales) and full_scales (scales with all layers) go together; give both"
        )
    return variant(plan, subnet=subnet, full_scales=full_scales)


def require_masked_passes(plan: Plan, given: dict[str, Any]) -> None:
    """ValueError for settings of masked passes if the plan has none."""
    refined = [stage for stage in plan.stages if stage.refine is not None]
    if given.get("refine", OFF) != OFF and not refined:
        raise ValueError("refine needs a backbone with masked passes, such as HMAR; this model has none")
    if given.get("refine_clean") and not refined:
        raise ValueError("refine_clean changes masked passes, but the plan has none; use HMAR and set refine")
    asked = any(stage.masked(k) for stage in refined for k in range(len(plan.tokenizer.scales)))
    drawn = any(stage.masked(k) for stage in refined for k in stage.scales)
    if given.get("refine", OFF) != OFF and asked and not drawn:
        raise ValueError(
            "refine has masked passes only for scales that another model draws; give lists for the scales of this one"
        )


def _full_depth(pipe: Pipeline, chosen: dict[str, Any]) -> Plan:
    """The plan of the pipeline's backbone: one stage for each run of scales with the same temperature."""
    backbone, temperature = pipe.backbone, chosen["temperature"]
    scales = backbone.scales
    count, guidance = len(scales), chosen["guidance"]
    by_scale = (temperature,) * count if isinstance(temperature, int | float) else tuple(temperature)
    if len(by_scale) != count:
        raise ValueError(
            f"temperature has {len(by_scale)} values for {count} scales; give one number, or one per scale"
        )
    if is_continuous(backbone):
        flow = Flow(chosen["solver"], chosen["steps"], chosen["guidance_interval"])
        return Plan(pipe.tokenizer, (Stage(backbone, range(count), guidance, flow=flow),))
    shared = {name: chosen[name] for name in ("top_k", "top_p", "smooth", "guided_tokens")}
    if hasattr(backbone, "refined"):
        shared["refine"] = refinement(chosen["refine"], scales, clean=chosen["refine_clean"])
    stages = []
    for value, run in groupby(range(count), key=lambda k: by_scale[k]):
        first, *rest = run
        span = range(first, first + len(rest) + 1)
        stages.append(Stage(backbone, span, guidance, temperature=value, **shared))
    return Plan(pipe.tokenizer, tuple(stages))
