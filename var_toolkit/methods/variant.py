"""VARiant (arXiv 2511.16546): the finer scales run through some of the layers only, of the same weights.

Most tokens belong to the last scales, and those need the least depth. The first scales run through every layer; then
the skipped layers free their keys and values. Needs nothing but one backbone, best one trained for it (the objective
`variant` of `vargen train`).
"""

from __future__ import annotations

from var_toolkit.core.plan import Plan, Subnet
from var_toolkit.ranges import checked


def variant(plan: Plan, *, subnet: int, full_scales: int) -> Plan:
    """The plan with `subnet` layers of each network from scale `full_scales` on, and all before.

    In a plan of several networks, one with no more layers than that keeps them all. ValueError if `full_scales` is not
    from 1 to the number of scales; binding refuses networks that were not made to skip layers, or have too few.
    """
    count = len(plan.schedule)
    if isinstance(full_scales, bool) or not 1 <= full_scales <= count:
        raise ValueError(f"full_scales is {full_scales}; it must be from 1 to {count}, the number of scales")
    return plan.changed(layers=Subnet(checked("subnet", subnet), full_scales))
