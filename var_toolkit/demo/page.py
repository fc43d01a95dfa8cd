"""The page: components, and what happens when they are used. All drawing is done by `studio`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import gradio as gr

from var_toolkit.demo.painting import painted, unmagnified
from var_toolkit.demo.studio import Frame, Studio, Wish
from var_toolkit.images import upright_rgb
from var_toolkit.sheets import enlarged, grid
from var_toolkit.zoo.registry import ENTRIES, Hub

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 384  # pixels that a small image is magnified to
STEP = 64  # and those of each image in the row of scales
MOST_GUIDANCE = 8
FIRST_CLASS = 207
CSS = """
.gradio-container main { width: 100%; max-width: 1180px !important; margin: auto; }
.image img, .scales img { image-rendering: pixelated; object-fit: scale-down; }
.painting .layer-wrap { display: none; }
.facts { min-height: 3em; }
.facts code { font-size: 0.8em; white-space: pre-wrap; }
"""
# One image at a time, of whomever: more at once would each be slower, and no seconds could be told.
DRAWING: Any = {"concurrency_limit": 1, "concurrency_id": "drawing", "show_progress": "hidden"}
AT_ONCE: Any = {"show_progress": "hidden", "api_visibility": "private"}
Shown = tuple[Any, ...]


class What(NamedTuple):
    """What to draw, which all tabs share."""

    model: gr.Dropdown
    label: gr.Dropdown
    seed: gr.Number
    guidance: gr.Slider

    def wish(self, plan: gr.Dropdown) -> list[Any]:
        """The components whose values make a `Wish`, in its order."""
        return [self.model, plan, self.label, self.seed, self.guidance]


def theme() -> gr.themes.Base:
    """Gradio's plain theme in the fonts of the reader's system: nothing is fetched."""
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def build(studio: Studio, first: str) -> gr.Blocks:
    """The page, with the model `first` chosen."""
    with gr.Blocks(title="vargen demo", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# vargen\nImages drawn coarse to fine, one map of tokens after another.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                what = _what(studio, first)
            with gr.Column(scale=3, min_width=520), gr.Tabs() as tabs:
                with gr.Tab("Draw", id="draw"):
                    plan, drawn, take_over = _draw_tab(studio, what)
                with gr.Tab("Side by side", id="compare"):
                    plans = _compare_tab(studio, what)
                with gr.Tab("Edit", id="edit"):
                    edit_plan, canvas = _edit_tab(studio, what)
        offered = [what.label, what.guidance, plan, *plans, edit_plan]
        what.model.change(lambda name: _of_model(studio, name), what.model, offered, **AT_ONCE)
        take_over.click(_onto_canvas, drawn, [canvas, tabs], **AT_ONCE)
    return page


def _what(studio: Studio, first: str) -> What:
    classes, guidance = _of_model(studio, first)[:2]
    return What(
        gr.Dropdown([(_titled(name), name) for name in studio.models], value=first, label="Model"),
        gr.Dropdown(classes["choices"], value=classes["value"], label="Class (type to search)"),
        gr.Number(0, label="Seed", precision=0, minimum=0),
        gr.Slider(0, MOST_GUIDANCE, guidance, step=0.05, label="Guidance (0 is off)"),
    )


def _draw_tab(studio: Studio, what: What) -> tuple[gr.Dropdown, gr.State, gr.Button]:
    plan = _plans(studio, what)
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", scale=2)
        following = gr.Button("Draw the next seed", scale=1)
    image = _main_image("Image")
    row = _image("Scale by scale", height=STEP + 12, show_label=False, buttons=[], elem_classes="scales")
    facts = _facts("Image")
    take_over = gr.Button("Edit this image", size="sm")
    drawn = gr.State()

    @_in_one_line
    async def show(*wish: Any) -> AsyncGenerator[Shown]:
        grown: list[Image] = []
        async for frame in studio.worker.live(partial(studio.draw, Wish(*wish))):
            if isinstance(frame, str):
                yield gr.skip(), gr.skip(), frame, gr.skip()
                continue
            grown = grown if frame.facts else [*grown, frame.image]
            yield _magnified(frame.image, SHOWN), _row(grown, frame.scales), _told(frame), frame.image

    shown = [image, row, facts, drawn]
    draw.click(show, what.wish(plan), shown, api_name="draw", **DRAWING)
    counted = following.click(lambda seed: (seed or 0) + 1, what.seed, what.seed, **AT_ONCE)
    counted.then(show, what.wish(plan), shown, api_visibility="private", **DRAWING)
    return plan, drawn, take_over


def _compare_tab(studio: Studio, what: What) -> list[gr.Dropdown]:
    with gr.Row():
        plans = [_plans(studio, what, at) for at in (0, 1)]
    draw = gr.Button("Draw both", variant="primary")
    shown: list[Any] = []
    with gr.Row():
        for side in ("Left", "Right"):
            with gr.Column(min_width=260):
                shown += [_main_image(side, show_label=False), _facts(side)]

    @_in_one_line
    async def show(model: str, left: str, right: str, *rest: Any) -> AsyncGenerator[Shown]:
        one: Shown = (None, "")
        async for told in studio.worker.live(partial(studio.finished, Wish(model, left, *rest))):
            one = (None, told) if isinstance(told, str) else _finished(told)
            yield *one, None, ""
        yield *one, None, "drawing …"
        async for told in studio.worker.live(partial(studio.finished, Wish(model, right, *rest))):
            yield *one, *((None, told) if isinstance(told, str) else _finished(told))

    asked = [what.model, *plans, what.label, what.seed, what.guidance]
    draw.click(show, asked, shown, api_name="compare", **DRAWING)
    return plans


def _edit_tab(studio: Studio, what: What) -> tuple[gr.Dropdown, gr.ImageEditor]:
    plan = _plans(studio, what)
    with gr.Row():
        with gr.Column(min_width=260):
            canvas = gr.ImageEditor(
                label="Image",
                type="pil",
                format="png",
                sources=("upload", "clipboard"),
                brush=gr.Brush(default_size=48, colors=[("#ff4d6d", 0.65)], color_mode="fixed"),
                layers=gr.LayerOptions(allow_additional_layers=False),
                transforms=(),
                canvas_size=(SHOWN, SHOWN),
                height=SHOWN + 120,
                buttons=[],
                elem_classes="painting",
                elem_id="painting",
            )
        with gr.Column(min_width=260):
            edited = _main_image("Edited", height=SHOWN + 120)
    keep_pixels = gr.Checkbox(True, label="Keep every pixel that is not painted over")
    edit = gr.Button("Draw anew what is painted over", variant="primary")
    facts = _facts("Edited")

    @_in_one_line
    async def show(painting: dict[str, Any] | None, keep: bool, *wish: Any) -> AsyncGenerator[Shown]:
        if painting is None or painting["background"] is None:
            raise ValueError("there is no image; upload one, or take over the drawn one")
        wished = Wish(*wish)
        image = unmagnified(upright_rgb(painting["background"]), studio.shape(wished.model).tokenizer.image_side)
        mask = painted(painting["layers"], image.size)
        redraw = partial(studio.edit, wished, image, mask, keep_pixels=keep)
        async for told in studio.worker.live(redraw):
            yield (gr.skip(), told) if isinstance(told, str) else _finished(told)

    edit.click(show, [canvas, keep_pixels, *what.wish(plan)], [edited, facts], api_name="edit", **DRAWING)
    return plan, canvas


def _of_model(studio: Studio, model: str) -> list[Any]:
    """What the other components offer for a model: classes, guidance, and plans of Draw, both sides and Edit."""
    names, plans = studio.class_names(model), [choice.name for choice in studio.choices(model)]
    classes = [(f"{names.name(label)} ({label})", label) for label in range(len(names))]
    return [
        gr.update(choices=classes, value=min(FIRST_CLASS, len(names) - 1)),
        studio.shape(model).sampling.guidance_scale,
        *(gr.update(choices=plans, value=plans[min(at, len(plans) - 1)]) for at in (0, 0, 1, 0)),
    ]


def _onto_canvas(image: Image | None) -> tuple[Any, Any]:
    if image is None:
        raise gr.Error("there is no image yet; draw one first", print_exception=False)
    return {"background": _magnified(image, SHOWN), "layers": [], "composite": None}, gr.Tabs(selected="edit")


def _plans(studio: Studio, what: What, at: int = 0) -> gr.Dropdown:
    """The plans of the first model, with one of them chosen by its place."""
    plans = [choice.name for choice in studio.choices(what.model.value)]
    return gr.Dropdown(plans, value=plans[min(at, len(plans) - 1)], label="Decoding plan")


def _main_image(label: str, height: int = SHOWN + 24, **look: Any) -> gr.Image:
    return _image(label, height=height, buttons=["download"], elem_classes="image", elem_id=label.lower(), **look)


def _facts(label: str) -> gr.Markdown:
    """What the image of that label took."""
    return gr.Markdown(elem_classes="facts", elem_id=f"facts-{label.lower()}")


def _image(label: str, **look: Any) -> gr.Image:
    return gr.Image(label=label, type="pil", format="png", interactive=False, **look)


def _titled(model: str) -> str:
    known = ENTRIES.get(model)
    return f"{model} (downloaded on first use)" if known and isinstance(known.source, Hub) else model


def _row(grown: list[Image], scales: int) -> Image:
    """All scales in a row, those to come left white."""
    from PIL.Image import new

    blank = new("RGB", grown[0].size, "white")
    return _magnified(grid([*grown, *[blank] * (scales - len(grown))], scales), STEP * scales)


def _finished(frame: Frame) -> tuple[Any, str]:
    return _magnified(frame.image, SHOWN), _told(frame)


def _magnified(image: Image, least: int) -> Image:
    """An image as it is shown, marked so that it gets a file of its own.

    Gradio names files by their content, and would write one anew while a browser still reads it.
    """
    shown: Image = enlarged(image, least)
    shown.info["shown"] = uuid4().hex
    return shown


def _told(frame: Frame) -> str:
    """What an image took, as Markdown; of an unfinished one, how far it is."""
    facts = frame.facts
    if facts is None:
        return f"scale {frame.scale + 1} of {frame.scales}"
    told = [
        f"**{facts.seconds:.2f} s**",
        f"{facts.forward_passes} forward passes",
        f"keys and values {facts.cache_bytes / 1e6:.1f} MB" if facts.cache_bytes else "no keys and values kept",
        *([f"peak {facts.peak_bytes / 1e6:.0f} MB beyond the weights"] if facts.peak_bytes is not None else []),
    ]
    return f"{' · '.join(told)}\n\n`{facts.plan}`"


def _in_one_line(show: Callable[..., AsyncGenerator[Shown]]) -> Callable[..., AsyncGenerator[Shown]]:
    """What people can put right is shown to them, in one line."""

    @wraps(show)
    async def guarded(*given: Any) -> AsyncGenerator[Shown]:
        try:
            async with aclosing(show(*given)) as steps:
                async for shown in steps:
                    yield shown
        except (ValueError, OSError) as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from None

    return guarded
