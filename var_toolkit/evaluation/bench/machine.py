"""The machine on which a benchmark was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import var_toolkit
from var_toolkit.devices import clock

SIZE, SECONDS = 512, 0.3  # of the square matrices whose product is timed, and for how long each precision is tried


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


def rates() -> dict[str, str]:
    """How fast the processor multiplies matrices in each precision; a multiply-add counts as two operations."""
    a = torch.ones(SIZE, SIZE)
    half, whole = a.bfloat16(), a.to(torch.int8)
    products: dict[str, Callable[[], Any]] = {
        "float32": lambda: a @ a,
        "bfloat16": lambda: half @ half,
        "int8": lambda: torch._int_mm(whole, whole),
    }
    found = {}
    for name, product in products.items():
        try:
            found[name] = f"{_rate(product):.1f} GFLOP/s"
        except (AttributeError, RuntimeError) as error:
            found[name] = f"not supported by this torch: {str(error).splitlines()[0]}"
    return found


def _rate(product: Callable[[], Any]) -> float:
    cpu = torch.device("cpu")
    product()
    began, count = clock(cpu), 0
    while clock(cpu) - began < SECONDS:
        product()
        count += 1
    return 2 * SIZE**3 * count / (clock(cpu) - began) / 1e9


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
