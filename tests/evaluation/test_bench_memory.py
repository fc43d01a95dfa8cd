"""What a benchmark counts as memory."""

import subprocess
import sys
from mmap import mmap

import pytest
import torch

from var_toolkit.evaluation.bench.memory import held, peak


def test_memory_held_grows_and_shrinks_while_the_peak_stays():
    cpu = torch.device("cpu")
    before = held(cpu)
    block = mmap(-1, 64_000_000)  # straight from the system: an allocator may have pages left over
    block.write(b"\1" * len(block))
    assert before + 50e6 < held(cpu) <= peak(cpu)
    block.close()
    assert held(cpu) < before + 30e6 < peak(cpu)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the peak is the one from the start")
def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    child = "import torch; from var_toolkit.evaluation.bench.memory import peak; print(peak(torch.device('cpu')))"
    parent = f"import subprocess, sys; held = b'x' * 2**30; subprocess.run([sys.executable, '-c', {child!r}])"
    told = int(subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True).stdout)
    assert 2**25 < told < 2**30
