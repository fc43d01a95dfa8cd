"""CoDe, collaborative decoding (arXiv 2411.17787): a large drafter draws the first scales, a small refiner the rest.

The coarse scales decide what the image shows and have few tokens; the fine ones have most of the tokens and need
little capacity. At the hand-over the drafter's keys and values are freed, and the refiner prefills the drafted scales
in one block-causal pass. Needs two models that share tokenizer and classes.
"""

from __future__ import annotations

from typing import Any

import torch

from var_toolkit.core.plan import BACKBONE, REFINER, Plan


def collaborative(drafter: Plan, refiner: Plan, *, draft_scales: int) -> Plan:
    """The first `draft_scales` scales as the drafter's plan draws them, the others as the refiner's.

    Either half may be any plan. The refiner's networks get roles of their own (`refiner_role`). ValueError if the two
    have different schedules, or if no scale is left for one of them.

    The drafter is not touched after the hand-over: a callback on scale `draft_scales` - 1 may move it off the device,
    and back before the next batch.
    """
    count = len(drafter.schedule)
    if drafter.schedule != refiner.schedule:
        raise ValueError(f"drafter and refiner have the schedules {drafter.schedule} and {refiner.schedule}; use one")
    if count == 1:
        raise ValueError("an image of one map has one model; two models share an image of several scales (VAR)")
    if isinstance(draft_scales, bool) or not 1 <= draft_scales <= count - 1:
        raise ValueError(f"draft_scales is {draft_scales}; it must be from 1 to {count - 1}, of {count} scales")
    renamed = refiner.with_roles({role: refiner_role(role) for role in refiner.roles})
    steps = drafter.within(range(draft_scales)) + renamed.within(range(draft_scales, count))
    return Plan(drafter.schedule, steps, refiner.skipped)


def refiner_role(role: str) -> str:
    """The role of a refiner's network beside those of the drafter."""
    return REFINER if role == BACKBONE else f"{REFINER}.{role}"


def require_one_tokenizer(one: Any, other: Any, names: tuple[str, str] = ("drafter", "refiner")) -> None:
    """ValueError unless the tokens of two models, called by `names`, mean the same."""
    if one is other:
        return
    if type(one) is not type(other):
        kinds = [type(tokenizer).__name__ for tokenizer in (one, other)]
        raise ValueError(
            f"the {names[0]} has a {kinds[0]} and the {names[1]} a {kinds[1]} for tokenizer; "
            "an image needs one for both"
        )
    if one.scales != other.scales:
        schedules = [list(tokenizer.scales.patch_nums) for tokenizer in (one, other)]
        raise ValueError(
            f"{names[0]} and {names[1]} have the schedules {schedules[0]} and {schedules[1]}; they must be one"
        )
    ours, theirs = one.meaning(), other.meaning()
    # Sizes alone can be told of networks without weights, which plans are made of to count their cost.
    if ours.keys() != theirs.keys() or not all(_equal(ours[name], theirs[name]) for name in ours):
        raise ValueError(f"{names[0]} and {names[1]} have different tokenizers; both must be trained on the same one")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.is_meta or other.is_meta:
        return one.shape == other.shape
    return torch.equal(one.cpu(), other.cpu())
