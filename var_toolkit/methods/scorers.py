"""Scorers of images by name, for search at test time: from this package, or any function of your own.

A scorer is a function of uint8 images (B, 3, h, w) on the CPU and of what each was drawn for, its label or its prompt:
it returns a number for each, the higher the better. It is named `stilllife` (probability of the class by the embedded
classifier), `scenes` (what the embedded detector finds of the prompt), `clip=MODEL` (CLIPScore by a CLIP model: a hub
id or a directory), or `module:function`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from var_toolkit.conditions.text_encoders import EXTRA
from var_toolkit.modules import imported
from var_toolkit.strict_fields import shown

Scorer = Callable[[Tensor, Sequence[Any]], Any]
CLASSES, PROMPTS = "classes of still lifes", "prompts of scenes"
# Looked up by name, because judges are above methods.
KNOWN = {
    "stilllife": "var_toolkit.still_life.quality:class_probability",
    "scenes": "var_toolkit.still_life.scene_quality:prompt_share",
}
CLIP = "clip="


def name_of(scorer: str | Scorer) -> str:
    """The name of a scorer in a plan; of a function, module and name."""
    if isinstance(scorer, str):
        return scorer
    if not callable(scorer):
        raise ValueError(f"scorer is {shown(scorer)}; it must be a name or a function of images and labels or prompts")
    return f"{getattr(scorer, '__module__', '')}:{getattr(scorer, '__qualname__', type(scorer).__qualname__)}"


def require_scorer(name: str, *, draws: str | None) -> None:
    """ValueError of one line for a name that is unknown, or of which something else is drawn than it can judge.

    `draws` are the classes or prompts of the model: `CLASSES`, `PROMPTS`, "prompts", or None for other classes.
    """
    if name.startswith(CLIP):
        if name == CLIP:
            raise ValueError("scorer clip= lacks its model; give one, such as clip=openai/clip-vit-large-patch14")
        if draws not in (PROMPTS, "prompts"):
            raise ValueError(f"scorer {name} compares images with prompts; this model draws classes")
    elif name in KNOWN:
        able = CLASSES if name == "stilllife" else PROMPTS
        if draws != able:
            raise ValueError(f"scorer {name} judges {able}; this model draws something else: give module:function")
    elif ":" not in name:
        raise ValueError(f"scorer {name!r} is unknown; use {', '.join(KNOWN)}, clip=MODEL, or module:function")


def find_scorer(name: str, device: torch.device | str = "cpu") -> Scorer:
    """The scorer of a name; a module of your own is imported, and so runs. ValueError of one line if it is missing."""
    if name.startswith(CLIP):
        made: Scorer = _attribute("var_toolkit.evaluation.clip_score:ClipScore", name)(name.removeprefix(CLIP), device)
        return made
    found: Scorer = _attribute(KNOWN.get(name, name), name)
    return found


def require_function(name: str) -> None:
    """ValueError of one line if the function of a name is missing, or the package that it needs.

    The module of a function is imported; a CLIP model is not read.
    """
    if not name.startswith(CLIP):
        find_scorer(name)
    elif find_spec("transformers") is None:
        raise ValueError(f"scorer {name} needs transformers: {EXTRA}")


def scores_of(scorer: Scorer, images_B3hw: Tensor, asked: Sequence[Any]) -> list[float]:
    """The scores of uint8 images, checked. ValueError of one line unless there is one number for each."""
    found = torch.as_tensor(scorer(images_B3hw, asked)).detach().double().cpu()
    if found.shape != (len(asked),) or bool(found.isnan().any()):
        raise ValueError(
            f"the scorer returned {'NaN' if found.shape == (len(asked),) else f'shape {tuple(found.shape)}'} for "
            f"{len(asked)} images; it must return one number for each"
        )
    return found.tolist()


def _attribute(path: str, name: str) -> Any:
    module, _, function = path.partition(":")
    found = imported(module, f"scorer {name}")
    try:
        return attrgetter(function)(found)
    except AttributeError:
        raise ValueError(
            f"scorer {name}: {module} has no function {function!r}; "
            "a function that has no name of its own must be given with the plan: scorer=function"
        ) from None
