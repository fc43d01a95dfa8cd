"""CoDe, collaborative decoding (arXiv 2411.17787): a large drafter draws the first scales, a small refiner the rest.

The coarse scales decide what the picture shows and have few tokens; the fine ones have most of the tokens and need
little capacity. At the hand-over the drafter's keys and values are freed, and the refiner takes in the drafted scales
in one block-causal pass. Needs two models that share tokenizer and classes.
"""

from __future__ import annotations

from dataclasses import replace

from var_toolkit.sampling.plan import Plan, Stage


def code(drafter: Plan, refiner: Plan, *, draft_scales: int) -> Plan:
    """The first `draft_scales` scales as the drafter's plan draws them, the others as the refiner's.

    Either half may itself be any plan. Both must use one tokenizer object. ValueError if they do not, or if no scale
    is left for one of them.
    """
    count = len(drafter.tokenizer.scales)
    if refiner.tokenizer is not drafter.tokenizer:
        raise ValueError("drafter and refiner must share one tokenizer")
    if not 1 <= draft_scales <= count - 1:
        raise ValueError(f"draft_scales is {draft_scales}; it must be from 1 to {count - 1}, of {count} scales")
    halves = _within(drafter, range(draft_scales)) + _within(refiner, range(draft_scales, count))
    return Plan(drafter.tokenizer, halves)


def _within(plan: Plan, scales: range) -> tuple[Stage, ...]:
    """The stages of a plan, cut to some scales."""
    cut = (
        (stage, range(max(stage.scales.start, scales.start), min(stage.scales.stop, scales.stop)))
        for stage in plan.stages
    )
    return tuple(replace(stage, scales=left) for stage, left in cut if left)
