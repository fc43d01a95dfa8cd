"""Copy a trained network into the package, in half precision or in eight bits.

python scripts/embed_weights.py runs/stilllife-var/final stilllife-var
python scripts/embed_weights.py runs/stilllife-tokenizer/final stilllife-tokenizer
python scripts/embed_weights.py runs/stilllife-tokenizer-decoder/final stilllife-tokenizer --mix 0.5
python scripts/embed_weights.py runs/scenes-tokenizer/final scenes-tokenizer --eight-bits
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from var_toolkit.formats.directory import INDEX, PARTS, load_network, save_network, write_tensors
from var_toolkit.formats.eight_bits import packed
from var_toolkit.formats.frequent_codes import FILE
from var_toolkit.formats.safetensors_files import read_safetensors
from var_toolkit.registry import WEIGHTS, Embedded

LIMIT = 48_000_000  # bytes of all embedded weights together, to keep the checkout small


@torch.no_grad()
def mix_with(network: torch.nn.Module, other: torch.nn.Module, share: float) -> None:
    """Average weights in place: `share` of `network`, the rest of `other`. Both need the same initialisation."""
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        ours.lerp_(theirs, 1 - share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path, help="the final/ folder of a training run")
    parser.add_argument("name", help="name of the folder under var_toolkit/embedded")
    parser.add_argument(
        "--part",
        choices=(*PARTS, "text_encoder"),
        default="backbone",
        help="part of a model directory to copy (default backbone)",
    )
    parser.add_argument(
        "--mix",
        type=float,
        default=1.0,
        help="share of the new weights in an average with the embedded ones (default 1)",
    )
    parser.add_argument("--eight-bits", action="store_true", help="half the size (var_toolkit.formats.eight_bits)")
    args = parser.parse_args()
    target = Embedded.folder(args.name)
    is_model = (args.network / INDEX).is_file()
    network = load_network(args.network / args.part if is_model else args.network)
    if args.mix < 1:
        mix_with(network, load_network(target), args.mix)
    shutil.rmtree(target, ignore_errors=True)
    save_network(network, target, torch.float16)
    if (args.network / FILE).is_file():
        shutil.copy(args.network / FILE, target)
    if args.eight_bits:
        write_tensors(target / WEIGHTS, packed(read_safetensors(target / WEIGHTS)))
    total = sum(path.stat().st_size for path in target.parent.rglob("*.safetensors"))
    count = sum(p.numel() for p in network.parameters())
    print(f"{target}: {count / 1e6:.2f} M parameters; all embedded weights {total / 1e6:.1f} MB")
    if total > LIMIT:
        raise SystemExit(f"all embedded weights have {total / 1e6:.1f} MB; the limit is {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
