"""Published code that is imported from a checkout and gets random weights, beside which nothing stays as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torch import nn

from var_toolkit.devices import has_units

Draw = Callable[[int], object]  # images from a seed, on the CPU or complete on the device
CLASS = 207
KINDS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Conv1d, nn.Conv2d,
         nn.ConvTranspose1d, nn.ConvTranspose2d)  # fmt: skip


@contextmanager
def importable(folder: Path, **stubs: ModuleType) -> Iterator[None]:
    """Imports find the code, and `stubs` in place of what it imports but does not need here."""
    before, known = [(kind, kind.reset_parameters) for kind in KINDS], dict(sys.modules)
    sys.path.insert(0, str(folder))
    sys.modules.update(stubs)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        # One by one: other libraries that were imported in between stay, since some cannot be imported twice.
        for name in stubs:
            del sys.modules[name]
            sys.modules.update({name: known[name]} if name in known else {})
        for kind, reset in before:  # the published code replaces them for good
            kind.reset_parameters = reset  # type: ignore[method-assign]
        for name in set(sys.modules) - set(known):
            module = sys.modules[name]
            if str(folder) in f"{getattr(module, '__file__', None)} {list(getattr(module, '__path__', ()))}":
                del sys.modules[name]


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with random weights, built without its own initialisation, which takes minutes."""
    with redirect_stdout(StringIO()), patch.object(nn.init, "trunc_normal_", lambda tensor, **settings: tensor):
        network = build()
    some = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for parameter in network.parameters():
        for part in parameter.data.view(-1).split(len(some)):
            part.copy_(some[: len(part)])
    return network.eval()


def in_half(dtype: str, device: torch.device) -> bool:
    """Whether the published code computes in bfloat16 in a row of a precision."""
    if dtype not in ("best", "int8", "float8"):
        return dtype != "float32"
    return has_units("bfloat16") if device.type == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)
