"""The authors' figures, for images that were drawn as theirs were: anything else they must not stand beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from var_toolkit.evaluation.sample_folder import leaves
from var_toolkit.evaluation.sample_set import OWN, exact_stages, spelled
from var_toolkit.loading import skeleton
from var_toolkit.pipeline import Pipeline
from var_toolkit.zoo.registry import ENTRIES

IMAGES = 50_000


def published(
    settings: Mapping[str, Any] | None, *, measured: int, evaluators: bool
) -> tuple[dict[str, float] | None, list[str]]:
    """The figures of the zoo's model that drew a set; None, and how the set differs from theirs, if it does.

    `settings` are those of the set's `settings.json`, `measured` is how many of its images are, and `evaluators` says
    whether the reference is an evaluator's file, with statistics.
    """
    told = settings or {}
    entry = ENTRIES.get(str(told.get("model")))
    if entry is None or not entry.published:
        return None, []
    own = skeleton(entry.name)
    every, classes = spelled(range(len(own.class_names))), told.get("classes")
    tokenizer = told.get("tokenizer", OWN)
    changed = _changed(told.get("stages"), own)
    differing = [
        *([f"the plan has another {', '.join(changed)}"] if changed else []),
        *([f"the tokenizer is {tokenizer}"] if tokenizer != OWN else []),
        *([f"the classes are {classes}, not {every}"] if classes != every else []),
        *(f"{count} images {what}, not {IMAGES}" for what, count in _counts(told, measured) if count != IMAGES),
        *(["the reference is no evaluator's file with mu and sigma"] if not evaluators else []),
    ]
    return (None, differing) if differing else (dict(entry.published), [])


def _changed(stages: Any, own: Pipeline) -> list[str]:
    """Names of the settings in which stages differ from the model's own."""
    was, now = (dict(leaves(found)) for found in (stages, exact_stages(own.plan())))
    lacking = object()
    return sorted({name.split(".")[-1] for name in was | now if was.get(name, lacking) != now.get(name, lacking)})


def _counts(told: Mapping[str, Any], measured: int) -> tuple[tuple[str, Any], ...]:
    drawn = told.get("images")
    return (("are measured", measured), *((("were drawn", drawn),) if drawn != measured else ()))
