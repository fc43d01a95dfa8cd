"""What the page draws with: models that stay loaded, and images that are reported while they grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

from var_toolkit.abandoning import checked_by_layer
from var_toolkit.demo.live import Worker
from var_toolkit.devices import clock, find_device
from var_toolkit.evaluation.bench.memory import forget_peak, held, peak
from var_toolkit.heads.bits import Bits
from var_toolkit.images import as_output
from var_toolkit.loading import Source, load, skeleton
from var_toolkit.named_plans import Choice, choices
from var_toolkit.pipeline import Pipeline, PipelineOutput
from var_toolkit.registry import entry, list_models

if TYPE_CHECKING:
    from PIL.Image import Image

    from var_toolkit.conditions.class_names import ClassNames
    from var_toolkit.core.engine import ScaleEvent
    from var_toolkit.core.plan import Plan

Watch = Callable[["ScaleEvent"], None]
LARGEST_SEED = 2**53  # from which on a browser's numbers pass over integers
KEPT = 3  # pipelines; two for plans side by side, and the one before


@dataclass(frozen=True)
class Wish:
    """What somebody wants to see."""

    model: str
    plan: str | None  # the name of one of `named_plans.choices`; None for the model's own
    label: int | str | None  # of a model of classes
    seed: int | None
    guidance: float | None = None  # None for the model's own, here and below
    temperature: float | None = None  # these two of models that have them (`Studio.takes`), and else unheeded
    top_k: int | None = None
    prompt: str | None = None  # of a model of text, as is the next
    negative_prompt: str | None = None

    def following(self, number: int) -> Wish:
        """The same with a seed that is so much larger. ValueError if there is no seed."""
        return replace(self, seed=seed_of(self.seed) + number)


def seed_of(value: object) -> int:
    """The seed that somebody typed. ValueError in one line if it is none."""
    if value is None or value == "":
        raise ValueError("there is no seed; give an integer of at least 0")
    try:
        seed = int(value)  # type: ignore[call-overload]
        exact = isinstance(value, str) or seed == value
    except (ValueError, OverflowError):
        exact = False
    if not exact or not 0 <= seed < LARGEST_SEED:
        raise ValueError(f"seed is {value}; it must be an integer from 0 to {LARGEST_SEED - 1}")
    return seed


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
    names = [name for name in list_models() if entry(name).draws]
    return names if first in names else [first, *names]


# Takes an image, a line on what goes on, or None, which asks whether anybody listens: if not, it raises.
Tell = Callable[["Frame | str | None"], None]


class Studio:
    """Draws what people wish for with some models, of which it keeps the last few. It knows nothing of the page.

    Drawing is for one thread at a time, such as `worker`'s: its methods tell what they do while they do it.
    """

    def __init__(
        self, models: Sequence[str], *, device: str = "auto", dtype: str | torch.dtype = torch.float32
    ) -> None:
        self.models = tuple(models)
        self.device, self.dtype = find_device(device), dtype
        self.worker = Worker()
        self._kept: dict[Source, Pipeline] = {}  # the one used last comes last
        self._warm: WeakSet[Pipeline] = WeakSet()  # have drawn before
        self.shape = cache(self._shape)
        self.choices = cache(self._choices)

    def reads_text(self, model: str) -> bool:
        """Whether a model draws what a prompt says, rather than classes."""
        return self.shape(model).text is not None

    def class_names(self, model: str) -> ClassNames:
        """What a model of classes draws."""
        return self.shape(model).class_names

    def takes(self, model: str) -> frozenset[str]:
        """Which of temperature and top_k one number of a slider can set: none of continuous tokens, no k of bits."""
        shape = self.shape(model)
        if shape.backbone.default_head.continuous:
            return frozenset()
        if isinstance(shape.backbone.default_head, Bits):
            return frozenset({"temperature"})
        return frozenset({"top_k"} if isinstance(shape.sampling.temperature, tuple) else {"top_k", "temperature"})

    def codes(self, model: str) -> int:
        """How many codes a token is chosen from; 0 of continuous tokens."""
        return int(getattr(self.shape(model).backbone.config, "vocab_size", 0))

    def pipeline(self, source: Source, tell: Tell | None = None) -> Pipeline:
        """A pipeline with weights, loaded once and kept while it is one of the last few."""
        pipe = self._kept.pop(source, None)
        if pipe is None:
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            if tell is not None:
                tell(f"loading {source} …")
            pipe = load(source, device=str(self.device), dtype=self.dtype).pack()
        self._kept[source] = pipe
        return pipe

    def draw(self, wish: Wish, tell: Tell) -> Frame:
        """The finished image, with what it took; the image after every scale is told.

        ValueError in one line if it cannot be drawn.
        """
        pipe, plan, asked = self._asked(wish, tell)
        return self._measured(pipe, plan, lambda watch: pipe(**asked, callback_on_scale_end=watch), tell, previews=True)

    def finished(self, wish: Wish, tell: Tell) -> Frame:
        """As `draw`, without the image after every scale.

        What a model draws first it draws twice: the first call takes longer, and plans are compared by their seconds.
        """
        pipe, plan, asked = self._asked(wish, tell)
        if pipe not in self._warm:
            self._measured(pipe, plan, lambda watch: pipe(**asked, callback_on_scale_end=watch), tell)
            self._warm.add(pipe)
        return self._measured(pipe, plan, lambda watch: pipe(**asked, callback_on_scale_end=watch), tell)

    def edit(self, wish: Wish, image: Image, mask: Image, tell: Tell, *, keep_pixels: bool) -> Frame:
        """As `draw`, an image that is redrawn where `mask` (mode L, of its size) is white."""
        if mask.getbbox() is None:
            raise ValueError("nothing is painted over; paint over the part to redraw")
        pipe, plan, asked = self._asked(wish, tell)
        asked |= {"mask": mask, "keep_pixels": keep_pixels}
        return self._measured(
            pipe, plan, lambda watch: pipe.edit(image, **asked, callback_on_scale_end=watch), tell, previews=True
        )

    def _asked(self, wish: Wish, tell: Tell) -> tuple[Pipeline, Plan, dict[str, Any]]:
        """What draws a wish, how, and the arguments of its call; all is checked before weights are read."""
        names = {choice.name: choice for choice in self.choices(wish.model)}
        plan_name = wish.plan or next(iter(names))
        if plan_name not in names:
            raise ValueError(f"plan {plan_name!r} is not a plan of {wish.model}; choose one of {', '.join(names)}")
        what = self._subject(wish)
        seed, choice = seed_of(wish.seed), names[plan_name]
        sampled = {name: getattr(wish, name) for name in self.takes(wish.model)}
        settings: dict[str, Any] = {"cfg": wish.guidance, **sampled, **choice.settings}
        self.shape(choice.source).plan(**settings)  # which refuses what does not fit
        pipe = self.pipeline(choice.source, tell)
        plan = pipe.plan(**settings)
        return pipe, plan, {**what, "seeds": seed, "plan": plan}

    def _subject(self, wish: Wish) -> dict[str, Any]:
        """The arguments of a call that say what the image shows."""
        if self.reads_text(wish.model):
            if not (wish.prompt or "").strip():
                raise ValueError("there is no prompt; say what the image is to show")
            return {"prompt": wish.prompt, "negative_prompt": wish.negative_prompt or None}
        if wish.label is None or wish.label == "":
            raise ValueError("no class is chosen; choose one")
        return {"class_labels": self.class_names(wish.model).resolve(wish.label)}

    def _shape(self, source: Source) -> Pipeline:
        """Sizes alone. What somebody on the page names is opened only if it is offered."""
        if isinstance(source, str) and source not in self.models:
            raise ValueError(f"model {source!r} is not offered here; choose one of {', '.join(self.models)}")
        return skeleton(source)

    def _choices(self, model: str) -> list[Choice]:
        self.shape(model)
        return choices(model)

    def _measured(
        self, pipe: Pipeline, plan: Plan, draw: Callable[[Watch], Any], tell: Tell, *, previews: bool = False
    ) -> Frame:
        """The finished image of one call of a pipeline, which shows its scales to a watch."""
        device, scales, aside = pipe.device, pipe.bind(plan).stages, 0.0

        def watch(event: ScaleEvent) -> None:
            nonlocal aside
            began = clock(device)
            if previews:
                tell(Frame(as_output(event.preview().cpu(), "pil")[0], event.scale, scales))
            aside += clock(device) - began

        forget_peak(device)
        before, began = held(device), clock(device)
        with checked_by_layer(pipe.networks, lambda: tell(None)):
            output: PipelineOutput = draw(watch)
        seconds = clock(device) - began - aside
        # Of the main memory only the whole process can be told, with every model that is kept.
        peak_bytes = peak(device) - before if device.type == "cuda" else None
        facts = Facts(seconds, output.forward_passes, output.cache_bytes, peak_bytes, str(pipe.bind(plan)))
        return Frame(output.images[0], scales - 1, scales, facts)
