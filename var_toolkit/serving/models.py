"""The models that a server offers: those it was started with, and no other, whatever a request names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

from var_toolkit.core.bind import Cost
from var_toolkit.core.plan import Plan
from var_toolkit.image_conditions import edits
from var_toolkit.loading import load, skeleton
from var_toolkit.named_plans import within
from var_toolkit.pipeline import Pipeline
from var_toolkit.serving.resident import Resident

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Served:
    """A model: its sizes alone, by which requests are checked, and with weights, which the drawing thread alone uses.

    `lock` is held by the one thread that uses the sizes, since text encoders are not made for several.
    """

    name: str
    shape: Pipeline
    pipe: Pipeline
    lock: Any = field(default_factory=Lock)

    def __post_init__(self) -> None:
        if self.pipe.text is not None and self.pipe.text_encoder is None:
            raise ValueError(
                f"--model {self.name} comes without a text encoder, so it cannot read prompts; leave it out"
            )

    @property
    def reads_text(self) -> bool:
        """Whether it draws what a prompt says, rather than classes."""
        return self.shape.text is not None

    @property
    def edits_by_instruction(self) -> bool:
        """Whether it draws nothing but edits of an image, by an instruction."""
        return edits(self.shape.backbone)

    @cached_property
    def own_plan(self) -> Plan:
        """The plan where a request names none."""
        return self.shape.plan()

    @cached_property
    def own_cost(self) -> Cost:
        """The work of an image by that plan."""
        return self.shape.bind(self.own_plan).cost()

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The plans that can be asked for by name, its own first."""
        others = {name: self.shape.plan(**settings) for name, settings in [*self.settings.items()][1:]}
        return {next(iter(self.settings)): self.own_plan, **others}

    @cached_property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """The settings of those plans."""
        return within(self.shape)

    def size_of(self, plan: Plan) -> tuple[int, int]:
        """Width and height of the images of a plan, in pixels."""
        height, width = plan.schedule.image_size(self.shape.tokenizer.downsample)
        return width, height

    def described(self) -> dict[str, Any]:
        """What clients are told, after OpenAI's list of models."""
        width, height = self.size_of(self.own_plan)
        draws = "prompts" if self.reads_text else "classes"
        return {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "var_toolkit",
            "draws": "instructions" if self.edits_by_instruction else draws,
            "classes": None if self.reads_text else len(self.shape.class_names),
            "size": f"{width}x{height}",
        }


def shapes(names: Sequence[str]) -> dict[str, Pipeline]:
    """The sizes of some models, by name. ValueError in one line for one that is none, or given twice."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--model {twice[0]} is given twice; give each model once")
    return {name: skeleton(name) for name in names}


def served(name: str, shape: Pipeline, *, device: str, dtype: str | torch.dtype) -> Served:
    """A model with its weights, ready to draw."""
    pipe = load(name, device=device, dtype=dtype).pack()
    if pipe.text_encoder is not None:
        pipe.text_encoder = Resident(pipe.text_encoder)
    return Served(name, shape, pipe)
