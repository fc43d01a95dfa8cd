"""What to draw: the settings that all tabs share, how a model fills them, and how a link restores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from random import randrange
from typing import Any

import gradio as gr

from var_toolkit.demo.showing import AT_ONCE
from var_toolkit.demo.studio import Studio, seed_of
from var_toolkit.ranges import RANGES, checked
from var_toolkit.registry import Hub, find_entry

MOST_GUIDANCE = 8
MOST_IMAGES = 9
FIRST_CLASS = 207
FIRST_PROMPT = "a red sphere to the left of a blue cube on sand"
RANDOM_SEEDS = 2**31
NAMES = ("model", "plan", "class", "seed", "guidance", "temperature", "top_k", "prompt", "negative_prompt")  # of a link
# What a link's page does not show is left out: None is nothing of the model's.
ADDRESS = """(...values) => {
    const names = %s, query = new URLSearchParams()
    names.forEach((name, at) => { if (values[at] !== null && values[at] !== "") query.set(name, values[at]) })
    history.replaceState(null, "", location.pathname + "?" + query)
    %s
}"""
NOTED = ADDRESS % (list(NAMES), "")
COPIED = ADDRESS % (
    list(NAMES),
    """return navigator.clipboard
        ? navigator.clipboard.writeText(location.href).then(() => "Link copied", () => "The link is in the address bar")
        : "The link is in the address bar\"""",
)


@dataclass
class Settings:
    """The components whose values say what to draw; each tab renders its own plans."""

    model: gr.Dropdown
    label: gr.Dropdown  # of a model of classes
    words: tuple[gr.Textbox, gr.Textbox]  # of a model of text: the prompt and the negative prompt
    seed: gr.Number
    any_seed: gr.Checkbox
    guidance: gr.Slider
    temperature: gr.Slider
    top_k: gr.Slider
    filled: gr.Textbox  # hidden: the model that the other values are for, in the browser that sends them
    plan: gr.Dropdown  # of one image
    sides: tuple[gr.Dropdown, gr.Dropdown]
    edit_plan: gr.Dropdown

    def wish(self, *plans: gr.Dropdown) -> list[Any]:
        """The components whose values make a `Wish`, without the words, in its order; with two plans, those of two."""
        return [self.model, *plans, self.label, self.seed, self.guidance, self.temperature, self.top_k]

    @property
    def linked(self) -> list[Any]:
        """The components whose values a link holds, in the order of `NAMES`."""
        return [*self.wish(self.plan), *self.words]

    @property
    def all(self) -> list[Any]:
        """What `fill` fills."""
        rest = [self.model, self.label, self.seed, self.guidance, self.temperature, self.top_k, self.filled]
        return [*rest, self.plan, *self.sides, self.edit_plan, *self.words]


def settings_column(studio: Studio, first: str) -> Settings:
    """The components, with the model `first` chosen."""
    model = gr.Dropdown(
        [(_titled(name), name) for name in studio.models], value=first, label="Model", elem_classes="dropdown"
    )
    own, text = studio.shape(first).sampling, studio.reads_text(first)
    classes = _classes(studio, first)
    label = gr.Dropdown(
        classes,
        value=None if text else min(FIRST_CLASS, len(classes) - 1),
        label="Class (type to search)",
        allow_custom_value=True,
        elem_classes="dropdown",
        visible=not text,
    )
    prompt = gr.Textbox(FIRST_PROMPT if text else "", label="Prompt", lines=2, visible=text, elem_id="prompt")
    negative = gr.Textbox("", label="Negative prompt (guidance leads away from it)", visible=text)
    with gr.Row():
        seed = gr.Number(0, label="Seed", min_width=120)
        any_seed = gr.Checkbox(False, label="Random seed", min_width=120)
    guidance = gr.Slider(0, MOST_GUIDANCE, own.cfg, step=0.05, label="Guidance (cfg as the authors count; 0 is off)")
    with gr.Accordion("Sampling", open=False):
        temperature = gr.Slider(0.1, 2, 1, step=0.05, label="Temperature")
        top_k = gr.Slider(0, 4096, own.top_k, step=1, label="Top-k (0 is off)")
    filled = gr.Textbox(visible=False)
    # Empty until a model fills them, so that a caller of the API may leave them out; and of any value, for those of
    # other models than the first are known to the page, but not to the API. Wrong ones are refused before drawing.
    plan, left, right, edit_plan = (
        gr.Dropdown(
            [], value=None, label="Decoding plan", allow_custom_value=True, elem_classes="dropdown", render=False
        )
        for _ in range(4)
    )
    words, sides = (prompt, negative), (left, right)
    return Settings(model, label, words, seed, any_seed, guidance, temperature, top_k, filled, plan, sides, edit_plan)


