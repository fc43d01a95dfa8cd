"""Passes of networks that torch compiles: a graph for each scale and each number of rows, and not more.

A pass reads sizes, and how many tokens are cached, as constants, so each scale has a graph of its own. Single tokens
share one, since their position is a tensor (`core.cache.SlotCache`). On CUDA the graphs become CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from var_toolkit.core.cache import KVCache, SlotCache

Pass = Callable[..., Tensor]
METHODS = ("hidden", "next_hidden", "together")  # that are compiled, whichever a network has


class Compiler:
    """Compiles methods of networks. Networks of one class and size share their graphs."""

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self._backend = backend
        self._known: dict[tuple[Any, bool], Any] = {}

    def __call__(self, method: Pass) -> Pass:
        """A bound method of a network, compiled for the device of its weights."""
        function, network = method.__func__, method.__self__  # type: ignore[attr-defined]
        cuda = next(network.parameters()).is_cuda and self._backend == "inductor"
        if (function, cuda) not in self._known:
            how: dict[str, Any] = {"mode": "reduce-overhead"} if cuda else {}
            # Sizes as variables would make graphs that serve several scales, and guards that do not.
            self._known[function, cuda] = torch.compile(function, backend=self._backend, dynamic=False, **how)
        return partial(_run, self._known[function, cuda], network)


def _run(compiled: Pass, network: Any, *given: Any, **named: Any) -> Tensor:
    """A call for which torch makes as many graphs as there are shapes; by default it gives up after eight."""
    from torch._dynamo import config, mark_static_address  # which takes seconds to import

    for tensor in named["cache"].memory if named.get("cache") is not None else ():
        if tensor.is_cuda:  # a CUDA graph writes only to memory of which it is told that it stays where it is
            mark_static_address(tensor, guard=False)
    with config.patch(recompile_limit=config.accumulated_recompile_limit):
        return compiled(network, *given, **named)


def by_token(compiler: Compiler | None, network: Any, cache: KVCache) -> Pass:
    """`next_hidden` of a network with a cache, compiled for single tokens behind others."""
    plain = partial(network.next_hidden, cache=cache)
    if compiler is None:
        return plain
    compiled, slots = compiler(network.next_hidden), None

    def read(prefix_RTC: Any, tokens_RL: Tensor) -> Tensor:
        nonlocal slots
        if cache.length == 0 or tokens_RL.shape[1] != 1:
            return plain(prefix_RTC, tokens_RL)
        slots = slots or SlotCache(cache)
        hidden_R1C = compiled(None, tokens_RL, cache=slots)
        slots.next()
        cache.advance(1)
        return hidden_R1C

    return read


def require_compilable(network: Any) -> None:
    """ValueError in one line for a network of which each step has another size."""
    if not any(hasattr(network, name) for name in METHODS):
        raise ValueError(
            f"{type(network).__name__} draws groups of tokens, each of another size, which is not worth compiling; "
            "leave compile out"
        )


def require_cpp(device: torch.device) -> None:
    """ValueError in one line on the CPU without a C++ compiler."""
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError(
            "compile needs a C++ compiler on the CPU and finds none; install g++, or leave compile out"
        ) from None
