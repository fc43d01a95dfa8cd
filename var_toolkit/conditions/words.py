"""A small text encoder that is trained along with its model: a bidirectional transformer over known words.

Letters: B prompts, T text tokens, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import sqrt
from typing import ClassVar, cast
from zlib import crc32

import torch
from torch import Tensor, nn

from var_toolkit.conditions.prompt_embeds import PromptEmbeds

WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]|_")
TOLD = 40  # known words in a complaint


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text, in small letters."""
    return WORD.findall(text.lower())


def vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
    """All words of some texts, sorted."""
    return tuple(sorted({word for text in texts for word in words_of(text)}))


@dataclass(frozen=True)
class WordEncoderConfig:
    """The words that an encoder knows, and its sizes; a prompt has at most `longest` - 1 words."""

    words: tuple[str, ...] = field(default=("a",), metadata={"most": 65_536})
    width: int = field(default=128, metadata={"range": (1, 65_536)})
    depth: int = 2
    num_heads: int = 4
    longest: int = field(default=48, metadata={"range": (2, 65_536)})

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        for name in ("width", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.longest < 2:
            raise ValueError(f"longest is {self.longest}; it must be 2 or more: a start token and a word")
        if self.width % self.num_heads:
            raise ValueError(f"width is {self.width}; it must be a multiple of num_heads, {self.num_heads}")
        if len(set(self.words)) < len(self.words) or any(words_of(word) != [word] for word in self.words):
            raise ValueError("words must be different single words in small letters, or punctuation marks")


class WordEncoder(nn.Module):
    """Prompts -> features of their words, each of which has seen all others. A start token comes first."""

    license: ClassVar[str | None] = None

    def __init__(self, config: WordEncoderConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        # Not nn.Embedding(n, c): its initialisation imports torch.compile on the meta device.
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(len(config.words) + 1, width), freeze=False)
        self.positions = nn.Parameter(torch.zeros(config.longest, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self._numbers = {word: number for number, word in enumerate(config.words, start=1)}  # 0 is the start token

    @property
    def name(self) -> str:
        """A name that changes with the words and the weights."""
        told = crc32(repr(self.config).encode())
        if not self.embedding.weight.is_meta:
            told = crc32(self.embedding.weight.detach().float().cpu().numpy().tobytes(), told)
        return f"words-{told:08x}"

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError of one line for words that it does not know, and for a prompt that is too long."""
        for prompt in prompts:
            found = words_of(prompt)
            if odd := [word for word in dict.fromkeys(found) if word not in self._numbers]:
                raise ValueError(f"prompt has unknown words: {', '.join(odd)}; {self._known(odd)}")
            if len(found) >= self.config.longest:
                raise ValueError(f"prompt has {len(found)} words; this model reads at most {self.config.longest - 1}")

    def readable(self, text: str) -> str:
        """What it can read of a text: the words that it knows, and of these the first if there are too many."""
        words = words_of(text)
        known = [word for word in words if word in self._numbers][: self.config.longest - 1]
        return text if known == words else " ".join(known)

    def _known(self, odd: Sequence[str]) -> str:
        """Some of the words that it knows, those that are like unknown ones first."""
        alike = [word for one in odd for word in get_close_matches(one, self.config.words)]
        some = list(dict.fromkeys((*alike, *(word for word in self.config.words if word[0].isalpha()))))
        more = ", ..." if len(some) > TOLD else ""
        return f"known are {', '.join(some[:TOLD])}{more}"

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The features of some prompts. ValueError as `check`."""
        found: PromptEmbeds = self(prompts)
        return found

    def forward(self, prompts: Sequence[str]) -> PromptEmbeds:
        """As `encode`, with gradients."""
        self.check(prompts)
        numbers = [[0, *(self._numbers[word] for word in words_of(prompt))] for prompt in prompts]
        longest, device = max(map(len, numbers)), self.positions.device
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in numbers], device=device)
        mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in numbers], device=device)
        x_BTC: Tensor = self.embedding(padded) + self.positions[:longest]
        for block in self.blocks:
            x_BTC = block(x_BTC, src_key_padding_mask=~mask)
        return PromptEmbeds(self.norm(x_BTC).float(), mask)

    def release(self) -> None:
        """Nothing: it is small, and part of the model."""

    @torch.no_grad()
    def init_weights(self) -> None:
        """Normal weights of variance 1 / width, smaller at the end of each residual branch."""
        std, branch = self.config.width**-0.5, sqrt(2 * self.config.depth)
        for weight in (self.embedding.weight, self.positions):
            nn.init.normal_(weight, std=std)
        for block in (cast(nn.TransformerEncoderLayer, one) for one in self.blocks):
            for weight in (block.self_attn.in_proj_weight, block.linear1.weight):
                nn.init.normal_(weight, std=std)
            nn.init.normal_(block.self_attn.out_proj.weight, std=std / branch)
            nn.init.normal_(block.linear2.weight, std=std / 2 / branch)


NETWORKS = {"WordEncoder": "text_encoder"}