def connect(studio: Studio, settings: Settings, first: str, page: gr.Blocks) -> None:
    """What happens when a model is chosen, and when the page is opened, perhaps by a link."""

    def opened(request: gr.Request) -> list[Any]:
        return fill(studio, {"model": first, **_of_link(request.query_params)})

    page.load(opened, None, settings.all, **AT_ONCE)
    settings.model.input(lambda name: fill(studio, {"model": name}), settings.model, settings.all, **AT_ONCE)
    copy = gr.Button("Copy link", size="sm")
    copy.click(None, settings.linked, copy, js=COPIED, **AT_ONCE)


def fill(studio: Studio, asked: Mapping[str, Any]) -> list[Any]:
    """Values for `Settings.all`: those asked for, as far as the model has them, and else the model's own.

    What cannot be had is said in one line; a seed that is not asked for stays.
    """
    try:
        model = asked["model"]
        plans = [choice.name for choice in studio.choices(model)]
    except ValueError as error:
        gr.Warning(str(error))
        model = studio.models[0]
        asked, plans = {}, [choice.name for choice in studio.choices(model)]
    own, taken = studio.shape(model).sampling, studio.takes(model)
    values = [
        gr.update(value=model),
        _label(studio, model, asked),
        _taken("seed", asked, seed_of, gr.skip()),
        _taken("guidance", asked, partial(_number, "cfg"), own.cfg),
        _slider("temperature", asked, own.temperature, taken),
        _slider("top_k", asked, own.top_k, taken, maximum=studio.codes(model)),
        model,
    ]
    chosen = asked.get("plan")
    if chosen is not None and chosen not in plans:
        gr.Warning(f"plan {chosen!r} is not a plan of {model}; choose one of {', '.join(plans)}")
        chosen = None
    own_plan, second = plans[0], plans[min(1, len(plans) - 1)]
    values += [gr.update(choices=plans, value=name) for name in (chosen or own_plan, own_plan, second, own_plan)]
    text = studio.reads_text(model)
    words = asked.get("prompt", FIRST_PROMPT), asked.get("negative_prompt", "")
    return values + [gr.update(visible=text, value=found if text else "") for found in words]


def begin(button: gr.Button, studio: Studio, settings: Settings, *count: gr.Slider, step: int = 0) -> Any:
    """The event of a button that draws, after `Settings.all` has been filled.

    A user may choose a model and press Draw before its plans have arrived. The seed is increased by `step` times
    the count of images; an invalid one is refused here.
    """

    def put(
        model: str, filled: str, seed: Any, any_seed: bool, count: float = 1, request: gr.Request | None = None
    ) -> list[Any]:
        if filled:
            found = [gr.skip()] * len(settings.all) if model == filled else fill(studio, {"model": model})
        else:  # the page has only just been opened, perhaps by a link
            asked = {"model": model, **_of_link(request.query_params if request else {})}
            found, seed = fill(studio, asked), asked.get("seed", seed)
        if any_seed:
            found[2] = randrange(RANDOM_SEEDS)
            return found
        try:
            found[2] = seed_of(seed) + step * int(count)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return found

    given = [settings.model, settings.filled, settings.seed, settings.any_seed, *count]
    return button.click(put, given, settings.all, **AT_ONCE)


def _of_link(query: Mapping[str, str]) -> dict[str, str]:
    """The settings in an address."""
    return {name: query[name] for name in NAMES if query.get(name)}


def _taken(name: str, asked: Mapping[str, Any], convert: Any, otherwise: Any) -> Any:
    """A setting that is asked for; the other value if it is not, or cannot be read, which is said."""
    if name not in asked:
        return otherwise
    try:
        return convert(asked[name])
    except ValueError as error:
        gr.Warning(f"{name} {asked[name]!r} of the link is left out: {error}")
        return otherwise


def _number(name: str, text: str) -> Any:
    return checked(name, (int if RANGES[name].whole else float)(text))


def _slider(name: str, asked: Mapping[str, Any], own: Any, taken: frozenset[str], **look: Any) -> Any:
    if name not in taken:
        return gr.update(visible=False)
    return gr.update(visible=True, value=_taken(name, asked, partial(_number, name), own), **look)


def _label(studio: Studio, model: str, asked: Mapping[str, Any]) -> Any:
    if studio.reads_text(model):
        return gr.update(visible=False, choices=[], value=None)
    names = studio.class_names(model)
    label = _taken("class", asked, names.resolve, min(FIRST_CLASS, len(names) - 1))
    return gr.update(visible=True, choices=_classes(studio, model), value=label)


def _classes(studio: Studio, model: str) -> list[tuple[str, int]]:
    if studio.reads_text(model):
        return []
    names = studio.class_names(model)
    return [(f"{names.name(label)} ({label})", label) for label in range(len(names))]


def _titled(model: str) -> str:
    known = find_entry(model)
    return f"{model} (downloaded on first use)" if known and isinstance(known.source, Hub) else model
