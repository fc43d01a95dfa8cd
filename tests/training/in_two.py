"""Two training processes."""

import socket
import time
from pathlib import Path

from forked import ranks_of_two, start

from var_toolkit.training.loop import train
from var_toolkit.training.recipe import Recipe

PATIENCE = 300  # seconds


def train_in_two(recipe: Recipe, out: Path, cache: Path, said: Path) -> None:
    """Train as two processes of torchrun would; AssertionError with what they said if one of them fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [said / f"said-{rank}" for rank in range(2)]
    both = [
        start(train, recipe, out, cache_dir=cache, device="cpu", environment=rank, said=file)
        for rank, file in zip(ranks_of_two(port), files, strict=True)
    ]
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
