"""Batches of a data set, made by worker processes and sent through pipes.

torch passes tensors between processes in shared memory, which Docker limits to 64 MB in a container: beyond that a
worker is killed by a bus error. NumPy arrays are sent through the pipe by value.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from var_toolkit.images import ImageFileError


class _Piped:
    """A batch in transit: arrays, or tensors once torch's pinning thread has copied them."""

    def __init__(self, items: Sequence[Any]) -> None:
        rows = items if isinstance(items[0], tuple) else [(item,) for item in items]
        self.parts: tuple[np.ndarray | Tensor, ...] = tuple(np.stack(column) for column in zip(*rows, strict=True))

    def pin_memory(self) -> _Piped:
        self.parts = tuple(part.pin_memory() for part in self.tensors())
        return self

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in self.parts)


def worker_batches(
    data: Dataset[Any], rows: Iterable[Sequence[int]], *, workers: int, pin: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """One batch for each list of item numbers, in order: a tensor for each part of an item.

    `workers` processes make them, or this one if it is 0; `pin` puts them into page-locked memory for a GPU. Their
    ValueErrors and OSErrors are raised here without the traceback. ChildProcessError if one was killed.
    """
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # more workers than processors are fine
        loader = DataLoader(
            data, batch_sampler=[list(row) for row in rows], num_workers=workers, pin_memory=pin, collate_fn=_Piped
        )
    try:
        for batch in loader:
            yield batch.tensors()
    except ImageFileError:  # which crosses processes as one line
        raise
    except (ValueError, OSError) as error:
        if "Traceback" not in str(error):  # of this process: fork failed, for example
            raise
        # That of another process carries its traceback; the message is behind the name of the class.
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise ChildProcessError(
            f"one of {workers} processes that load images was killed, perhaps for want of memory; use fewer workers"
        ) from None
