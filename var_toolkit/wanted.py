"""Which images are asked for, batch by batch: classes, or prompts, and their seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from var_toolkit.conditions.text import PromptEmbeds, Prompts, listed_texts
from var_toolkit.settings import Labels, is_one, seeds_of
from var_toolkit.strict_fields import shown

if TYPE_CHECKING:
    from var_toolkit.pipeline import Pipeline

Text = str | Iterable[str] | None


@dataclass(frozen=True)
class Wanted:
    """The images of a batch."""

    seeds: list[int]
    labels: list[int] = field(default_factory=list)  # of a model of classes
    prompts: list[str] = field(default_factory=list)  # of a model of text: as they were given, "" if not known
    embeds: Prompts | None = None

    def request(self, device: torch.device) -> Tensor | Prompts:
        """What `core.engine.decode` takes."""
        return torch.tensor(self.labels, device=device) if self.embeds is None else self.embeds

    def of(self, images: list[int], seeds: list[int]) -> Wanted:
        """Some of the images, each any number of times, with other seeds."""
        if self.embeds is None:
            return Wanted(seeds, [self.labels[image] for image in images])
        null = None if self.embeds.null is None else self.embeds.null.of_rows(images)
        embeds = Prompts(self.embeds.prompt.of_rows(images), null)
        return Wanted(seeds, prompts=[self.prompts[image] for image in images], embeds=embeds)


def wanted(
    pipe: Pipeline,
    class_labels: Labels,
    prompt: Text,
    negative_prompt: Text,
    prompt_embeds: PromptEmbeds | None,
    negative_prompt_embeds: PromptEmbeds | None,
    seeds: Any,
    generator: Any,
    size: int,
) -> Iterator[Wanted]:
    """The batches of at most `size` images. ValueError of one line for what the model does not take.

    Labels, prompts and seeds of an iterator are taken when they are needed, and it may be endless.
    """
    if pipe.text is None:
        texts = {"prompt": prompt, "negative_prompt": negative_prompt, "prompt_embeds": prompt_embeds}
        texts |= {"negative_prompt_embeds": negative_prompt_embeds}
        if given := [name for name, value in texts.items() if value is not None]:
            raise ValueError(f"{given[0]} is for models of text; this one draws classes: give class_labels")
        return _of_classes(pipe, class_labels, seeds, generator, size)
    if class_labels is not None:
        raise ValueError("class_labels are for models of classes; this one draws what a prompt says: give prompt")
    for name, text, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if text is not None and embeds is not None:
            raise ValueError(f"{name} and {name}_embeds both say what to draw; give one of them")
        if embeds is not None and not isinstance(embeds, PromptEmbeds):
            raise ValueError(f"{name}_embeds is {shown(embeds)}; it must be PromptEmbeds (`PromptEmbeds.read(path)`)")
    if prompt is None and prompt_embeds is None:
        raise ValueError("there is no prompt; give prompt, or prompt_embeds")
    if isinstance(prompt, Iterator):
        return _of_coming_prompts(pipe, prompt, negative_prompt, negative_prompt_embeds, seeds, generator, size)
    embeds = _read(pipe, "prompt", prompt, prompt_embeds)
    null = _null(pipe, negative_prompt, negative_prompt_embeds)
    pipe.release_text_encoder()
    return _of_prompts(embeds, null, seeds, generator, size)


def _of_classes(pipe: Pipeline, labels: Labels, seeds: Any, generator: Any, size: int) -> Iterator[Wanted]:
    names = pipe.class_names
    if isinstance(labels, Iterator):
        every = None if seeds is None else iter(seeds)
        return (
            Wanted(_next_seeds(every, len(part), generator), [names.resolve(label) for label in part])
            for part in _parts(labels, size)
        )
    given: list[Any] = [labels] if is_one(labels) else list(labels)  # type: ignore[arg-type]
    if not given:
        raise ValueError("class_labels is empty; give at least one class")
    known = [names.resolve(label) for label in given]
    chosen = seeds_of(seeds, len(known), generator)
    return (Wanted(chosen[at : at + size], known[at : at + size]) for at in range(0, len(known), size))


def _of_prompts(
    embeds: PromptEmbeds, null: PromptEmbeds | None, seeds: Any, generator: Any, size: int
) -> Iterator[Wanted]:
    if null is not None and len(null) not in (1, len(embeds)):
        raise ValueError(f"there are {len(null)} negative prompts for {len(embeds)} prompts; give one, or one for each")
    chosen = seeds_of(seeds, len(embeds), generator)
    return (_batch(embeds, null, chosen, slice(at, at + size)) for at in range(0, len(embeds), size))


def _batch(embeds: PromptEmbeds, null: PromptEmbeds | None, seeds: list[int], rows: slice) -> Wanted:
    some = embeds.of_rows(rows)
    if null is not None:
        null = null.of_rows([0] * len(some)) if len(null) == 1 else null.of_rows(rows)
    return Wanted(seeds[rows], prompts=list(some.prompts) or [""] * len(some), embeds=Prompts(some, null))


def _of_coming_prompts(
    pipe: Pipeline,
    prompts: Iterator[str],
    negative_prompt: Text,
    negative_embeds: PromptEmbeds | None,
    seeds: Any,
    generator: Any,
    size: int,
) -> Iterator[Wanted]:
    """The batches of prompts that come one by one; there is one negative prompt for all of them."""
    null = _null(pipe, negative_prompt, negative_embeds)
    if null is not None and len(null) > 1:
        raise ValueError(f"there are {len(null)} negative prompts for an iterator of prompts; give one")
    every = None if seeds is None else iter(seeds)
    try:
        for part in _parts(prompts, size):
            embeds = _read(pipe, "prompt", part, None)
            yield _batch(embeds, null, _next_seeds(every, len(part), generator), slice(None))
    finally:
        pipe.release_text_encoder()


def _null(pipe: Pipeline, negative_prompt: Text, embeds: PromptEmbeds | None) -> PromptEmbeds | None:
    """The features that guidance leads away from; None for those that the network learned."""
    if negative_prompt is None and embeds is None and pipe.text is not None and pipe.text.learned_null:
        return None
    return _read(pipe, "negative_prompt", "" if negative_prompt is None else negative_prompt, embeds)


def _read(pipe: Pipeline, name: str, texts: Any, embeds: PromptEmbeds | None) -> PromptEmbeds:
    """The features that are given, or those of texts. ValueError of one line if the model cannot read them."""
    assert pipe.text is not None
    if embeds is None:
        return pipe.encode_prompts(listed_texts(name, texts))
    pipe.text.require(embeds, f"{name}_embeds")
    return embeds


def _parts(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while part := list(islice(items, size)):
        yield part


def _next_seeds(seeds: Iterator[Any] | None, count: int, generator: Any) -> list[int]:
    return seeds_of(None if seeds is None else list(islice(seeds, count)), count, generator)
