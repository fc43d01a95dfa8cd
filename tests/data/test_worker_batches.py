"""Loading processes hand batches over without shared memory."""

import errno
import os
import signal
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
import torch
from torch.multiprocessing import reductions
from torch.utils.data import Dataset

from var_toolkit.data.worker_batches import worker_batches


class Squares(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.full((3, 2, 2), index, dtype=torch.uint8), index**2


class Alone(Squares):
    def __getitem__(self, index):
        return torch.full((3, 2, 2), index, dtype=torch.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_whoever_makes_them(workers):
    found = list(worker_batches(Squares(), [[3, 1], [2], range(4, 7)], workers=workers))
    assert [labels.tolist() for _, labels in found] == [[9, 1], [4], [16, 25, 36]]
    assert [images[:, 0, 0, 0].tolist() for images, _ in found] == [[3, 1], [2], [4, 5, 6]]
    assert found[0][0].dtype == torch.uint8
    assert found[0][1].dtype == torch.int64
    ((images,),) = worker_batches(Alone(), [[7]], workers=workers)
    assert torch.equal(images, torch.full((1, 3, 2, 2), 7, dtype=torch.uint8))


class Broken(Squares):
    def __getitem__(self, index):
        raise ValueError(f"image {index}.png: it is damaged")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_loading_process_is_one_line(workers):
    with pytest.raises(ValueError, match=r"^image 3\.png: it is damaged$"):
        list(worker_batches(Broken(), [[3]], workers=workers))


def test_an_error_of_starting_the_processes_keeps_its_message(monkeypatch):
    def fail(process):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(BaseProcess, "start", fail)
    with pytest.raises(OSError, match="Resource temporarily unavailable"):
        list(worker_batches(Squares(), [[3]], workers=1))


def test_no_tensor_crosses_in_shared_memory(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a tensor was put into shared memory")

    monkeypatch.setattr(reductions, "reduce_storage", refuse)  # the loading processes are forked, so they see it
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", refuse)
    found = list(worker_batches(Squares(), [[0, 1], [2, 3]], workers=2))
    np.testing.assert_array_equal(torch.cat([labels for _, labels in found]), [0, 1, 4, 9])


class KillsItsProcess(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_loading_process_that_is_killed_is_told_with_a_way_out():
    with pytest.raises(ChildProcessError, match="fewer workers"):
        list(worker_batches(KillsItsProcess(), [[0]], workers=1))
