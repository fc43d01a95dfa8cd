"""What the package asks of a family of backbones: the file of a family ends with `FAMILY = Family(...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from torch import nn

from var_toolkit.entries import Sampling, TextSource
from var_toolkit.formats.state_dicts import Arguments, Tensors
from var_toolkit.tokenizers.files import TokenizerFiles


def _as_they_are(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    return settings


@dataclass(frozen=True)
class Family:
    """A kind of backbone, and how its published files are read.

    Only `network` and `tokenizer` are needed to train, save, load and draw; `required` and `sizes` to convert files.
    """

    network: type[nn.Module]  # built from one argument, `config`, a frozen dataclass
    tokenizer: TokenizerFiles  # the kind that it draws for
    title: str = ""  # in a model card; the name of the class if empty
    paper: str = ""  # on arXiv, such as 2404.02905
    cfg_off: float = 0.0  # the number at which its authors count guidance as off, 0 or 1
    text_encoder: TextSource | None = None  # of a family of text whose models are not in the table of its file
    sampling: Sampling = field(default_factory=Sampling)  # the published settings, where no table of models has them
    way: str = ""  # how it draws: what follows "a model of" in the card
    required: tuple[str, ...] = ()  # names of tensors by which its published files are known
    adapter: tuple[str, ...] = ()  # likewise of the file of an adapter, whose tensors join those of the backbone
    dropped: tuple[str, ...] = ()  # endings of the names of tensors that can be computed
    unchunked: Callable[[Tensors], Tensors] = lambda tensors: tensors  # with layers counted from the first to the last
    renamed: Callable[[str], str] = lambda name: name  # our name of a published tensor; what follows is by our names
    arguments: Arguments = field(default_factory=Arguments)  # of the published constructor
    sizes: Callable[[Tensors], dict[str, Any]] = lambda tensors: {}
    completed: Callable[[dict[str, Any], Tensors, str], dict[str, Any]] = _as_they_are  # by what no tensor determines

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.network.__module__.rpartition(".")[2]

    @property
    def config(self) -> type:
        """The dataclass of its sizes."""
        hints = get_type_hints(self.network.__init__)
        if "config" not in hints:
            raise ValueError(f"{self.network.__name__} takes no annotated argument config; a network of a family does")
        found: type = hints["config"]
        return found
