"""How drawing is ended from within, once nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class AbandonedError(Exception):
    """Nobody listens any more: ends the work from within."""


@contextmanager
def checked_by_layer(networks: Sequence[Any], check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before every layer, so that it can end a long scale, or a map drawn token by token, by raising."""
    hooks = [
        block.register_forward_pre_hook(lambda *_: check())
        for network in networks
        for block in getattr(network, "blocks", ())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
