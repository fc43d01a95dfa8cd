"""The keywords of a call: which images are drawn, besides the settings that say how; and the checks of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, SupportsIndex

import torch

from var_toolkit.conditions.text import PromptEmbeds
from var_toolkit.core.engine import ScaleEvent
from var_toolkit.core.plan import Plan
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.bits import Bits
from var_toolkit.heads.one_shot import OneShot
from var_toolkit.images import Given
from var_toolkit.ranges import checked, flag
from var_toolkit.setting_table import CONTINUOUS, DISCRETE, DISTILLED, SETTINGS, Setting, Settings
from var_toolkit.strict_fields import shown

Labels = SupportsIndex | str | Iterable[SupportsIndex | str | None] | None
GUIDING = ("cfg", "guidance_scale", "first_cfg", "guidance_scales", "guided_tokens")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class Drawing(Settings, total=False):
    """How images are drawn, and which: the keywords of a call, which explains them."""

    prompt: Annotated[str | Iterable[str] | None, Setting("of models of text: what each image shows")]
    negative_prompt: Annotated[str | Sequence[str] | None, Setting("what guidance leads away from")]
    prompt_embeds: Annotated[PromptEmbeds | None, Setting("instead of prompt: its features")]
    negative_prompt_embeds: Annotated[PromptEmbeds | None, Setting("instead of negative_prompt: its features")]
    control_image: Annotated[
        Given, Setting("of models with a control adapter: edges, depth or such, cropped to the size")
    ]
    seeds: Annotated[int | Iterable[int] | None, Setting("one per image")]
    generator: Annotated[torch.Generator | Sequence[torch.Generator] | None, Setting("of seeds that are not given")]
    plan: Annotated[Plan | None, Setting("instead of settings")]
    batch_size: Annotated[int, Setting("images at a time, 8 by default")]
    output_type: Annotated[str, Setting("pil (the default), np, pt or latent")]
    callback_on_scale_end: Annotated[Callable[[ScaleEvent], None] | None, Setting("called after every scale")]


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None, numbers as Python's own. ValueError of one line if one is not in its range."""
    return {name: _checked(name, value) for name, value in settings.items() if value is not None}


def _checked(name: str, value: Any) -> Any:
    setting = SETTINGS[name]
    if setting.types == (bool,):
        return flag(name, value)
    readers = {"guidance_scales": _span, "prune_layers": _layer_span, "schedule": _schedule, "size": _size}
    if name in readers:
        return readers[name](value)
    # What reads these knows more: what is off for the model, and which end is which.
    if setting.range is None or name in ("cfg", "guidance_scale", "guidance_interval"):
        return value
    if _is_list(value) and {tuple[float, ...], tuple[int, ...]} & set(setting.types):
        return tuple(checked(name, one) for one in value)
    return value if name == "draft_length" and value == "auto" else checked(name, value)


def _span(value: Any, name: str = "guidance_scales", what: str = "scales") -> tuple[int | None, int | None]:
    ends = tuple(value) if _is_list(value) else (value,)
    if len(ends) != 2 or not all(end is None or (type(end) is int and end >= 0) for end in ends):
        raise ValueError(f"{name} is {shown(value)}; it must be two {what}, (first, end), such as (0, 9)")
    return ends


def _layer_span(value: Any) -> tuple[int | None, int | None]:
    return _span(value, "prune_layers", "layers")


def _schedule(value: Any) -> Schedule:
    if isinstance(value, Schedule):
        return value
    return Schedule.parse(value) if isinstance(value, str) else Schedule.from_json(value, where="schedule")


def _size(value: Any) -> tuple[int, int]:
    sides = tuple(value) if _is_list(value) else (value,)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"size is {shown(value)}; it must be two numbers of pixels, (width, height)")
    return sides


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0


def require_kind(backbones: Sequence[Any], given: dict[str, Any]) -> None:
    """Refuse settings that mean nothing for the head of any backbone."""
    known = {name for backbone in backbones for name in _taken(backbone)}
    kinds = {*CONTINUOUS, *DISCRETE, *DISTILLED}
    odd = sorted(name for name in given if kinds & {*SETTINGS[name].of} and name not in known)
    if all(isinstance(backbone.default_head, OneShot) for backbone in backbones):
        odd += [name for name in GUIDING if given.get(name)]
        if odd:
            raise ValueError(f"{odd[0]} is not for a distilled model, which draws without guidance; use steps or coded")
    if odd and SETTINGS[odd[0]].of == DISTILLED:
        raise ValueError(f"{odd[0]} is for distilled models, such as dd-var-d16; this is none")
    if odd and not any(backbone.default_head.continuous for backbone in backbones):
        raise ValueError(f"{odd[0]} is for continuous tokens (FlowAR, MAR); this model's are discrete")
    if odd:
        kind = "discrete tokens" if SETTINGS[odd[0]].of == DISCRETE else "another kind of continuous tokens"
        own = ", ".join(name for name in SETTINGS if name in known)
        raise ValueError(f"{odd[0]} is for {kind}; this model's are continuous: use {own}")
    if given.get("smooth") and any(isinstance(backbone.default_head, Bits) for backbone in backbones):
        raise ValueError("smooth mixes the codes of a codebook; this model draws bits: lower the temperature instead")


def _taken(backbone: Any) -> set[str]:
    """The settings of one kind of tokens that mean something for a network."""
    head = backbone.default_head
    if isinstance(head, OneShot):
        return {"steps", "coded"}
    if not head.continuous:
        return {name for name, setting in SETTINGS.items() if setting.of == DISCRETE}
    found = {{"interval": "guidance_interval"}.get(field.name, field.name) for field in fields(head)}
    return found | ({"steps"} if hasattr(backbone, "groups") else set())


def is_one(labels: object) -> bool:
    """Whether this is one label rather than several; arrays of any length offer themselves as an index."""
    return (
        labels is None
        or isinstance(labels, str)
        or not isinstance(labels, Iterable)
        or (isinstance(labels, SupportsIndex) and getattr(labels, "ndim", 0) == 0)
    )


def listed(labels: Labels) -> Labels:
    """Labels of an iterator as a list, so that all of them are checked before anything is drawn."""
    return list(labels) if isinstance(labels, Iterator) else labels


def seeds_of(
    given: int | Iterable[int] | None, count: int, generator: torch.Generator | Sequence[torch.Generator] | None
) -> list[int]:
    """A seed for each of `count` images: those given, or from one generator or one per image, or torch's own.

    NumPy's numbers and arrays are taken, and tensors. ValueError names what is not a seed, or how many there are.
    """
    if given is not None:
        wanted: list[Any] = list(given) if _is_list(given) else [given]  # type: ignore[arg-type]
        seeds = [checked("seed", one.item() if getattr(one, "ndim", None) == 0 else one) for one in wanted]
    elif isinstance(generator, Sequence):
        seeds = [seed for one in generator for seed in seeds_of(None, 1, one)]
    elif generator is None or isinstance(generator, torch.Generator):
        device = generator.device if generator is not None else "cpu"
        seeds = torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()
    else:
        raise ValueError(f"generator is {shown(generator)}; it must be a torch.Generator, or one per image")
    if len(seeds) != count:
        raise ValueError(f"there are {len(seeds)} seeds for {count} images; give one seed per image")
    return seeds
