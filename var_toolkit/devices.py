"""Which device a name means on this machine, and the time on it."""

from __future__ import annotations

import time

import torch


def find_device(name: str) -> torch.device:
    """The device that a name means; ValueError if this machine has none of that kind."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    usable = ", ".join(["auto", *(kind for kind, there in available.items() if there)])
    complaint = f"device {name!r} is not available here; usable are {usable}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(complaint) from None
    if not available.get(device.type, False):
        raise ValueError(complaint)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not available here; there are {torch.cuda.device_count()} GPUs, from cuda:0"
        )
    return device


def clock(device: torch.device) -> float:
    """The time in seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
