"""A text encoder that stays in memory: a server reads new prompts for as long as it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.conditions.text import TextEncoder


class Resident:
    """An encoder that keeps its weights when a batch is drawn, after which a pipeline releases them."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.name, self.license = encoder, encoder.name, encoder.license

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError of one line for a prompt that it cannot read."""
        self.encoder.check(prompts)

    def encode(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The features of some prompts."""
        return self.encoder.encode(prompts)

    def to(self, device: Any) -> Any:
        """Move to a device."""
        self.encoder.to(device)
        return self

    def release(self) -> None:
        """Nothing: it stays."""
