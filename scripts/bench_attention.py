"""Check and time attention over a pyramid of token maps and its alternatives.

    python scripts/bench_attention.py --json attention.json
    python scripts/bench_attention.py --device cpu

Queries, keys and values are packed, with heads of width 64; bfloat16 on a GPU, float32 on the CPU. Implementations
alternate within every round, and ratios are computed per round. TFLOP/s count only the pairs that the pattern allows;
"dense flash" computes all pairs without a mask and is shown for comparison. Errors are the largest deviation of one
head of one image from float64, relative to the largest value.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.schedule import SCHEDULES, Schedule
from var_toolkit.files import check_writable, write_whole
from var_toolkit.kernels.pyramid_attention import attention
from var_toolkit.kernels.tiles import PATTERNS

WIDTH = 64
Implementation = Callable[[Tensor, Tensor, Tensor], Tensor]
HEADER = "| | forward ms | TFLOP/s | forward + backward ms | TFLOP/s | times as long as {ours} | error, gradients |"


def mask_of(scales: Schedule, pattern: str, device: torch.device) -> Tensor:
    mask = scales.block_causal_mask() if pattern == "block-causal" else scales.block_diagonal_mask()
    return mask.to(device)


def tuned_flex(scales: Schedule, pattern: str, device: torch.device) -> Implementation:
    """FlexAttention, compiled and autotuned for these shapes."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # otherwise torch stops compiling after a few shapes
    levels = scales.level_ids().to(device)

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        coarser = levels[query] >= levels[key]
        return coarser if pattern == "block-causal" else levels[query] == levels[key]

    block_mask = create_block_mask(allowed, None, None, scales.total, scales.total, device=str(device))
    compiled = torch.compile(flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs")
    return lambda q, k, v: compiled(q, k, v, block_mask=block_mask)


def implementations(scales: Schedule, pattern: str, device: torch.device) -> dict[str, Callable[[], Implementation]]:
    """A factory per implementation; the first is the baseline of the ratios."""

    def ours(backend: str) -> Implementation:
        return lambda q, k, v: attention(q, k, v, scales, pattern=pattern, backend=backend)

    def dense() -> Implementation:
        mask = mask_of(scales, pattern, device)
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    on_gpu = {"triton": lambda: ours("triton"), "flex": lambda: tuned_flex(scales, pattern, device)}
    return {
        **(on_gpu if device.type == "cuda" else {}),
        "slices": lambda: ours("sdpa"),
        "dense mask": dense,
        "dense flash": lambda: F.scaled_dot_product_attention,
    }


def inputs(tokens: int, heads: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Packed queries, keys and values (batch, tokens, 3, heads, width), and the gradient of the output."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = (batch, tokens, 4, heads, WIDTH)
    *_, dout = packed = torch.randn(shape, generator=generator, device=device, dtype=dtype).unbind(2)
    return torch.stack(packed[:3], 2).requires_grad_(), dout.transpose(1, 2)


def forward(implementation: Implementation, packed: Tensor) -> Tensor:
    return implementation(*packed.permute(2, 0, 3, 1, 4).unbind(0))


def both(implementation: Implementation, packed: Tensor, dout: Tensor) -> Tensor:
    """Forward and backward pass: the gradient of the packed tensor."""
    return torch.autograd.grad(forward(implementation, packed), packed, dout)[0]


def milliseconds(call: Callable[[], Any], device: torch.device, least: float) -> float:
    """Mean time of one call over enough calls to take `least` milliseconds."""
    calls, spent = 1, 0.0
    while spent < least:
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
            spent = begin.elapsed_time(end)
        else:
            began = time.perf_counter()
            for _ in range(calls):
                call()
            spent = 1000 * (time.perf_counter() - began)
        if spent < least:
            calls = max(calls + 1, int(calls * 1.2 * least / max(spent, 1e-3)))
    return spent / calls


def errors(
    implementation: Implementation, reference: tuple[Tensor, Tensor], packed: Tensor, dout: Tensor
) -> tuple[float, float]:
    """Relative errors of the output and the gradient in the first head of the first image."""
    out, gradient = forward(implementation, packed).detach()[:1, :1], both(implementation, packed, dout)[:1, :, :, :1]
    return tuple(float((x - y).abs().max() / y.abs().max()) for x, y in zip((out, gradient), reference, strict=True))  # type: ignore[return-value]


def float64_reference(scales: Schedule, pattern: str, packed: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of the first head of the first image."""
    one = packed.detach()[:1, :, :, :1].double().requires_grad_()

    def implementation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, scales, pattern=pattern, backend="reference")

    return forward(implementation, one).detach(), both(implementation, one, dout[:1, :1].double())


def measure(
    scales: Schedule, pattern: str, heads: int, batch: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Per implementation: its errors and, for each round, its two times in milliseconds; or why it failed."""
    packed, dout = inputs(scales.total, heads, batch, device)
    reference = float64_reference(scales, pattern, packed, dout)
    found: dict[str, Any] = {}
    ready: dict[str, Implementation] = {}
    for name, make in implementations(scales, pattern, device).items():
        try:
            implementation = make()
            error = (None, None) if name == "dense flash" else errors(implementation, reference, packed, dout)
            both(implementation, packed, dout)
        except Exception as failure:  # an unsupported implementation must not stop the others
            found[name] = {"failed": f"{type(failure).__name__}: {failure}".splitlines()[0][:160]}
            continue
        ready[name], found[name] = implementation, {"errors": error, "forward": [], "both": []}
    least = 30.0 if device.type == "cuda" else 1.0
    for _ in range(rounds):
        for name, implementation in ready.items():
            found[name]["forward"].append(milliseconds(partial(forward, implementation, packed), device, least))
            found[name]["both"].append(milliseconds(partial(both, implementation, packed, dout), device, least))
    return found


def needed_operations(scales: Schedule, pattern: str, heads: int, batch: int) -> float:
    """Operations of the two matrix products of the forward pass over allowed pairs; the backward pass has five."""
    pairs = int(mask_of(scales, pattern, torch.device("cpu")).sum())
    return 4.0 * pairs * WIDTH * heads * batch


def ratio(times: list[float], ours: list[float]) -> str:
    each = [a / b for a, b in zip(times, ours, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def table(found: dict[str, Any], operations: float) -> str:
    """A Markdown table with one row per implementation."""
    ours = next((name for name, row in found.items() if "failed" not in row), "nothing")
    lines = [HEADER.format(ours=ours), "|---" * 7 + "|"]
    best = {kind: _best_other(found, ours, kind) for kind in ("forward", "both")}
    for name, row in found.items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} | | | | | |")
            continue
        cells = [name]
        for kind, passes in (("forward", 1.0), ("both", 3.5)):
            took = statistics.median(row[kind])
            cells += [f"{took:.3f}", f"{operations * passes / took / 1e9:.2f}"]
        compared = "; ".join(ratio(row[kind], found[ours][kind]) for kind in ("forward", "both"))
        shown = "not comparable" if row["errors"][0] is None else ", ".join(f"{error:.1e}" for error in row["errors"])
        lines.append(f"| {' | '.join(cells)} | {'1' if name == ours else compared} | {shown} |")
    if all(best.values()):
        compared = [f"{ratio(found[name][kind], found[ours][kind])} ({name})" for kind, name in best.items() if name]
        lines.append(f"\nThe fastest alternative, times as long as {ours}: forward {compared[0]}, both {compared[1]}.")
    return "\n".join(lines)


def _best_other(found: dict[str, Any], ours: str, kind: str) -> str | None:
    """The fastest alternative that computes the same function."""
    others = [name for name in found if name not in (ours, "dense flash") and "failed" not in found[name]]
    return min(others, key=lambda name: statistics.median(found[name][kind]), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default cuda if present"
    )
    parser.add_argument("--sizes", nargs="+", choices=SCHEDULES, help="image sides (default all; 256 on the CPU)")
    parser.add_argument("--heads", nargs="+", type=int, help="default 16 20 24 30 36; 16 on the CPU")
    parser.add_argument("--batch", nargs="+", type=int, help="images (default 4 32; 4 on the CPU)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the times of every round to this file")
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    device_name = torch.cuda.get_device_name(device) if on_gpu else f"the CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__} on {device_name}; medians of {args.rounds} rounds\n")
    if args.json:
        check_writable(args.json.parent)
    rows = []
    heads_of = args.heads or ([16, 20, 24, 30, 36] if on_gpu else [16])
    sizes = args.sizes or (list(SCHEDULES) if on_gpu else ["256"])
    for size, heads, batch, pattern in product(sizes, heads_of, args.batch or ([4, 32] if on_gpu else [4]), PATTERNS):
        scales = Schedule.named(size)
        title = f"{size} px, {scales.total} tokens, {pattern}, {heads} heads, batch {batch}"
        try:
            found = measure(scales, pattern, heads, batch, args.rounds, device)
        except torch.OutOfMemoryError:
            print(f"{title}: out of memory before anything was measured\n", flush=True)
            continue
        print(f"{title}\n\n{table(found, needed_operations(scales, pattern, heads, batch))}\n", flush=True)
        rows.append({"size": size, "pattern": pattern, "heads": heads, "batch": batch, "implementations": found})
        if args.json:
            settings = {"torch": torch.__version__, "device": device_name, "rounds": args.rounds}
            text = json.dumps({**settings, "rows": rows}, indent=1)
            write_whole(args.json, lambda temporary, text=text: temporary.write_text(text))


if __name__ == "__main__":
    main()
