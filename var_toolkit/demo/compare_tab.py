"""The tab with two plans side by side."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import gradio as gr

from var_toolkit.demo.choosing import Settings, begin
from var_toolkit.demo.showing import DRAWING, Shown, facts, finished, in_one_line, main_image, stop_button
from var_toolkit.demo.studio import Studio, Wish


def compare_tab(studio: Studio, settings: Settings) -> None:
    """One class or prompt and seed by two plans, each with its seconds."""
    with gr.Row() as buttons:
        draw = gr.Button("Draw both", variant="primary", scale=3, min_width=100)
    images, told = [], []
    with gr.Row():
        for side, plan in zip(("Left", "Right"), settings.sides, strict=True):
            with gr.Column(min_width=260):
                plan.render()
                images.append(main_image(side, side.lower()))
                told.append(facts(side.lower()))

    @in_one_line
    async def show(
        model: str,
        left_plan: str | None = None,
        right_plan: str | None = None,
        class_label: int | str | None = None,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
    ) -> AsyncGenerator[Shown]:
        rest = (class_label, seed, guidance, temperature, top_k, prompt, negative_prompt)
        left: Shown = (None, "drawing …")
        yield *left, None, ""
        async for frame in studio.worker.live(partial(studio.finished, Wish(model, left_plan, *rest))):
            left = finished(frame)
            yield *left, None, ""
        yield *left, None, "drawing …"
        async for frame in studio.worker.live(partial(studio.finished, Wish(model, right_plan, *rest))):
            yield *left, *finished(frame)

    asked: list[Any] = [*settings.wish(*settings.sides), *settings.words]
    begun = begin(draw, studio, settings)
    outputs = [images[0], told[0], images[1], told[1]]
    drawing = begun.success(show, asked, outputs, api_name="compare", show_progress_on=images, **DRAWING)
    with buttons:
        stop_button(told, [drawing])
