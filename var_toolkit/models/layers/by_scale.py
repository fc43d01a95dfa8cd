"""What networks of one schedule of scales tell plans, whatever they are made of."""

from __future__ import annotations

from var_toolkit.core.plan import Scale, own_schedule_for, require_own_schedule
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.head import Head


class ByScale:
    """A network that draws a scale at once, of the schedule that its positions were trained for."""

    has_subnets = False
    scales: Schedule

    def places(self, schedule: Schedule) -> tuple[Scale, ...]:
        """What its steps draw: a scale each."""
        return tuple(Scale(k) for k in range(len(schedule)))

    def guidance_ramp(self, schedule: Schedule) -> tuple[float, ...]:
        """What guidance is multiplied with at each scale: none at the first, all of it at the last."""
        return tuple(schedule.progress(k) for k in range(len(schedule)))

    def head_at(self, head: Head, schedule: Schedule, scale: int) -> Head:
        """How a scale is drawn where this head is asked for: by it."""
        return head

    def schedule_for(self, height: int, width: int) -> Schedule:
        """The schedule that ends with a map of this size. ValueError unless it is its own."""
        return own_schedule_for(self, height, width)

    def require_schedule(self, schedule: Schedule) -> None:
        """ValueError unless the schedule is that of its position embeddings."""
        require_own_schedule(self, schedule)
