"""Two training processes, forked from one that has imported torch already."""

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

from var_toolkit.training.recipe import Recipe

PATIENCE = 300  # seconds


def train_in_two(recipe: Recipe, out: Path, cache: Path, said: Path) -> None:
    """Train as two processes of torchrun would; AssertionError with what they said if one of them fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["var_toolkit.training.loop"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [said / f"said-{rank}" for rank in range(2)]
    both = [context.Process(target=_train, args=(rank, port, recipe, out, cache, files[rank])) for rank in range(2)]
    for process in both:
        process.start()
    ends = time.monotonic() + PATIENCE
    try:
        while any(process.is_alive() for process in both) and time.monotonic() < ends:
            if any(process.exitcode for process in both):
                ends = min(ends, time.monotonic() + 10)  # the other one waits for it, or says why it ends as well
            both[0].join(0.1)
            both[1].join(0.1)
    finally:
        for process in both:
            process.kill()
            process.join()
    codes = [process.exitcode for process in both]
    assert codes == [0, 0], "\n".join([str(codes), *(path.read_text()[-9000:] for path in files)])


def _train(rank: int, port: int, recipe: Recipe, out: Path, cache: Path, said: Path) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    import torch

    from var_toolkit.training.loop import train

    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    train(recipe, out, cache_dir=cache, device="cpu")
