"""Hints on standard error about what a model can draw, where the result may be unexpected."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from var_toolkit.registry import DEFAULT, find_entry

if TYPE_CHECKING:
    from var_toolkit.conditions.class_names import ClassNames
    from var_toolkit.formats.facts import Facts

MANY = 10  # classes up to which folders sorted as text and as numbers have the same order


def tell_purpose(model: str, *, of_image: bool) -> None:
    """Say what a still-life model is for, if an image was given or the model is the default."""
    entry = find_entry(model)
    if entry is None or entry.class_names != "still-lifes" or (not of_image and model != DEFAULT):
        return
    photo = "was trained only on rendered still lifes, so photographs come out poorly"
    print(
        f"{model} {photo if of_image else 'draws rendered still lifes'}. ImageNet models are downloaded by name, such "
        "as --model var-d16; `vargen models` lists them.",
        file=sys.stderr,
    )


def tell_label_order(names: ClassNames, facts: Facts) -> None:
    """Print a warning if the labels of a model may not be what the names of its class folders suggest."""
    if names.named is None and is_of_folders(facts) and len(names) > MANY:
        print(f"vargen: {unnamed(names, facts)}", file=sys.stderr)


def unnamed(names: ClassNames, facts: Facts) -> str:
    """A message that says why a model has no class names, and what its labels are."""
    labels = f"labels 0 to {len(names) - 1}"
    if not is_of_folders(facts):
        return f"the model has no class names; {labels}"
    order = " (0, 1, 10, 11, 2)" if len(names) > MANY else ""
    return f"this model was saved without its class names; {labels} are its class folders, sorted as text{order}"


def is_of_folders(facts: Facts) -> bool:
    """Whether a model was trained by var_toolkit on class folders."""
    return facts.recipe is not None and "kind: folders" in facts.recipe
