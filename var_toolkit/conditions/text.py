"""Text that images are to show: what a network reads of it, what an encoder is, and each prompt encoded once.

A text network has `text`, the `TextInput` that it reads, and `request(prompt, null) -> Request`, called once per batch,
which computes all that depends on the text alone, such as the keys and values of cross-attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from var_toolkit.conditions.condition import Condition
from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.strict_fields import shown

AT_A_TIME = 16  # prompts that an encoder reads together


@dataclass(frozen=True)
class TextInput:
    """The text that a network reads."""

    channels: int
    longest: int  # tokens of a prompt
    pooled: int | None = None  # channels of the vector of the whole prompt; None if the network reads none
    learned_null: bool = True  # False: guidance needs the features of a null prompt, by default those of ""

    def require(self, embeds: PromptEmbeds, name: str = "prompt_embeds") -> None:
        """ValueError of one line if a network cannot read some features."""
        channels, tokens = embeds.features.shape[-1], embeds.mask.shape[1]
        of = f" (of {embeds.encoder})" if embeds.encoder else ""
        if channels != self.channels:
            raise ValueError(f"{name} have {channels} channels{of}; this model reads {self.channels}")
        if tokens > self.longest:
            raise ValueError(f"{name} have {tokens} tokens; this model reads at most {self.longest}; shorten it")
        pooled = None if embeds.pooled is None else embeds.pooled.shape[-1]
        if self.pooled is not None and pooled != self.pooled:
            raise ValueError(f"{name} have {pooled or 'no'} pooled channels{of}; this model reads {self.pooled}")
        if not bool((embeds.mask.int().diff(dim=1) <= 0).all() & embeds.mask[:, 0].all()):
            raise ValueError(f"{name}: the mask of each prompt must be true for its first tokens, and there alone")


class TextEncoder(Protocol):
    """What turns prompts into features."""

    name: str  # that identifies it, as `PromptEmbeds.encoder`
    license: str | None  # of its weights, as its authors state it

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError of one line for a prompt that it cannot read; needs no weights."""

    def encode(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The features of some prompts."""

    def to(self, device: Any) -> Any:
        """Move to the device of a model, unless it was given one of its own."""

    def release(self) -> None:
        """Free what `encode` can load again."""


class PromptCache:
    """The features of prompts by one encoder, which reads each prompt once; the last `room` are kept, on the CPU."""

    def __init__(self, room: int = 4096) -> None:
        self.room = room
        self._kept: dict[tuple[str, str], PromptEmbeds] = {}  # the one used last comes last

    def __call__(self, encoder: TextEncoder, prompts: Sequence[str]) -> PromptEmbeds:
        """The features of prompts, in their order."""
        found = {text: self._kept.pop((encoder.name, text), None) for text in prompts}
        new = [text for text, known in found.items() if known is None]
        encoder.check(new)
        for first in range(0, len(new), AT_A_TIME):
            some = new[first : first + AT_A_TIME]
            whole = replace(encoder.encode(some).to("cpu"), prompts=tuple(some), encoder=encoder.name)
            found |= {text: whole.of_rows([row]) for row, text in enumerate(some)}
        embeds = {text: known for text, known in found.items() if known is not None}
        self._kept |= {(encoder.name, text): known for text, known in embeds.items()}
        for old in list(self._kept)[: max(0, len(self._kept) - self.room)]:
            del self._kept[old]
        return PromptEmbeds.join([embeds[text] for text in prompts])


@dataclass(frozen=True, eq=False)
class Prompts:
    """What a batch of images is to show (`core.engine.decode`): each text network makes its own request of it."""

    prompt: PromptEmbeds
    null: PromptEmbeds | None = None  # of as many rows: the null twins under guidance; None: what the network learned

    def __len__(self) -> int:
        return len(self.prompt)

    def rows(self, network: Any, copies: int) -> Condition:
        """The condition of the images (1), or of the images and their null twins (2), for a network."""
        weight = next(network.parameters())
        both = [None if one is None else one.to(weight.device, weight.dtype) for one in (self.prompt, self.null)]
        found: Condition = network.request(*both).rows(network, copies)
        return found


def as_one_length(prompt: PromptEmbeds, null: PromptEmbeds) -> tuple[PromptEmbeds, PromptEmbeds]:
    """Both padded to the longer, so that their rows can be computed together."""
    tokens = max(prompt.mask.shape[1], null.mask.shape[1])
    return prompt.padded(tokens), null.padded(tokens)


def text_of(network: Any) -> TextInput | None:
    """The text that a network reads; None for a network of classes."""
    return getattr(network, "text", None)


def reads(network: Any) -> TextInput | int:
    """What a network takes: text, or that many classes."""
    found: TextInput | int = text_of(network) or network.config.num_classes
    return found


def listed_texts(name: str, given: Any) -> list[str]:
    """One text or several as a list. ValueError of one line for anything else."""
    texts = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if odd := [one for one in texts if not isinstance(one, str)]:
        raise ValueError(f"{name} is {shown(odd[0])}; it must be text, or a list of texts")
    if not texts:
        raise ValueError(f"{name} is empty; give at least one text")
    return texts
