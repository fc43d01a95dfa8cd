"""Images and facts as the page shows them, and the components that show them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import wraps
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import gradio as gr

from var_toolkit.demo.studio import Frame
from var_toolkit.sheets import enlarged, grid

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 384  # pixels that a small image is magnified to
STEP = 64  # and those of each image in the row of scales
# The studio's worker draws one image at a time, and says who waits for how many.
DRAWING: Any = {"concurrency_limit": None}
AT_ONCE: Any = {"show_progress": "hidden", "api_visibility": "private"}
Shown = tuple[Any, ...]
Show = Callable[..., AsyncGenerator[Shown]]


def image(label: str, **look: Any) -> gr.Image:
    """An image to look at, which keeps every pixel."""
    return gr.Image(label=label, type="pil", format="png", interactive=False, **look)


def main_image(label: str, name: str, height: int = SIDE + 24) -> gr.Image:
    """The image of a tab or a side, magnified with sharp edges."""
    return image(label, height=height, buttons=["download"], elem_classes="image", elem_id=name)


def facts(name: str) -> gr.Markdown:
    """What the image of that name took."""
    return gr.Markdown(elem_classes="facts", elem_id=f"facts-{name}")


def stop_button(facts: list[gr.Markdown], drawing: list[Any]) -> gr.Button:
    """A button that ends what draws, at its next layer."""
    stop = gr.Button("Stop", variant="stop", scale=1, min_width=80)
    stop.click(_stopped, facts, facts, cancels=drawing, queue=False, **AT_ONCE)
    return stop


def _stopped(*told: str) -> Any:
    lines = [line if "forward passes" in (line or "") else "stopped" for line in told]
    return lines[0] if len(lines) == 1 else lines


def magnified(drawn: Image, least: int = SIDE) -> Image:
    """An image as it is shown, marked so that it gets a file of its own.

    Gradio names files by their content, and would write one again while a browser still reads it.
    """
    shown: Image = enlarged(drawn, least)
    shown.info["shown"] = uuid4().hex
    return shown


def row_of_scales(grown: list[Image], scales: int) -> Image:
    """All scales in a row, those to come left white."""
    from PIL.Image import new

    blank = new("RGB", grown[0].size, "white")
    return magnified(grid([*grown, *[blank] * (scales - len(grown))], scales), STEP * scales)


def finished(told: Frame | str) -> tuple[Any, str]:
    """An image and what it took; or nothing yet, and what goes on."""
    return (None, told) if isinstance(told, str) else (magnified(told.image), line(told))


def line(frame: Frame) -> str:
    """What an image took, as Markdown; of an unfinished one, how far it is."""
    took = frame.facts
    if took is None:
        return f"scale {frame.scale + 1} of {frame.scales}"
    told = [
        f"**{took.seconds:.2f} s**",
        f"{took.forward_passes} forward passes",
        f"keys and values {took.cache_bytes / 1e6:.1f} MB" if took.cache_bytes else "no keys and values stored",
        *([f"peak {took.peak_bytes / 1e6:.0f} MB beyond the weights"] if took.peak_bytes is not None else []),
    ]
    return f"{' · '.join(told)}\n\n`{took.plan}`"


def in_one_line(show: Show) -> Show:
    """What people can put right is shown to them, in one line."""

    @wraps(show)
    async def guarded(*given: Any, **named: Any) -> AsyncGenerator[Shown]:
        try:
            async with aclosing(show(*given, **named)) as steps:
                async for shown in steps:
                    yield shown
        except (ValueError, OSError) as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from None

    return guarded
