"""From the fields of a request to an order: what is drawn, all of it checked before it waits in the line."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from secrets import randbelow
from typing import Any

from var_toolkit.core.plan import Plan
from var_toolkit.editing import require_places
from var_toolkit.ranges import RANGES
from var_toolkit.serving.errors import ApiError, bad_input
from var_toolkit.serving.fields import Generation
from var_toolkit.serving.models import Served
from var_toolkit.serving.plans import plan_of
from var_toolkit.serving.uploads import Edited
from var_toolkit.strict_fields import shown

RANDOM_SEEDS = 2**53  # every program that reads JSON knows integers below this exactly


@dataclass(frozen=True, eq=False)
class Order:
    """Some images of one model, by one plan, that show the same and differ in their seeds."""

    model: Served
    plan: Plan
    subject: int | str | None  # a label, None for no class; of a model of text a prompt, or an instruction
    negative_prompt: str | None
    seeds: tuple[int, ...]
    edited: Edited | None
    previews: tuple[int, ...]  # the scales after which an image is shown, from 0
    output_format: str

    @property
    def size(self) -> str:
        """Width and height of the images, in pixels."""
        pasted = self.edited is not None and (self.edited.keep_pixels or self.edited.mask is None)
        width, height = self.edited.image.size if self.edited and pasted else self.model.size_of(self.plan)
        return f"{width}x{height}"

    @property
    def batch_key(self) -> Hashable:
        """What images must share to be drawn together: those of other orders too, unless this one is an edit."""
        if self.edited is not None:
            return id(self)
        return self.model.name, self.plan, self.negative_prompt is None


def model_of(models: Mapping[str, Served], name: str | None) -> Served:
    """The model of that name, or the first. ApiError if there is none."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        told = f"model {shown(name)} is not served here; /v1/models lists those that are: {', '.join(models)}"
        raise ApiError(404, told, param="model", code="model_not_found")
    return models[name]


def order_of(model: Served, asked: Generation, edited: Edited | None = None) -> Order:
    """The order of a request. ApiError for whatever does not fit the model."""
    with model.lock:
        _require_kind(model, edited)
        plan = plan_of(model, asked.plan, asked.settings, asked.pixels)
        subject = _text(model, asked) if model.reads_text else _label(model, asked, optional=edited is not None)
    if asked.stream and plan.best_of is not None:
        raise ApiError(400, "a stream shows one candidate; leave out best_of, or give stream false", param="stream")
    if edited is not None:
        _require_editing(model, plan, edited)
    previews = _previews(model, plan, asked.partial_images) if asked.stream else ()
    seeds = _seeds(asked)
    return Order(model, plan, subject, asked.negative_prompt, seeds, edited, previews, asked.output_format)


def _require_kind(model: Served, edited: Edited | None) -> None:
    if edited is None and model.edits_by_instruction:
        raise ApiError(400, f"{model.name} edits images; send one to /v1/images/edits", param="model")
    if edited is not None and not model.edits_by_instruction and edited.mask is None:
        told = "there is no mask; send one, light where the image is redrawn, or an image that is transparent there"
        raise ApiError(400, told, param="mask")


def _require_editing(model: Served, plan: Plan, edited: Edited) -> None:
    try:
        require_places(model.shape.tokenizer)
    except ValueError as error:
        raise bad_input(error, "model") from None
    width, height = model.size_of(plan)
    if width != height:
        raise ApiError(400, f"edits are of squares, and the plan draws {width}x{height}; leave size out", param="size")
    if plan.skipped:
        raise ApiError(400, "skip_scales leaves out detail that the image has; leave it out", param="settings")
    edited.require_fit(width)


def _label(model: Served, asked: Generation, *, optional: bool) -> int | None:
    """The label of a class, by number or name; None for no class."""
    if asked.negative_prompt is not None:
        raise ApiError(400, f"{model.name} draws classes; only models of text have one", param="negative_prompt")
    if asked.class_ is not None and asked.prompt.strip():
        raise ApiError(400, "class and prompt both name a class; give one of them", param="class")
    wanted = asked.prompt.strip() if asked.class_ is None else asked.class_
    if wanted == "" and optional:
        return None
    if wanted == "":
        raise ApiError(400, "no class is given; give prompt or class; /v1/classes lists them", param="prompt")
    names = model.shape.class_names
    try:
        label = names.resolve(wanted)
    except ValueError as error:
        raise bad_input(error, "prompt" if asked.class_ is None else "class") from None
    return None if label == len(names) else label


def _text(model: Served, asked: Generation) -> str:
    """The prompt, which the text encoder can read."""
    if asked.class_ is not None:
        raise ApiError(400, f"{model.name} draws what a prompt says; give prompt instead", param="class")
    if not asked.prompt.strip():
        raise ApiError(400, "there is no prompt; say what the image is to show", param="prompt")
    encoder: Any = model.shape.text_encoder
    for name, text in (("prompt", asked.prompt), ("negative_prompt", asked.negative_prompt)):
        try:
            encoder.check([] if text is None else [text])
        except ValueError as error:
            raise bad_input(error, name) from None
    return asked.prompt


def _seeds(asked: Generation) -> tuple[int, ...]:
    first, most = asked.seed, int(RANGES["seed"].high)
    if first is None:
        first = randbelow(RANDOM_SEEDS - asked.n)
    if first + asked.n - 1 > most:
        raise ApiError(400, f"seed is {first}, and the last of {asked.n} images would exceed {most}", param="seed")
    return tuple(range(first, first + asked.n))


def _previews(model: Served, plan: Plan, count: int | None) -> tuple[int, ...]:
    """The scales that are shown, evenly spread from the first on; after the last one the image is finished."""
    scales = range(model.shape.bind(plan).stages - 1)
    if count is None or count >= len(scales):
        return tuple(scales)
    return tuple(scales[number * len(scales) // count] for number in range(count))
