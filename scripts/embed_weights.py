"""Put a trained network into the package, in half precision.

python scripts/embed_weights.py runs/stilllife-var/final stilllife-var
python scripts/embed_weights.py runs/stilllife-tokenizer/final stilllife-tokenizer
python scripts/embed_weights.py runs/stilllife-tokenizer-decoder/final stilllife-tokenizer --mix 0.5
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from var_toolkit.zoo.directory import INDEX, PARTS, load_network, save_network
from var_toolkit.zoo.registry import Embedded

LIMIT = 45_000_000  # bytes of all embedded weights, so that a checkout stays small


@torch.no_grad()
def mix_with(network: torch.nn.Module, other: torch.nn.Module, share: float) -> None:
    """`share` of a network's weights and the rest of another's, in place. They must come from the same start."""
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        ours.lerp_(theirs, 1 - share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path, help="the final/ of a training run")
    parser.add_argument("name", help="its folder under var_toolkit/zoo/embedded")
    parser.add_argument("--part", choices=PARTS, default="backbone", help="of a model directory (default backbone)")
    parser.add_argument("--mix", type=float, default=1.0, help="share of the new weights; the rest: those embedded")
    args = parser.parse_args()
    target = Embedded.folder(args.name)
    is_model = (args.network / INDEX).is_file()
    network = load_network(args.network / args.part if is_model else args.network)
    if args.mix < 1:
        mix_with(network, load_network(target), args.mix)
    shutil.rmtree(target, ignore_errors=True)
    save_network(network, target, torch.float16)
    total = sum(path.stat().st_size for path in target.parent.rglob("*.safetensors"))
    count = sum(p.numel() for p in network.parameters())
    print(f"{target}: {count / 1e6:.2f} M parameters; all embedded {total / 1e6:.1f} MB")
    if total > LIMIT:
        raise SystemExit(f"all embedded weights together must stay under {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
