"""Maps drawn in a random order, a group of tokens at a time (MaskGIT, arXiv 2202.04200; MAR, arXiv 2406.11838)."""

from __future__ import annotations

from math import cos, floor, pi

from var_toolkit.core.plan import Group
from var_toolkit.core.schedule import Schedule


def cosine_groups(scale: int, tokens: int, iterations: int) -> list[Group]:
    """The published schedule: after iteration i of n about cos(pi / 2 i / n) of the tokens are hidden.

    Every iteration draws a token or more, and the last one the rest. ValueError for more iterations than tokens.
    """
    if not 1 <= iterations <= tokens:
        raise ValueError(f"steps is {iterations}; it must be from 1 to {tokens}, the number of tokens")
    hidden, groups = tokens, []
    for done in range(1, iterations + 1):
        left = max(1, min(hidden - 1, floor(tokens * cos(pi / 2 * done / iterations)))) if done < iterations else 0
        groups.append(Group(scale, tokens - hidden, hidden - left))
        hidden = left
    return groups


def drawn_share(group: Group, schedule: Schedule) -> float:
    """How much of a map is drawn after a group; after the last one, as published, one token counts as hidden."""
    tokens = schedule.lengths[group.index]
    return (tokens - max(1, tokens - group.first - group.count)) / tokens
