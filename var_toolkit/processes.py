"""The processes of one run: alone, or as many as torchrun started."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from var_toolkit.devices import find_device

# The first process may render or encode a whole data set while the others wait at a barrier.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Team:
    """Which of the processes of the run this one is."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over processes of each number; every process must hold the same keys in the same order."""
        if self.size == 1 or not values:
            return values
        numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return dict(zip(values, (numbers / self.size).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether any process says so: all of them learn the same answer."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag))  # on the CPU: asked at every step, a GPU's queue must not run empty for it
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def rows(self, own: Tensor) -> Tensor:
        """The rows of every process, by rank; all must have as many."""
        if self.size == 1:
            return own
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        return torch.cat(every)

    def led(self, act: Callable[[], object]) -> None:
        """The first process acts while the others wait; if it fails, all of them end."""
        problem: Exception | None = None
        if self.leads:
            try:
                act()
            except Exception as error:  # of any kind: the others would wait for ever
                problem = error
        if self.any(problem is not None):
            raise problem or ValueError("the first process cannot go on, and says why")


def pick_device(name: str) -> torch.device:
    """The device of this process: the one named, or its own GPU. ValueError if the machine does not have it."""
    device = find_device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


@contextmanager
def team_of_this_process(device: str) -> Iterator[Team]:
    """Joins the process group that torchrun describes in the environment, if it does, and leaves it at the end.

    ValueError if that description is incomplete, as a batch scheduler's is.
    """
    where = pick_device(device)
    if not _started_as_one_of_several():
        yield Team(0, 1, where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), where)
    finally:
        dist.destroy_process_group()


def _started_as_one_of_several() -> bool:
    """Whether the environment has what torchrun sets: RANK and WORLD_SIZE, and an address with them."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    odd = [name for name in ("RANK", "WORLD_SIZE", "MASTER_PORT") if not os.environ.get(name, "0").isdecimal()]
    if missing or odd:
        name = (missing or odd)[0]
        fault = "is not set" if missing else f"is {os.environ[name]!r}, which is not a number"
        raise ValueError(
            f"RANK and WORLD_SIZE are set, as for one of several processes, but {name} {fault}; start all of them with "
            "`torchrun --nproc-per-node N -m var_toolkit ...`, or unset RANK and WORLD_SIZE to run alone"
        )
    return True
