"""Processes that are forked from one that has imported torch and this package already."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def start(
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    said: Path | None = None,
    **keywords: Any,
) -> BaseProcess:
    """A process that calls a function of an importable module; `said` is where its standard error goes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["var_toolkit.training.loop", "var_toolkit.evaluation.sample_set"])
    process = context.Process(target=_call, args=(function, arguments, keywords, dict(environment or {}), said))
    process.start()
    return process


def _call(function: Callable[..., Any], arguments: Any, keywords: Any, environment: Any, said: Path | None) -> None:
    if said is not None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ |= environment
    import torch

    torch.set_num_threads(1)
    function(*arguments, **keywords)


def ranks_of_two(port: int) -> list[dict[str, str]]:
    """The environments of two processes of torchrun."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
