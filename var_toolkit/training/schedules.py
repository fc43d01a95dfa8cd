"""Learning rate and weight decay as functions of the step alone."""

import math

from var_toolkit.training.recipe import OptimiserConfig, ScheduleConfig

FLAT = 0.05  # lin0 stays at its peak for this part of the run after warm-up (VAR's release)


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The rate at `step` of `steps`: linear warm-up, then the curve that `schedule.kind` names."""
    warm = schedule.warmup * steps
    if step < warm:
        return peak * (schedule.start + (1 - schedule.start) * step / warm)
    passed = min(1.0, (step - warm) / max(1.0, steps - 1 - warm))
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "cosine":
        return peak * (schedule.final + (1 - schedule.final) * (0.5 + 0.5 * math.cos(math.pi * passed)))
    rest = min(1.0, (1 - passed) / (1 - FLAT))
    return peak * (schedule.final + (1 - schedule.final) * rest)


def weight_decay(optimiser: OptimiserConfig, step: int, steps: int) -> float:
    """Cosine from `weight_decay` to `final_weight_decay`, where the recipe has one."""
    start, final = optimiser.weight_decay, optimiser.final_weight_decay
    if final is None:
        return start
    return final + (start - final) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / max(1, steps - 1))))
