"""Fewer tokens and keys at the finest scales, which have most of both: FastVAR, ScaleKV, and scales left out.

The three need nothing but one backbone, combine with each other and with other methods, and are fields of a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from var_toolkit.core.plan import Keys, Plan, Pruned, Scale
from var_toolkit.ranges import checked

Span = tuple[int | None, int | None]


def without_last(plan: Plan, count: int) -> Plan:
    """The plan without its last `count` scales: what the others make is decoded.

    The scales that are drawn are those of the whole plan. ValueError unless one is left.
    """
    scales = len(plan.schedule)
    if not 0 <= plan.skipped + count < scales:
        raise ValueError(f"skip_scales is {count}; it must be from 0 (off) to {scales - 1}, of {scales} scales")
    if not isinstance(plan.steps[0].places, Scale):
        raise ValueError("skip_scales is for models that draw whole scales; this one draws other parts of an image")
    kept = plan.within(range(scales - plan.skipped - count))
    return replace(plan, steps=kept, skipped=plan.skipped + count)


def fastvar(plan: Plan, shares: Sequence[float], layers: Span = (None, None)) -> Plan:
    """FastVAR (arXiv 2503.23367): the last scales compute their most distinct tokens and restore the others.

    `shares` are those of the tokens that each of the last scales of the plan skips; the outputs of their sub-layers are
    restored from the scale before these, resized by area. `layers` prune, from the first to before the second. With
    (0.4, 0.5), layers 3 to 27 and two scales left out this is the released setting of Infinity-2B at 1024 px.
    ValueError if there are more shares than scales after the first.
    """
    scales = len(plan.schedule) - plan.skipped
    if not 1 <= len(shares) < max(scales, 2):
        raise ValueError(
            f"prune_tokens has {len(shares)} shares; the plan draws {scales} scales, of which at most {scales - 1} "
            "can be pruned: the scale before them restores what they skip"
        )
    if not isinstance(plan.steps[0].places, Scale):
        raise ValueError("prune_tokens is for models that draw whole scales; this one draws other parts of an image")
    first, source = scales - len(shares), scales - len(shares) - 1
    pruned = {
        first + i: Pruned(share, source, layers[0] or 0, layers[1])
        for i, share in enumerate(shares)
        if checked("prune_tokens", share) > 0
    }
    return replace(plan, steps=tuple(replace(step, pruned=pruned.get(step.scale)) for step in plan.steps))


def scalekv(plan: Plan, share: float, whole: Sequence[int] = ()) -> Plan:
    """ScaleKV (arXiv 2505.19602): after each scale a layer holds this share of an image's keys, but `whole` ones all.

    The keys that leave are chosen for each row, layer and head (`core.cache.SparseCache.evict`).
    """
    if not isinstance(plan.steps[0].places, Scale):
        raise ValueError("key_share is for models that draw whole scales; this one draws other parts of an image")
    return plan.changed(keys=Keys(ceil(checked("key_share", share) * plan.schedule.total), tuple(whole)))
