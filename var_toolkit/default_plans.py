"""The default plan of a model, built from its settings, before subnets, speculative decoding or a method change it."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from var_toolkit.core.plan import Plan, Tokens, plan_of
from var_toolkit.core.schedule import Schedule
from var_toolkit.entries import Sampling
from var_toolkit.guidance import weight
from var_toolkit.heads.head import Head
from var_toolkit.heads.one_shot import OneShot
from var_toolkit.methods.collaborative import collaborative
from var_toolkit.methods.distilled import in_steps, is_distilled, with_teacher
from var_toolkit.methods.fewer_tokens import fastvar, scalekv, without_last
from var_toolkit.methods.masked_passes import OFF, masked_passes
from var_toolkit.methods.variant import variant
from var_toolkit.strict_fields import shown

if TYPE_CHECKING:
    from var_toolkit.pipeline import Pipeline

CFG_SCHEDULES = ("linear", "constant")


def default_plan(pipe: Pipeline, given: dict[str, Any]) -> Plan:
    """The plan for some settings, with the model's default number of layers, and its refiner if it has one."""
    defaults = pipe.sampling
    found = {
        "guidance": weight(given, defaults, pipe.backbone),
        "given_steps": "steps" in given,
        "given_cfg": "cfg" in given or "guidance_scale" in given,
        "given_pivot_cfg": "pivot_cfg" in given,
        "given_first_cfg": "first_cfg" in given,
    }
    plan = _full_depth(pipe, asdict(defaults) | given | found)
    if is_distilled(pipe.backbone):
        plan = in_steps(plan, pipe.backbone, given.get("steps"), given.get("coded"))
    if defaults.subnet is not None or defaults.full_scales is not None:
        plan = with_subnet(plan, defaults.subnet, defaults.full_scales)
    if pipe.refiner is None:
        return plan
    if is_distilled(pipe.backbone):
        return with_teacher(plan, default_plan(pipe.refiner, given), first=pipe.draft_scales)
    return collaborative(plan, default_plan(pipe.refiner, given), draft_scales=pipe.draft_scales)


