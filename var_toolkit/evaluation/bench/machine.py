"""The machine on which a benchmark was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import var_toolkit


def machine() -> dict[str, Any]:
    """Processor, threads and versions. The rows name the GPUs that they use."""
    return {
        "cpu": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "var_toolkit": var_toolkit.__version__,
    }


def threads(count: int) -> str:
    """A number of threads with its unit."""
    return f"{count} thread{'' if count == 1 else 's'}"


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
