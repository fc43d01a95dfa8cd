"""Distilled Decoding (arXiv 2412.17153): an image in one step or a few, and steps of the teacher in the middle.

A distilled network draws everything from noise in one step. A second step keeps what comes before it and draws the rest
again, from the same noise. Of the first step only what the second keeps matters, so no more is computed. Between the
two the teacher can draw a part, slower and better. Needs a distilled network; for steps of the teacher that, too.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from var_toolkit.core.plan import Places, Plan, Scale, Step, Together, Tokens
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.one_shot import OneShot
from var_toolkit.methods.collaborative import refiner_role


def is_distilled(network: Any) -> bool:
    """Whether a network draws an image in a few steps."""
    return isinstance(network.default_head, OneShot)


def in_steps(plan: Plan, network: Any, steps: int | None = None, coded: int | None = None) -> Plan:
    """The plan of a distilled network in some of the steps that it was trained for; by default all.

    `coded` are scales, or tokens of a single map, that become codes; the others stay embeddings. ValueError for numbers
    that the network has not.
    """
    starts: tuple[int, ...] = network.starts
    if steps is not None and steps > len(starts):
        raise ValueError(f"steps is {steps}; {type(network).__name__} was trained for 1 to {len(starts)}")
    ends = (*starts[:steps], plan.schedule.total)
    (only,) = plan.steps
    only = only.with_head(coded=network.coded_tokens(coded))
    return replace(plan, steps=tuple(replace(only, places=Together(at, end - at)) for at, end in pairwise(ends)))


def with_teacher(student: Plan, teacher: Plan, *, first: int) -> Plan:
    """The student's plan, with the teacher from scale `first`, or token of a single map, to the student's next step.

    If that is its last step, the teacher draws the rest. As published, the teacher reads codes: what the student drew
    before becomes the nearest ones; and it reads the scales before its own in one pass without a mask. Its network gets
    the role of a refiner. ValueError if nothing is left for one of the two.
    """
    schedule = student.schedule
    if schedule != teacher.schedule:
        raise ValueError(f"student and teacher have the schedules {schedule} and {teacher.schedule}; use one")
    count = len(schedule) if len(schedule) > 1 else schedule.total
    if isinstance(first, bool) or not 1 <= first < count:
        raise ValueError(f"draft_scales is {first}; it must be from 1 to {count - 1}, where the teacher begins")
    begin = schedule.offsets[first] if len(schedule) > 1 else first
    later = [step.places.covered(schedule).start for step in student.steps[1:]]
    end = min((start for start in later if start > begin), default=schedule.total)
    read = [replace(step, head=replace(cast(OneShot, step.head), snapped=True)) for step in _cut(student, 0, begin)]
    renamed = teacher.with_roles({role: refiner_role(role) for role in teacher.roles})
    middle = [replace(step, open_prefill=isinstance(step.places, Scale)) for step in _cut(renamed, begin, end)]
    return Plan(schedule, (*read, *middle, *_cut(student, end, schedule.total)))


def _cut(plan: Plan, begin: int, end: int) -> list[Step]:
    """The steps that draw some tokens of the pyramid; those that draw several tokens are cut at the ends."""
    parts = [(step, _part(step, plan.schedule, begin, end)) for step in plan.steps]
    return [replace(step, places=part) for step, part in parts if part is not None]


def _part(step: Step, schedule: Schedule, begin: int, end: int) -> Places | None:
    covered = step.places.covered(schedule)
    first, stop = max(covered.start, begin), min(covered.stop, end)
    if first >= stop:
        return None
    if not isinstance(step.places, Tokens | Together):
        return step.places
    return replace(step.places, first=first, count=stop - first)
