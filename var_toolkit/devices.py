"""Which device a name means on this machine, what its processor can compute, and the time on it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

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


def processor_features() -> frozenset[str]:
    """The instruction sets of the processor, as Linux calls them; empty if they cannot be found out."""
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.10 and later, on every system
        return frozenset(name for name, there in torch.cpu.get_capabilities().items() if there is True)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    words = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(words, []))


UNITS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
    "int8": {"avx512_vnni", "avx_vnni", "amx_int8"},
}  # of processors, by what they multiply


def has_units(name: str) -> bool:
    """Whether the processor is known to have units for a precision."""
    return bool(processor_features() & UNITS[name])


def slow_dtype(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a dtype is slow on the processor, in one line; None if it is not, or if that cannot be found out."""
    name = str(dtype).removeprefix("torch.")
    if device.type != "cpu" or name not in UNITS or not processor_features() or has_units(name):
        return None
    return f"this processor has no {name} units, so {name} is several times as slow as float32; use float32"


def tell_slow_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Print why a dtype is slow on the processor, if it is, to standard error."""
    if (reason := slow_dtype(device, dtype)) is not None:
        print(f"vargen: {reason}", file=sys.stderr)


def destination(
    *wanted: torch.device | str | int | torch.dtype | None,
) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and the dtype among some arguments in any order, each once at most; ValueError for anything else."""
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    for each in wanted:
        if each is None:
            continue
        if isinstance(each, torch.dtype):
            if not each.is_floating_point or dtype not in (None, each):
                raise ValueError(f"dtype is {each}; give one floating-point type, such as torch.bfloat16")
            dtype = each
        elif isinstance(each, str | int | torch.device) and not isinstance(each, bool) and device is None:
            device = find_device(each) if isinstance(each, str) else torch.device(each)
        else:
            raise ValueError(f"{each!r} cannot be moved to; give one device, such as 'cuda', and one dtype")
    return device, dtype


def clock(device: torch.device) -> float:
    """The time in seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
