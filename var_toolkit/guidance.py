"""How guidance is counted.

Plans hold the weight t of (1 + t) conditional - t null: 0 is off. Users give one of two numbers instead: `cfg` as the
authors of a model count, so that a published setting can be typed as it stands (VAR and HMAR: t; LlamaGen and FlowAR:
1 + t; a family's `cfg_off` says which), or `guidance_scale`, 1 + t for every model, as in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from var_toolkit.entries import Sampling
from var_toolkit.ranges import checked
from var_toolkit.registry import family_of
from var_toolkit.strict_fields import build, convert

if TYPE_CHECKING:
    from var_toolkit.core.bind import Run

DEFAULT = 1.5  # the weight for models that have no setting of their own
DIGITS = 9  # 1.65 - 1 is then 0.65


def with_cfg(sampling: Sampling, backbone: Any) -> Sampling:
    """The settings with a number for `cfg`."""
    return sampling if sampling.cfg is not None else replace(sampling, cfg=DEFAULT + _off(backbone))


def weight(given: Mapping[str, Any], own: Sampling, backbone: Any) -> float:
    """The weight that settings ask for; without `cfg` and `guidance_scale` the model's own. ValueError in one line.

    0 is off in every count, as it is in diffusers and in the authors' programs; between 0 and 1 a count from 1 has
    no meaning.
    """
    names = [name for name in ("cfg", "guidance_scale") if given.get(name) is not None]
    if len(names) > 1:
        raise ValueError("cfg and guidance_scale both set the guidance; give one of them")
    if not names:
        return _above("cfg", with_cfg(own, backbone).cfg, _off(backbone))
    return _above(names[0], given[names[0]], _off(backbone) if names == ["cfg"] else 1)


def read_sampling(values: Any, backbone: Any, *, where: str) -> Sampling:
    """The settings in a model's file. Older files have `guidance_scale`, which counted from 0 for every model."""
    if isinstance(values, Mapping) and "guidance_scale" in values and "cfg" not in values:
        old = convert(float, values["guidance_scale"], where=f"{where}: guidance_scale")
        rest = {name: value for name, value in values.items() if name != "guidance_scale"}
        values = {**rest, "cfg": round(old + _off(backbone), DIGITS)}
    return build(Sampling, values, where=where)


def counted(run: Run) -> dict[str, Any]:
    """Both numbers of a run, at the step where they are largest; each a list where its networks differ."""
    largest = {
        one.step.network: max(other.step.guidance for other in run.steps if other.network is one.network)
        for one in run.steps
    }
    cfg = sorted({round(weight + _off(run.networks[role]), DIGITS) for role, weight in largest.items()})
    scale = sorted({round(weight + 1, DIGITS) for weight in largest.values()})
    return {name: found[0] if len(found) == 1 else found for name, found in (("cfg", cfg), ("guidance_scale", scale))}


def _above(name: str, value: Any, off: float) -> float:
    if not isinstance(value, bool) and isinstance(value, Real) and value == 0:
        return 0.0
    return round(checked("guidance_scale" if off else "cfg", value, name) - off, DIGITS)


def _off(backbone: Any) -> float:
    return family_of(backbone).cfg_off
