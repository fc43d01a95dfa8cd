"""Published code beside ours: the same random weights, the same classes and settings, rounds in turns.

The code is read from a checkout that the user gives; it is imported and run in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from var_toolkit.devices import find_device
from var_toolkit.evaluation.bench.peer_classes import llamagen, var
from var_toolkit.evaluation.bench.peer_infinity import infinity
from var_toolkit.evaluation.bench.peer_mar import mar
from var_toolkit.evaluation.bench.peer_rows import Peer
from var_toolkit.evaluation.bench.published_code import Draw

BOTH = {"var": var, "llamagen": llamagen, "infinity": infinity, "mar": mar}  # by the first word of a model's name


def compare(folder: Path, peers: list[Peer], rounds: int, on_turn: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure each comparison. One row each: seconds of every round, and the ratios published / ours."""
    rows, device = [], find_device("auto")
    for peer in peers:
        with BOTH[peer.model.partition("-")[0]](folder, peer, device) as both:

            def told(what: str, name: str = peer.name) -> None:
                on_turn(f"{name}: {what}")

            seconds = in_turns(both, rounds, told)
        rows.append({"row": peer.name, "device": str(device), **summary(seconds)})
    return rows


def in_turns(draws: Mapping[str, Draw], rounds: int, on_turn: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each function in every round, after one call each to warm up; its seed is the round."""
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    for number in range(rounds + 1):
        for name, draw in draws.items():
            on_turn(name)
            begun = time.perf_counter()
            draw(number)
            if number > 0:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def summary(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """The median of each, and the median, the smallest and the largest of the ratios of the rounds."""
    ratios = [other / own for own, other in zip(seconds["ours"], seconds["published"], strict=True)]
    return {
        **{name: round(median(times), 4) for name, times in seconds.items()},
        "ratio": round(median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "seconds": {name: [round(one, 4) for one in times] for name, times in seconds.items()},
    }


def as_text(rows: list[dict[str, Any]]) -> str:
    """The table: how many times as fast as the published code each row is, and between what bounds."""
    lines = [f"{'row':28} {'ours, s':>9} {'published, s':>13} {'ratio':>7}  lowest to highest"]
    for row in rows:
        spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        lines.append(f"{row['row']:28} {row['ours']:9.2f} {row['published']:13.2f} {row['ratio']:7.2f}  {spread}")
    return "\n".join(lines)
