"""Check the kernels on a GPU and make all its tables, in one command.

    git clone https://github.com/FoundationVision/VAR
    python scripts/gpu_tables.py --published VAR --out gpu

Each step is a command of its own; what it says goes to a file in the folder, and a step that fails stops no other.
Rows in float8 are left out where it is not supported. The last table has, for VAR-d16 and VAR-d30 with 1, 8 and 64
images at once, images a second with and without the decoder, and the share of the limit: of the rate at which this GPU
multiplies large matrices in that precision, measured here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var_toolkit.devices import clock, find_device
from var_toolkit.files import check_writable
from var_toolkit.models.layers.float8_linear import float8_missing

SIDE, SECONDS = 8192, 1.0  # of the square matrices whose product is timed, and for how long
HEADER = "| row | images/s | without the decoder | TFLOP/s of the transformer | share of the limit |"


def product(precision: str, side: int, device: torch.device) -> Callable[[], Tensor]:
    """What multiplies two square matrices in a precision."""
    if precision == "int8":
        whole = torch.ones(side, side, dtype=torch.int8, device=device)
        return lambda: torch._int_mm(whole, whole.t())
    if precision == "float8":
        narrow, scale = (
            torch.ones(side, side, device=device).to(torch.float8_e4m3fn),
            torch.ones(side, 1, device=device),
        )
        return lambda: torch._scaled_mm(
            narrow, narrow.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
    wide = torch.ones(side, side, dtype=getattr(torch, precision), device=device)
    return lambda: wide @ wide.t()


def limit(precision: str, device: torch.device) -> float:
    """Operations a second of a large product; a multiply-add counts as two."""
    multiply, count = product(precision, SIDE, device), 0
    multiply()
    began = clock(device)
    while clock(device) - began < SECONDS:
        for _ in range(10):
            multiply()
        count += 10
    return 2 * SIDE**3 * count / (clock(device) - began)


def table(rows: Iterable[dict[str, Any]], limits: dict[str, float]) -> str:
    """The rows of a report of `vargen bench` in Markdown, beside the limits of their precisions."""
    lines = [HEADER, "|---" * 5 + "|"]
    for row in rows:
        if "seconds_per_image" not in row:
            lines.append(f"| {row['name']} | {row['error'] or row['unfinished']} | | | |")
            continue
        alone = row["transformer_seconds_per_image"]
        rate = 2 * row["predicted"]["multiply_adds"] / alone
        share = rate / limits[row["dtype"]]
        figures = (f"{row['images_per_second']:.2f}", f"{1 / alone:.2f}", f"{rate / 1e12:.2f}", f"{share:.1%}")
        lines.append(f"| {' | '.join([row['name'], *figures])} |")
    return "\n".join(lines)


def steps(published: Path, out: Path, *, float8: bool) -> dict[str, list[str]]:
    """The commands by name."""
    vargen, scripts = [sys.executable, "-m", "var_toolkit"], Path(__file__).parent
    precisions = ("bfloat16", "int8", *(["float8"] if float8 else []))
    peers = [f"var-d*-{dtype}" for dtype in ("best", *precisions[1:])]
    return {
        "doctor": [*vargen, "doctor"],
        "kernels": [sys.executable, "-m", "pytest", "-q", str(scripts.parent / "tests" / "kernels")],
        "attention": [sys.executable, str(scripts / "bench_attention.py"), "--json", str(out / "attention.json")],
        "bench": [*vargen, "bench", "gpu", "--only", *(f"*{each}" for each in precisions), "--out", str(out)],
        "peers": [*vargen, "bench", "peers", "--published", str(published), "--only", *peers],
    }


def ran(name: str, command: list[str], out: Path) -> bool:
    """Whether a step succeeded; its output is shown and written to a file."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    with (out / f"{name}.txt").open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
    return process.wait() == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, required=True, metavar="FOLDER", help="a checkout of VAR")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="a folder for all that is found (default gpu)")
    args = parser.parse_args()
    if not (args.published / "models" / "var.py").is_file():
        parser.error(f"--published {args.published} holds no models/var.py; give a checkout of VAR")
    try:
        device = find_device("cuda")
    except ValueError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    check_writable(args.out)
    without = float8_missing(device)
    print(f"float8 is left out: {without}" if without else "float8 is measured")
    failed = [
        name
        for name, command in steps(args.published, args.out, float8=without is None).items()
        if not ran(name, command, args.out)
    ]
    report = args.out / "gpu.json"
    if report.is_file():
        rows = json.loads(report.read_text())["rows"]
        measure = partial(limit, device=device)
        limits = {dtype: measure(dtype) for dtype in dict.fromkeys(row["dtype"] for row in rows)}
        told = "\n".join(f"{dtype}: {rate / 1e12:.0f} TFLOP/s at most" for dtype, rate in limits.items())
        text = f"{torch.cuda.get_device_name(device)}\n\n{told}\n\n{table(rows, limits)}\n"
        (args.out / "limits.md").write_text(text)
        print(text)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
