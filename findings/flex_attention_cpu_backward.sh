#!/usr/bin/env bash
# PyTorch 2.14.1: `flex_attention` on a CPU gives the right output, but the same call ends in NotImplementedError ("does not
# support backward on CPU") as soon as an input requires gradients. Masked attention for training, such as the block-causal
# mask of next-scale prediction, needs another path on the CPU, and a test of the forward pass alone does not notice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.14.1 numpy==2.4.6
env/bin/python -W ignore - <<'PYTHON'
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

scale_of = torch.tensor([0] + [1] * 4 + [2] * 9)  # three token maps: 1, 2 x 2 and 3 x 3
length = len(scale_of)


def block_causal(b, h, q, k):
    return scale_of[k] <= scale_of[q]


mask = create_block_mask(block_causal, None, None, length, length, device="cpu")
x = torch.randn(1, 2, length, 16)
dense = scale_of[None, :] <= scale_of[:, None]
expected = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=dense)
print("forward, largest error:", (flex_attention(x, x, x, block_mask=mask) - expected).abs().max().item())
torch.testing.assert_close(flex_attention(x, x, x, block_mask=mask), expected)
x.requires_grad_()
try:
    flex_attention(x, x, x, block_mask=mask).sum().backward()
except NotImplementedError as error:
    print("backward:", error)
else:
    raise SystemExit("flex_attention has a backward pass on the CPU now")
PYTHON
