"""The page: its tabs, and what happens when they are used. All drawing is done by `studio`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from var_toolkit.demo.choosing import MOST_IMAGES, NOTED, Settings, begin, connect, fill, settings_column
from var_toolkit.demo.compare_tab import compare_tab
from var_toolkit.demo.edit_tab import edit_tab
from var_toolkit.demo.showing import (
    AT_ONCE,
    DRAWING,
    SIDE,
    STEP,
    Shown,
    facts,
    image,
    in_one_line,
    line,
    magnified,
    main_image,
    row_of_scales,
    stop_button,
)
from var_toolkit.demo.studio import Studio, Wish

if TYPE_CHECKING:
    from PIL.Image import Image

CSS = """
.gradio-container main { width: 100%; max-width: 1240px !important; margin: auto; }
.image img, .scales img, .images img { image-rendering: pixelated; object-fit: scale-down; }
.painting .layer-wrap { display: none; }
.facts { min-height: 3em; }
.dropdown .wrap-inner input { padding-right: 0; text-overflow: ellipsis; }
@media (max-width: 500px) { .dropdown .wrap-inner input { font-size: 12px; } }
.facts code { font-size: 0.8em; white-space: pre-wrap; }
"""
EXAMPLES = [
    {"model": "stilllife-var", "class": 207, "seed": 0},
    {"model": "stilllife-flowar", "class": 503, "seed": 3},
    {"model": "stilllife-hmar", "class": 42, "seed": 1},
    {"model": "stilllife-gpt", "class": 777, "seed": 2},
    {"model": "scenes-infinity", "prompt": "a red sphere to the left of a blue cube on sand, at dusk", "seed": 0},
    {"model": "scenes-infinity", "prompt": "three small yellow cones on grass", "seed": 1},
]


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
            with gr.Column(scale=2, min_width=300) as left:
                settings = settings_column(studio, first)
            with gr.Column(scale=5, min_width=300), gr.Tabs() as tabs:
                with gr.Tab("Draw", id="draw"):
                    drawn, take_over = _draw_tab(studio, settings)
                with gr.Tab("Side by side", id="compare"):
                    compare_tab(studio, settings)
                with gr.Tab("Edit", id="edit"):
                    canvas = edit_tab(studio, settings)
        with left:
            connect(studio, settings, first, page)
        take_over.click(_onto_canvas, drawn, [canvas, tabs], **AT_ONCE)
    return page


def _draw_tab(studio: Studio, settings: Settings) -> tuple[gr.State, gr.Button]:
    plan = settings.plan
    plan.render()
    count = gr.Slider(1, MOST_IMAGES, 1, step=1, label="Images (their seeds count up)")
    with gr.Row() as buttons:
        draw = gr.Button("Draw", variant="primary", scale=3, min_width=100)
        following = gr.Button("Draw the next seed", scale=2, min_width=190)
    with gr.Row():
        with gr.Column(min_width=260):
            shown = main_image("Image", "image")
        gallery = gr.Gallery(
            label="Images", columns=3, fit_columns=False, height=SIDE + 24, format="png", object_fit="contain",
            visible=False, interactive=False, buttons=["download_all"], elem_id="gallery", elem_classes="images",
        )  # fmt: skip
    row = image("Scale by scale", height=STEP + 12, show_label=False, buttons=[], elem_classes="scales")
    told = facts("image")
    take_over = gr.Button("Edit this image", size="sm")
    drawn, images = gr.State(), gr.State([])

    @in_one_line
    async def show(
        model: str,
        plan: str | None = None,
        class_label: int | str | None = None,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        count: int = 1,
        prompt: str | None = None,
        negative_prompt: str | None = None,
    ) -> AsyncGenerator[Shown]:
        done: list[Image] = []
        for number in range(_count(count)):
            words = (prompt, negative_prompt)
            wish = Wish(model, plan, class_label, seed, guidance, temperature, top_k, *words).following(number)
            of = f"image {number + 1} of {count:.0f} (seed {wish.seed}): " if count > 1 else ""
            grown: list[Image] = []
            async for frame in studio.worker.live(partial(studio.draw, wish)):
                if isinstance(frame, str):
                    yield None, None, of + frame, gr.skip(), gr.skip(), gr.skip()
                    continue
                if frame.facts is None:
                    grown.append(frame.image)
                    rest = [gr.skip()] * 3
                else:
                    done.append(frame.image)
                    small = [(magnified(one, SIDE // 3), f"seed {seed + at}") for at, one in enumerate(done)]
                    rest = [small, frame.image, list(done)]
                yield magnified(frame.image), row_of_scales(grown, frame.scales), of + line(frame), *rest

    outputs = [shown, row, told, gallery, drawn, images]
    asked = [*settings.wish(plan), count, *settings.words]
    drawing = []

    def draw_after(begun: Any, **api: Any) -> None:
        drawing.append(begun.success(show, asked, outputs, show_progress_on=shown, **api, **DRAWING))
        begun.success(None, settings.linked, None, js=NOTED, **AT_ONCE)

    draw_after(begin(draw, studio, settings, count), api_name="draw")
    draw_after(begin(following, studio, settings, count, step=1), api_visibility="private")
    offered = [example for example in EXAMPLES if example["model"] in studio.models]
    examples = gr.Dataset(
        components=["textbox"], samples=[[_described(studio, one)] for one in offered], type="index", label="Examples"
    )
    begun = examples.click(lambda at: fill(studio, offered[at]), examples, settings.all, **AT_ONCE)
    draw_after(begun, api_visibility="private")
    with buttons:
        stop_button([told], drawing)
    count.change(lambda number: gr.update(visible=number > 1), count, gallery, **AT_ONCE)
    gallery.select(_chosen, images, [shown, drawn], **AT_ONCE)
    return drawn, take_over


def _described(studio: Studio, example: dict[str, Any]) -> str:
    what = example.get("prompt") or studio.class_names(example["model"]).name(example["class"])
    return f"{what}, {example['model']}, seed {example['seed']}"


def _count(count: float) -> int:
    if count != int(count) or not 1 <= count <= MOST_IMAGES:
        raise ValueError(f"count is {count}; it must be an integer from 1 to {MOST_IMAGES}")
    return int(count)


def _chosen(images: list[Any], event: gr.SelectData) -> tuple[Any, Any]:
    return magnified(images[event.index]), images[event.index]


def _onto_canvas(drawn: Image | None) -> tuple[Any, Any]:
    if drawn is None:
        raise gr.Error("there is no image yet; draw one first", print_exception=False)
    return {"background": magnified(drawn), "layers": [], "composite": None}, gr.Tabs(selected="edit")
