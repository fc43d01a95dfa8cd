"""What networks of one schedule tell plans, whatever they are made of."""

from __future__ import annotations

from typing import Any

from var_toolkit.core.plan import Scale
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.head import Head


class OwnSchedule:
    """A network that draws the schedule that its positions were trained for, and no other."""

    scales: Schedule
    sublayers: tuple[str, ...] = ()
    blocks: Any

    @property
    def cached_layers(self) -> int:
        """Layers that cache keys and values; a branch beside the blocks adds its own."""
        return len(self.blocks)

    def head_at(self, head: Head, schedule: Schedule, scale: int) -> Head:
        """How a scale is drawn where this head is asked for: by it."""
        return head

    def schedule_for(self, height: int, width: int) -> Schedule:
        """The schedule that ends with a map of this size. ValueError unless it is its own."""
        if self.scales.maps[-1] != (height, width):
            own, asked = (f"{h} x {w}" for h, w in (self.scales.maps[-1], (height, width)))
            raise ValueError(
                f"{type(self).__name__} ends with a map of {own} tokens, for which its positions were trained; "
                f"it cannot draw {asked}; leave size out, or use FlexVAR"
            )
        return self.scales

    def prefix_tokens(self, schedule: Schedule) -> int:
        """Tokens of the condition that every layer reads and caches before those of the image, none by default."""
        return 0

    def require_schedule(self, schedule: Schedule) -> None:
        """ValueError unless the schedule is its own."""
        if schedule != self.scales:
            raise ValueError(
                f"{type(self).__name__} draws the schedule {self.scales}, for which its positions were trained; "
                f"it cannot draw {schedule}; FlexVAR draws any schedule"
            )


class ByScale(OwnSchedule):
    """A network that draws a scale at once."""

    has_subnets = False

    def places(self, schedule: Schedule) -> tuple[Scale, ...]:
        """What its steps draw: a scale each."""
        return tuple(Scale(k) for k in range(len(schedule)))

    def guidance_ramp(self, schedule: Schedule) -> tuple[float, ...]:
        """What guidance is multiplied with at each scale: none at the first, all of it at the last."""
        return tuple(schedule.progress(k) for k in range(len(schedule)))
