#!/usr/bin/env bash
# Triton 3.8.0, interpreter (TRITON_INTERPRET=1, torch 2.14.1): `tl.dot` of bfloat16 operands returns numbers that have
# nothing to do with the product, without an error. The same kernel is right for float16 and float32. Seen for 16 x 16
# normal numbers: errors of about 1e-6 in float32 and float16, above 1e9 in bfloat16. A kernel that multiplies in bfloat16
# therefore cannot be tested without a GPU; casting both operands to float32 first gives the product.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 triton==3.8.0 numpy==2.4.6
cat >dot.py <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def product(a_ptr, b_ptr, c_ptr, SIDE: tl.constexpr, WIDE: tl.constexpr):
    at = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    a, b = tl.load(a_ptr + at), tl.load(b_ptr + at)
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    tl.store(c_ptr + at, tl.dot(a, b))


def error(dtype: torch.dtype, wide: bool = False) -> float:
    torch.manual_seed(0)
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype), torch.empty(16, 16)
    product[(1,)](a, b, c, 16, wide)
    return (c - a.float() @ b.float()).abs().max().item()


found = {name: error(getattr(torch, name)) for name in ("float32", "float16", "bfloat16")}
found["bfloat16, cast to float32 first"] = error(torch.bfloat16, wide=True)
for name, value in found.items():
    print(f"{name}: largest error {value:.2g}")
assert found.pop("bfloat16") > 1e3
assert max(found.values()) < 1e-4
PYTHON
TRITON_INTERPRET=1 env/bin/python dot.py
