"""Show what is installed, what will be used and why, for bug reports. The network is not used."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SUMMARY = "show what is installed, what will be used and why"
PACKAGES = (
    "torch", "torchvision", "triton", "diffusers", "timm", "pillow", "huggingface-hub", "safetensors", "numpy",
    "gradio", "torchao",
)  # fmt: skip
UNITS = (
    "avx2",
    "avx512_f",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "bf16",
    "i8mm",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen doctor`."""
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Print the facts."""
    from var_toolkit.evaluation.bench.machine import rates

    facts = {
        "installed": _installed(),
        "machine": _machine(),
        "used": _used(),
        "rates": rates(),
        "folders": _folders(),
    }
    if args.json:
        print(json.dumps(facts))
        return
    for part, values in facts.items():
        print(part)
        for name, value in values.items():
            print(f"  {name:18} {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _installed() -> dict[str, str]:
    import var_toolkit

    found = {"var_toolkit": var_toolkit.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _machine() -> dict[str, Any]:
    import torch

    from var_toolkit.devices import processor_features
    from var_toolkit.evaluation.bench.machine import processor

    features = processor_features()
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "memory": _memory(),
        "units": [name for name in UNITS if name in features] or "not known",
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}" for gpu in gpus]
        or "none",
        "cuda of torch": torch.version.cuda or "none: this torch was built for the CPU only",
        "mps": torch.backends.mps.is_available(),
    }


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return "not known"
    return f"{total / 2**30:.1f} GiB"


def _used() -> dict[str, str]:
    """What a command uses without --device and --dtype."""
    import torch

    from var_toolkit.devices import find_device, slow_dtype
    from var_toolkit.models.layers.float8_linear import float8_missing
    from var_toolkit.models.layers.linear import _has_onednn
    from var_toolkit.precision import precision_of

    device = find_device("auto")
    fastest = precision_of("auto", device)
    why = (
        "torch finds a GPU" if device.type == "cuda" else "torch finds no CUDA GPU; on a Mac, --device mps may be used"
    )
    linear = "torch's own"
    if device.type == "cpu":
        linear = "oneDNN, packed" if _has_onednn() else "torch's own: its oneDNN operators are missing or differ"
    return {
        "device": f"{device.type} ({why})",
        "precision": f"float32, unless --dtype says otherwise; --dtype auto is {fastest.name}: {fastest.why}",
        "bfloat16": slow_dtype(device, torch.bfloat16) or "supported at full speed, or its units are not known",
        "attention": _attention(device),
        "linear layers": linear,
        "float8": float8_missing(device) or "supported, by torchao",
        "float32 products": f"precision {torch.get_float32_matmul_precision()!r} (TF32 on CUDA only if not 'highest')",
    }


def _attention(device: torch.device) -> str:
    import torch

    from var_toolkit.kernels.pyramid_attention import _no_triton

    if device.type != "cuda":
        return f"scaled_dot_product_attention: Triton kernels are for CUDA, this is {device.type}"
    reason = _no_triton(torch.empty(1, 1, 1, 64, dtype=torch.bfloat16, device=device))
    if reason is not None:
        return f"scaled_dot_product_attention: {reason}"
    return "Triton in bfloat16 and float16, scaled_dot_product_attention in float32"


def _folders() -> dict[str, str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from var_toolkit.user_folders import default_cache

    folders = {"downloads": Path(HF_HUB_CACHE), "training cache": default_cache()}
    found = {name: f"{path} ({_writable(path)})" for name, path in folders.items()}
    return {**found, "offline": os.environ.get("HF_HUB_OFFLINE", "no"), "python path": sys.executable}


def _writable(path: Path) -> str:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        return f"cannot be written: no permission for {existing}"
    return "can be written" if existing == path else f"does not exist yet; {existing} can be written"
