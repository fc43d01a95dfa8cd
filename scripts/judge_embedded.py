"""What the embedded models reach: the tokenizer's PSNR, the classifier's accuracy, and class agreement of samples.

    python scripts/judge_embedded.py

All pictures are fresh: renderings that no training saw, and one sample a class at the models' default settings.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from var_toolkit.data.still_lifes import parts, render
from var_toolkit.evaluation.classifier import StillLifeClassifier
from var_toolkit.pipeline import Pipeline, load
from var_toolkit.zoo.directory import load_network
from var_toolkit.zoo.registry import embedded_part

FRESH_SEED = 2**41  # beyond the seeds of both splits
BATCH = 100


def fresh(count: int) -> tuple[Tensor, Tensor]:
    """Renderings in [-1, 1], (count, 3, 64, 64), and their labels."""
    labels = [i % 1000 for i in range(count)]
    return render(labels, [FRESH_SEED + i for i in range(count)]) / 127.5 - 1, torch.tensor(labels)


def psnr(pipe: Pipeline, pictures: Tensor) -> float:
    """Mean PSNR of the tokenizer's reconstructions, in dB."""
    errors = [(pipe.tokenizer.reconstruct(x) - x).square().mean((1, 2, 3)) / 4 for x in pictures.split(BATCH)]
    return float((-10 * torch.cat(errors).log10()).mean())


@torch.inference_mode()
def agreement(judge: StillLifeClassifier, pictures: Tensor, labels: Tensor) -> str:
    """Share of pictures whose label the classifier names: whole, and part by part."""
    found = torch.cat([judge.predict(x) for x in pictures.split(BATCH)])
    told = torch.tensor([parts(int(label)) for label in found])
    truth = torch.tensor([parts(int(label)) for label in labels])
    each = (told == truth).float().mean(0) * 100
    whole = (found == labels).float().mean() * 100
    return f"{whole:.1f} % (solid {each[0]:.1f}, colour {each[1]:.1f}, ground {each[2]:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["stilllife-var", "stilllife-var-small"])
    parser.add_argument("--cfg", type=float, nargs="*", default=[None], help="guidance to try; default the model's own")
    args = parser.parse_args()
    judge = load_network(embedded_part("stilllife-classifier"))
    assert isinstance(judge, StillLifeClassifier)
    pictures, labels = fresh(2000)
    print(f"classifier on 2000 fresh renderings: {agreement(judge, pictures, labels)}")
    print(f"tokenizer on the same: PSNR {psnr(load(args.models[0], device='cpu'), pictures):.2f} dB")
    for name in args.models:
        pipe = load(name, device="cpu")
        for cfg in args.cfg:
            began = time.perf_counter()
            drawn = pipe(range(1000), seeds=range(1000), guidance_scale=cfg, batch_size=BATCH, output_type="pt")
            seconds = time.perf_counter() - began
            verdict = agreement(judge, drawn.images * 2 - 1, torch.arange(1000))
            setting = "default guidance" if cfg is None else f"guidance {cfg:g}"
            print(f"{name}, {setting}: class agreement {verdict}; {1000 / seconds:.1f} pictures/s", flush=True)


if __name__ == "__main__":
    main()
