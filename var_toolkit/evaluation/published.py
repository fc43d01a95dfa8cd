"""The authors' published scores, given only for sets that were drawn with the authors' settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from var_toolkit.evaluation.sample_folder import leaves
from var_toolkit.evaluation.sample_set import OWN, spelled
from var_toolkit.loading import skeleton
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import find_entry

IMAGES = 50_000


def published(
    settings: Mapping[str, Any] | None, *, measured: int, evaluators: bool
) -> tuple[dict[str, float] | None, list[str]]:
    """The published scores of the model that drew a set; None and a list of differences if the settings differ.

    `settings` are those of the set's `settings.json`, `measured` is the number of images scored, and `evaluators` is
    whether the reference is a statistics file of the ADM evaluator.
    """
    told = settings or {}
    entry = find_entry(str(told.get("model")))
    if entry is None or not entry.published:
        return None, []
    own = skeleton(entry.name)
    every, classes = spelled(range(len(own.class_names))), told.get("classes")
    tokenizer = told.get("tokenizer", OWN)
    changed = _changed(told.get("plan"), own)
    differing = [
        *([f"the plan has a different {', '.join(changed)}"] if changed else []),
        *([f"the tokenizer is {tokenizer}"] if tokenizer != OWN else []),
        *([f"the classes are {classes}, not {every}"] if classes != every else []),
        *(f"{count} images {what}, not {IMAGES}" for what, count in _counts(told, measured) if count != IMAGES),
        *(["the reference is not a statistics file (mu and sigma) of the ADM evaluator"] if not evaluators else []),
    ]
    return (None, differing) if differing else (dict(entry.published), [])


def _changed(plan: Any, own: Pipeline) -> list[str]:
    """Names of the settings in which a plan differs from the model's own."""
    was, now = (dict(leaves(found)) for found in (plan, own.plan().to_json()))
    lacking = object()
    return sorted({_setting(name) for name in was | now if was.get(name, lacking) != now.get(name, lacking)})


def _setting(name: str) -> str:
    """The field of a step, or of its head, in the path of a value of a plan, such as steps.3.head.top_k."""
    field, *rest = [part for part in name.split(".") if part != "steps" and not part.isdigit()]
    return rest[0] if field == "head" and rest else field


def _counts(told: Mapping[str, Any], measured: int) -> tuple[tuple[str, Any], ...]:
    drawn = told.get("images")
    return (("are measured", measured), *((("were drawn", drawn),) if drawn != measured else ()))
