"""What the page draws with: models that are kept, and images that are told of while they grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

from var_toolkit.demo.live import live
from var_toolkit.demo.plans import Choice, choices
from var_toolkit.devices import clock, find_device
from var_toolkit.evaluation.bench.memory import forget_peak, held, peak
from var_toolkit.images import as_output
from var_toolkit.loading import Source, load, skeleton
from var_toolkit.pipeline import Pipeline, PipelineOutput
from var_toolkit.zoo.registry import ENTRIES

if TYPE_CHECKING:
    from PIL.Image import Image

    from var_toolkit.sampling.engine import ScaleEvent
    from var_toolkit.sampling.plan import Plan
    from var_toolkit.zoo.class_names import ClassNames

Watch = Callable[["ScaleEvent"], None]
KEPT = 3  # pipelines; two for plans side by side, and the one before


@dataclass(frozen=True)
class Wish:
    """What somebody wants to see."""

    model: str
    plan: str  # the name of one of `plans.choices`
    label: int | None
    seed: int | None
    guidance: float | None


@dataclass(frozen=True)
class Facts:
    """What an image took."""

    seconds: float  # without previews
    forward_passes: int
    cache_bytes: int  # keys and values at their largest
    peak_bytes: int | None  # on top of the weights; None where it cannot be told of a thread
    plan: str


@dataclass(frozen=True)
class Frame:
    """An image after one of its scales, or finished."""

    image: Image
    scale: int  # the last that is drawn, from 0
    scales: int  # in all
    facts: Facts | None = None  # of a finished image


def model_names(first: str) -> list[str]:
    """The names of the zoo that draw, embedded ones first; before them `first`, if it is none of them."""
    names = [name for name, entry in ENTRIES.items() if entry.draws]
    return names if first in names else [first, *names]


class Studio:
    """Draws what people wish for with some models, of which it keeps the last few. It knows nothing of the page."""

    def __init__(self, models: Sequence[str], *, device: str = "auto", dtype: torch.dtype = torch.float32) -> None:
        self.models = tuple(models)
        self.device, self.dtype = find_device(device), dtype
        self._kept: dict[Source, Pipeline] = {}  # the one used last comes last
        self._loading = Lock()
        self._drawing = Lock()  # what nobody waits for any more goes on until its next scale; the next image waits
        self._warm: WeakSet[Pipeline] = WeakSet()  # have drawn before
        self.shape = cache(self._shape)
        self.choices = cache(self._choices)

    def class_names(self, model: str) -> ClassNames:
        """What a model draws."""
        return self.shape(model).class_names

    def pipeline(self, source: Source) -> Pipeline:
        """A pipeline with weights, loaded once and kept while it is one of the last few."""
        with self._loading:
            pipe = self._kept.pop(source, None)
            if pipe is None:
                while len(self._kept) >= KEPT:
                    del self._kept[next(iter(self._kept))]
                pipe = load(source, device=str(self.device), dtype=self.dtype).pack()
            self._kept[source] = pipe
            return pipe

    def growing(self, wish: Wish) -> Iterator[Frame]:
        """The image after every scale, and at last finished, with what it took.

        ValueError in one line if it cannot be drawn.
        """
        pipe, plan, asked = self._asked(wish)
        return live(
            lambda tell: self._measured(pipe, plan, lambda watch: pipe(**asked, callback_on_scale_end=watch), tell)
        )

    def finished(self, wish: Wish) -> Frame:
        """The finished image, drawn without previews. ValueError as `growing`.

        What a model draws first it draws twice: the first call takes longer, and plans are compared by their seconds.
        """
        pipe, plan, asked = self._asked(wish)
        if pipe not in self._warm:
            with self._drawing:
                pipe(**asked)
            self._warm.add(pipe)
        return self._measured(pipe, plan, lambda watch: pipe(**asked))

    def editing(self, wish: Wish, image: Image, mask: Image, *, keep_pixels: bool) -> Iterator[Frame]:
        """As `growing`, an image that is drawn anew where `mask` (mode L, of its size) is white."""
        if mask.getbbox() is None:
            raise ValueError("nothing is painted over; paint over what shall be drawn anew")
        pipe, plan, asked = self._asked(wish)
        asked |= {"mask": mask, "keep_pixels": keep_pixels}
        return live(
            lambda tell: self._measured(
                pipe, plan, lambda watch: pipe.edit(image, **asked, callback_on_scale_end=watch), tell
            )
        )

    def _asked(self, wish: Wish) -> tuple[Pipeline, Plan, dict[str, Any]]:
        """What draws a wish, how, and the arguments of its call; all is checked before weights are read."""
        names = {choice.name: choice for choice in self.choices(wish.model)}
        if wish.plan not in names:
            raise ValueError(f"plan {wish.plan!r} is none of {wish.model}; choose one of {', '.join(names)}")
        if wish.label is None:
            raise ValueError("no class is chosen; choose one")
        if wish.seed is None:
            raise ValueError("there is no seed; give an integer of at least 0")
        choice = names[wish.plan]
        settings = {"guidance_scale": wish.guidance, **choice.settings}
        self.class_names(wish.model).resolve(wish.label)
        self.shape(choice.source).plan(**settings)  # which refuses what does not fit
        pipe = self.pipeline(choice.source)
        plan = pipe.plan(**settings)
        return pipe, plan, {"class_labels": wish.label, "seeds": wish.seed, "plan": plan}

    def _shape(self, source: Source) -> Pipeline:
        """Sizes alone. What somebody on the page names is opened only if it is offered."""
        if isinstance(source, str) and source not in self.models:
            raise ValueError(f"model {source!r} is not offered here; choose one of {', '.join(self.models)}")
        return skeleton(source)

    def _choices(self, model: str) -> list[Choice]:
        self.shape(model)
        return choices(model)

    def _measured(
        self, pipe: Pipeline, plan: Plan, draw: Callable[[Watch], Any], tell: Callable[[Frame], None] | None = None
    ) -> Frame:
        """The finished image of one call of a pipeline, which shows its scales to a watch."""
        device, scales, aside = pipe.device, len(plan.tokenizer.scales), 0.0

        def watch(event: ScaleEvent) -> None:
            nonlocal aside
            began = clock(device)
            if tell is not None:
                tell(Frame(as_output(event.preview().cpu(), "pil")[0], event.scale, scales))
            aside += clock(device) - began

        with self._drawing:
            forget_peak(device)
            before, began = held(device), clock(device)
            output: PipelineOutput = draw(watch)
            seconds = clock(device) - began - aside
            # Of the main memory only the whole process can be told, with every model that is kept.
            peak_bytes = peak(device) - before if device.type == "cuda" else None
        facts = Facts(seconds, output.forward_passes, output.cache_bytes, peak_bytes, str(plan))
        return Frame(output.images[0], scales - 1, scales, facts)
