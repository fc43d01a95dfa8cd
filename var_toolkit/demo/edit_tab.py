"""The tab where a part of an image is painted over and redrawn."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import gradio as gr

from var_toolkit.demo.choosing import Settings, begin
from var_toolkit.demo.painting import painted, unmagnified
from var_toolkit.demo.showing import DRAWING, SIDE, Shown, facts, finished, in_one_line, main_image, stop_button
from var_toolkit.demo.studio import Studio, Wish
from var_toolkit.images import upright_rgb

HEIGHT = SIDE + 120  # of the canvas with its tools


def edit_tab(studio: Studio, settings: Settings) -> gr.ImageEditor:
    """The canvas is returned: drawn images can be put on it."""
    plan = settings.edit_plan
    plan.render()
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
                canvas_size=(SIDE, SIDE),
                height=HEIGHT,
                buttons=[],
                elem_classes="painting",
                elem_id="painting",
            )
            keep_pixels = gr.Checkbox(True, label="Preserve every pixel that is not painted over")
            with gr.Row() as buttons:
                edit = gr.Button("Redraw what is painted over", variant="primary", scale=3, min_width=100)
        with gr.Column(min_width=260):
            edited = main_image("Edited", "edited")
            told = facts("edited")

    @in_one_line
    async def show(
        image: dict[str, Any] | None,
        keep_pixels: bool,
        model: str,
        plan: str | None = None,
        class_label: int | str | None = None,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
    ) -> AsyncGenerator[Shown]:
        if image is None or image["background"] is None:
            raise ValueError("there is no image; upload one, or take over the drawn one")
        wish = Wish(model, plan, class_label, seed, guidance, temperature, top_k, prompt, negative_prompt)
        given = unmagnified(upright_rgb(image["background"]), studio.shape(model).tokenizer.image_side)
        mask = painted(image["layers"], given.size)
        redraw = partial(studio.edit, wish, given, mask, keep_pixels=keep_pixels)
        async for frame in studio.worker.live(redraw):
            yield finished(frame)

    asked = [canvas, keep_pixels, *settings.wish(plan), *settings.words]
    begun = begin(edit, studio, settings)
    drawing = begun.success(show, asked, [edited, told], api_name="edit", show_progress_on=edited, **DRAWING)
    with buttons:
        stop_button([told], [drawing])
    return canvas