def schedule_of(pipe: Pipeline, given: dict[str, Any]) -> Schedule:
    """The token maps to draw: those of `schedule`, those that end with an image of `size`, or the model's own."""
    network, schedule, size = pipe.backbone, given.get("schedule"), given.get("size")
    own: Schedule = network.scales
    if schedule is not None and size is not None:
        raise ValueError("a schedule ends with a map of its own size; give schedule or size, not both")
    if size is None:
        return schedule or own
    width, height = size
    pixels = pipe.tokenizer.downsample
    if width % pixels or height % pixels:
        raise ValueError(f"size is {width}x{height}; width and height must be multiples of {pixels}, pixels per token")
    found: Schedule = network.schedule_for(height // pixels, width // pixels)
    return found


def with_subnet(plan: Plan, subnet: int | None, full_scales: int | None) -> Plan:
    """The plan with fewer layers on the finer scales (VARiant). ValueError if only one of the two is given."""
    if subnet is None or full_scales is None:
        raise ValueError(
            "subnet (layers of the finer scales) and full_scales (scales with all layers) go together; give both"
        )
    return variant(plan, subnet=subnet, full_scales=full_scales)


def with_fewer_tokens(plan: Plan, given: dict[str, Any]) -> Plan:
    """The plan with the settings of `FewerSettings`. ValueError for one that acts on another that is not given."""
    for name, needed in (("prune_layers", "prune_tokens"), ("key_layers", "key_share")):
        if name in given and needed not in given:
            raise ValueError(f"{name} are layers of {needed}; give {needed} as well")
    if given.get("skip_scales"):
        plan = without_last(plan, given["skip_scales"])
    if "prune_tokens" in given:
        plan = fastvar(plan, given["prune_tokens"], given.get("prune_layers", (None, None)))
    return scalekv(plan, given["key_share"], given.get("key_layers", ())) if "key_share" in given else plan


def require_masked_passes(pipe: Pipeline, plan: Plan, given: dict[str, Any]) -> None:
    """ValueError for settings of masked passes if no step of the plan has one."""
    able = [network for network in pipe.backbones if hasattr(network, "refined")]
    if given.get("refine", OFF) != OFF and not able:
        raise ValueError("refine needs a backbone with masked passes, such as HMAR; this model has none")
    if given.get("refine_clean") and not any(step.clean for step in plan.steps):
        raise ValueError("refine_clean changes masked passes, but the plan has none; use HMAR and set refine")
    asked = given.get("refine", OFF) != OFF and any(
        any(masked_passes(given["refine"], network.scales)) for network in able
    )
    if asked and not any(step.masked for step in plan.steps):
        raise ValueError(
            "refine has masked passes only for scales that another model draws; give lists for the scales of this one"
        )


def _full_depth(pipe: Pipeline, chosen: dict[str, Any]) -> Plan:
    """The plan of the pipeline's backbone, at all its layers."""
    network: Any = pipe.backbone
    schedule: Schedule = chosen["schedule"]
    network.require_schedule(schedule)
    heads = _heads(network.default_head, chosen, len(schedule))
    refined = hasattr(network, "refined") and chosen["refine"] != OFF
    return plan_of(
        network,
        schedule=schedule,
        guidance=_guidance(chosen, network),
        first=_first(chosen, network, schedule),
        heads=heads,
        masked=masked_passes(chosen["refine"], schedule) if refined else None,
        clean=refined and chosen["refine_clean"],
        guided=_guided(chosen, network, schedule),
        constant=_is_constant(chosen["cfg_schedule"]),
        iterations=_iterations(chosen, network, schedule),
        mixed_after=_mixed_after(chosen.get("guidance_layer"), len(network.blocks)),
    )


def _mixed_after(layer: int | None, depth: int) -> int | None:
    """The number of a layer that may be counted from the end."""
    if layer is None or -depth <= layer < depth:
        return layer if layer is None else layer % depth
    raise ValueError(f"guidance_layer is {layer}; this model has {depth} layers: give {-depth} to {depth - 1}")


def _guidance(chosen: dict[str, Any], network: Any) -> float | tuple[float, ...]:
    """The weight of guidance, or of networks with pivots those of pivots and tokens."""
    strength: float = chosen["guidance"]
    if not hasattr(network.config, "pivot_side"):
        if chosen["given_pivot_cfg"]:
            raise ValueError(f"pivot_cfg is of pivots, which {type(network).__name__} has not; use cfg")
        return strength
    given = chosen["pivot_cfg"] if chosen["given_pivot_cfg"] or not chosen["given_cfg"] else None
    return (strength if given is None else given - 1, strength)


def _first(chosen: dict[str, Any], network: Any, schedule: Schedule) -> float | None:
    """The weight of guidance at the first token, from which it grows or falls; None where it is the same at all."""
    if chosen["given_first_cfg"] and not isinstance(network.places(schedule)[0], Tokens):
        raise ValueError(f"first_cfg is for next-token models, not {type(network).__name__}; use cfg")
    if _is_constant(chosen["cfg_schedule"]):
        if chosen["given_first_cfg"]:
            raise ValueError("first_cfg is for guidance that changes from token to token; use cfg_schedule linear")
        return None
    given = chosen["first_cfg"] if chosen["given_first_cfg"] or not chosen["given_cfg"] else None
    return None if given is None else weight({"cfg": given}, Sampling(), network)


def _is_constant(name: str) -> bool:
    if name not in CFG_SCHEDULES:
        raise ValueError(f"cfg_schedule is {shown(name)}; it must be {' or '.join(CFG_SCHEDULES)}")
    return name == "constant"


def _iterations(chosen: dict[str, Any], network: Any, schedule: Schedule) -> int | None:
    """Those of a network that draws groups of tokens; a default above the number of tokens is lowered to it."""
    if not hasattr(network, "groups"):
        return None
    return int(chosen["steps"] if chosen["given_steps"] else min(chosen["steps"], schedule.lengths[-1]))


def _heads(head: Head, chosen: dict[str, Any], count: int) -> list[Head]:
    """The head of each scale, with those settings that this kind of head has."""
    settings = chosen | {"interval": chosen["guidance_interval"]}
    if isinstance(head, OneShot):  # whose settings are of the whole plan
        return [head] * count
    own = {one.name: settings[one.name] for one in fields(head) if one.name in settings}  # type: ignore[arg-type]
    temperature = own.pop("temperature", None)
    if temperature is None:
        return [replace(head, **own)] * count  # type: ignore[type-var]
    by_scale = (temperature,) * count if isinstance(temperature, int | float) else tuple(temperature)
    if len(by_scale) != count:
        raise ValueError(
            f"temperature has {len(by_scale)} values for {count} scales; give one number, or one per scale"
        )
    return [replace(head, temperature=value, **own) for value in by_scale]  # type: ignore[type-var]


def _guided(chosen: dict[str, Any], network: Any, schedule: Schedule) -> range | None:
    """The scales, or of a network that draws token by token the tokens, at which guidance is on; None for all."""
    tokens, scales = chosen.get("guided_tokens"), chosen.get("guidance_scales")
    by_token = isinstance(network.places(schedule)[0], Tokens)
    if tokens is not None and not by_token:
        raise ValueError(f"guided_tokens is for next-token models, not {type(network).__name__}; use guidance_scales")
    if scales is not None and by_token:
        raise ValueError(f"guidance_scales is for models of scales, not {type(network).__name__}; use guided_tokens")
    if tokens is not None:
        return range(tokens)
    return None if scales is None else range(len(schedule))[slice(*scales)]
