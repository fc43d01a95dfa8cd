"""How the published files of one kind of tokenizer are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from var_toolkit.formats.state_dicts import Tensors


@dataclass(frozen=True)
class TokenizerFiles:
    """How the files of one kind of tokenizer are read, and how the network is built without them."""

    network: str  # the class, as a `config.json` names it
    tokens: str  # what a backbone draws for it, in words
    required: tuple[str, ...]  # names of tensors by which its files are known
    read: Callable[[Tensors, Mapping[str, Any], tuple[int, ...], str], nn.Module]
    empty: Callable[[Mapping[str, Any], str], nn.Module]
