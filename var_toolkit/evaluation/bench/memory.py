"""How much memory a process has used at most, and how much there is."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch


def forget_peak(device: torch.device) -> None:
    """Count the peak anew from what is held now, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # elsewhere than on Linux: then the peak includes what loading took
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes held at most: by torch's allocator on CUDA, by the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage: what it tells begins with the memory of the process that started this one.
        return _status("VmHWM")
    except (OSError, IndexError):
        return _peak_from_start()


def held(device: torch.device) -> int:
    """Bytes held now, counted as `peak` does; the peak where nobody says."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return _status("VmRSS")
    except (OSError, IndexError):
        return _peak_from_start()


def _status(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def _peak_from_start() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available(place: str) -> int:
    """Bytes that may be filled: of main memory for "cpu", of a GPU by its name. 0 where nobody says."""
    if place.startswith("cuda"):
        return torch.cuda.get_device_properties(place).total_memory
    try:
        told = Path("/proc/meminfo").read_text().split("MemAvailable:")[1]
    except (OSError, IndexError):
        return 0
    return min(1024 * int(told.split()[0]), _limit_of_container())


def _limit_of_container() -> int:
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no limit, which reads "max"
        return 2**63
