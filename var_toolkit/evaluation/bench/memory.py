"""Peak and current memory of a process, and the memory that is available."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch


def forget_peak(device: torch.device) -> None:
    """Reset the peak to the memory in use now, where the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not on Linux: then the peak includes the memory used for loading
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Peak memory in bytes: of torch's allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage: its peak includes the memory of the parent process at the time of the fork.
        return _status("VmHWM")
    except (OSError, IndexError):
        return _peak_from_start()


def held(device: torch.device) -> int:
    """Memory in use in bytes, counted as by `peak`; the peak where it is not known."""
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
    """Available memory in bytes: main memory for "cpu", else that of the GPU of this name. 0 where it is not known."""
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
