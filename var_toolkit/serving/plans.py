"""The plan of a request: by name, as JSON, or by settings; its work is bounded before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from var_toolkit.core.plan import Plan
from var_toolkit.core.schedule import Schedule
from var_toolkit.methods.scorers import KNOWN
from var_toolkit.pipeline import Pipeline
from var_toolkit.serving.errors import ApiError, bad_input
from var_toolkit.serving.limits import MOST_CANDIDATES, MOST_MAP, MOST_NUMBERS, MOST_SIDE, MOST_WORK, SETTING_CAPS
from var_toolkit.serving.models import Served
from var_toolkit.setting_table import SETTINGS, Settings
from var_toolkit.strict_fields import convert, refuse_unknown_keys, shown

# These name modules, functions, files or models, which no request may.
REFUSED = ("method", "method_options", "scorer", "latent_scorer", "judge")
OFFERED = tuple(name for name in SETTINGS if name not in (*REFUSED, "size"))  # the size is a field of its own


def plan_of(
    model: Served, plan: str | Mapping[str, Any] | None, settings: Mapping[str, Any], pixels: tuple[int, int] | None
) -> Plan:
    """The plan that a request asks for, at the size that it asks for. ApiError if it does not fit, or is too much work.

    Uses the sizes of the model, so its lock must be held.
    """
    if plan is not None and settings:
        raise ApiError(400, "plan and settings both say how to draw; give one of them", param="settings")
    found = _by_settings(model, settings, pixels) if plan is None else _given(model, plan)
    if pixels is not None and pixels != model.size_of(found):
        width, height = model.size_of(found)
        raise ApiError(400, f"size is {pixels[0]}x{pixels[1]}; the plan draws {width}x{height}", param="size")
    _require_affordable(model, found)
    return found


def _by_settings(model: Served, settings: Mapping[str, Any], pixels: tuple[int, int] | None) -> Plan:
    read = _settings(settings)
    if pixels is not None and pixels != model.size_of(model.own_plan):
        if max(pixels) > MOST_SIDE:
            raise ApiError(400, f"size is {pixels[0]}x{pixels[1]}; sides are at most {MOST_SIDE}", param="size")
        read["size"] = pixels
    if not read:
        return model.own_plan
    try:
        return model.shape.plan(**read)
    except ValueError as error:
        raise bad_input(error, "size" if "size" in read and not settings else "settings") from None


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, each of its type and bounded."""
    try:
        refuse_unknown_keys(given, OFFERED, where="settings")
        read = {name: convert(_hints()[name], value, where=f"settings: {name}") for name, value in given.items()}
        for name, value in read.items():
            _require_bounded(name, value)
        return read
    except ValueError as error:
        raise bad_input(error, "settings") from None


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Settings)


def _require_bounded(name: str, value: Any) -> None:
    """ValueError for a number or a list that could take long to make a plan of, or to draw uncounted."""
    if name == "schedule" and isinstance(value, str):
        return _require_bounded(name, Schedule.parse(value).to_json())
    if isinstance(value, str | list | tuple) and len(value) > MOST_NUMBERS:
        raise ValueError(f"{name} is too long; here it may have {MOST_NUMBERS} entries at most")
    if isinstance(value, list | tuple):
        for one in value:
            _require_bounded(name, one)
    most = SETTING_CAPS.get(name, MOST_MAP if name == "schedule" else None)
    if most is not None and isinstance(value, int) and value > most:
        raise ValueError(f"{name} is {shown(value)}; here it may be {most} at most")


def _given(model: Served, plan: str | Mapping[str, Any]) -> Plan:
    """A plan by its name, or from JSON values."""
    if isinstance(plan, str):
        if plan not in model.plans:
            raise ApiError(404, f"plan {shown(plan)} is none of {model.name}; /v1/plans lists them", param="plan")
        return model.plans[plan]
    try:
        found = Plan.from_json(plan)
        _require_bounded("schedule", found.schedule.to_json())
        _require_closed(found, model.shape)
        model.shape.bind(found)
        return found
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # the last three of odd values
        raise bad_input(error, "plan") from None


def _require_closed(plan: Plan, shape: Pipeline) -> None:
    """ValueError for a plan that names what is not served: scorers other than the model's, or drafts of any size."""
    scorers = {step.search.scorer for step in plan.steps if step.search is not None} - {shape.sampling.latent_scorer}
    if plan.best_of is not None:
        scorers |= {plan.best_of.scorer} - {*KNOWN}
    if scorers:
        raise ValueError(f"plan: scorer {shown(min(scorers))} is not served; use the settings best_of or candidates")
    if any(step.verify is not None for step in plan.steps):
        raise ValueError("plan: speculation is not read from JSON here; give it by settings, such as speculate")


def _require_affordable(model: Served, plan: Plan) -> None:
    """ApiError for a plan whose image takes much more than one by the model's own plan."""
    cost, own = model.shape.bind(plan).cost(), model.own_cost
    (width, height), (own_width, own_height) = model.size_of(plan), model.size_of(model.own_plan)
    for what, asked, usual in (
        ("multiply-adds", cost.multiply_adds, own.multiply_adds),
        ("cached values", cost.cache_values, own.cache_values),
        ("pixels", width * height, own_width * own_height),
    ):
        if asked > MOST_WORK * usual > 0:
            raise ApiError(
                400,
                f"an image by this plan takes {asked} {what}, {asked / usual:.0f} times as many as by the model's own; "
                f"at most {MOST_WORK} times are allowed: ask for less",
                param="plan",
            )
    _require_few_candidates(plan)


def _require_few_candidates(plan: Plan) -> None:
    counts = [step.search.count for step in plan.steps if step.search is not None]
    counts += [] if plan.best_of is None else [plan.best_of.count]
    if max(counts, default=1) > MOST_CANDIDATES:
        raise ApiError(
            400, f"the plan draws {max(counts)} candidates; at most {MOST_CANDIDATES} are allowed", param="plan"
        )
