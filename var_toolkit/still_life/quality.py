"""Quality of drawn still lifes, by the embedded classifier: class agreement, and a Fréchet distance.

The distance is that of `vargen evaluate score --features stilllife`: between the classifier's 128 features of the
images and those of new renderings. Neither needs a network connection or torch-fidelity.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from var_toolkit.evaluation.fingerprint import fingerprint
from var_toolkit.evaluation.frechet import Statistics, frechet_distance
from var_toolkit.evaluation.image_sets import STILL_LIFES, FreshStillLifes
from var_toolkit.evaluation.npz_files import POOLED, open_archive, statistics_in
from var_toolkit.evaluation.reference_statistics import Origin, origin_in, write_statistics
from var_toolkit.formats.directory import load_network
from var_toolkit.registry import embedded_part
from var_toolkit.still_life.classifier import StillLifeClassifier
from var_toolkit.still_life.data_set import SIZE, VERSION, parts

BATCH = 100
ENOUGH = 10_000  # renderings to compare with; a smaller number biases a Fréchet distance upwards
WORKERS = min(4, os.cpu_count() or 1)  # processes that render
WORTH_PROCESSES = 1000  # number of renderings from which on starting processes saves time
JUDGE = "stilllife-classifier"


@dataclass(frozen=True)
class Agreement:
    """Share of images in which the classifier recognises the class, and its solid, colour and ground, from 0 to 1."""

    whole: float
    solid: float
    colour: float
    ground: float


def load_judge() -> StillLifeClassifier:
    """The embedded classifier, on the CPU."""
    judge = load_network(embedded_part(JUDGE))
    assert isinstance(judge, StillLifeClassifier)
    return judge.requires_grad_(False)


_judge = cache(load_judge)  # shared by the functions here, which never move it


def normalised(images_B3hw: Tensor) -> Tensor:
    """uint8 images as input of the classifier, float in [-1, 1]."""
    if images_B3hw.dtype != torch.uint8:
        raise ValueError(f"images are {images_B3hw.dtype}; they must be uint8, from 0 to 255")
    return images_B3hw / 127.5 - 1


@torch.inference_mode()
def agreement(images_B3hw: Tensor, labels_B: Tensor) -> Agreement:
    """Class agreement of uint8 images (B, 3, 64, 64) with the labels that they were drawn for."""
    if not len(images_B3hw) == len(labels_B) > 0:
        raise ValueError(f"there are {len(images_B3hw)} images and {len(labels_B)} labels; give one label per image")
    judge = _judge()
    found = [judge.predict(normalised(batch.cpu())) for batch in images_B3hw.split(BATCH)]
    told = torch.tensor([parts(int(label)) for label in torch.cat(found)])
    truth = torch.tensor([parts(int(label)) for label in labels_B])
    right = told == truth
    return Agreement(float(right.all(1).double().mean()), *right.double().mean(0).tolist())


def class_agreement(images_B3hw: Tensor, labels_B: Tensor) -> float:
    """Share of images whose label the classifier predicts, from 0 to 1."""
    return agreement(images_B3hw, labels_B).whole


@torch.inference_mode()
def class_probability(images_B3hw: Tensor, labels: Sequence[int]) -> Tensor:
    """The probability of each label by the classifier, (B,), of uint8 images (B, 3, 64, 64)."""
    pairs = zip(images_B3hw.split(BATCH), torch.as_tensor(labels).split(BATCH), strict=True)
    return torch.cat([_judge().probability(normalised(part), wanted) for part, wanted in pairs])


@torch.inference_mode()
def image_statistics(images_B3hw: Tensor) -> Statistics:
    """Statistics of the classifier's features of uint8 images (B, 3, 64, 64)."""
    judge = _judge()
    return Statistics.of(torch.cat([judge.features(normalised(b.cpu())) for b in images_B3hw.split(BATCH)]))


def fresh_batches(count: int, first: int = 0) -> DataLoader[Tensor]:
    """New renderings from number `first` on, uint8 in batches, drawn by several processes if there are many."""
    return DataLoader(FreshStillLifes(count, first), BATCH, num_workers=WORKERS if count > WORTH_PROCESSES else 0)


@torch.inference_mode()
def fresh_statistics(count: int = ENOUGH, *, cached: Path | None = None, first: int = 0) -> Statistics:
    """Statistics of `count` new renderings, from number `first` on; a few hundred are drawn in a second.

    With `cached` they are stored in that `.npz` file, and computed again if its count differs, or if the renderer or
    the classifier has changed. The file can also be a reference of `vargen evaluate score`.
    """
    judge = _judge()
    source = f"{count} renderings of version {VERSION} from {first}"
    origin = Origin(count, STILL_LIFES, fingerprint([torch.nn.ModuleDict({"judge": judge})]), source, (SIZE, SIZE))
    if cached is not None and (known := _cached(cached, origin)):
        return known
    found = Statistics.of(torch.cat([judge.features(normalised(b)) for b in fresh_batches(count, first)]))
    if cached is not None:
        write_statistics(cached, origin, found)
    return found


def embedded_distance(images_B3hw: Tensor, reference: Statistics | int = ENOUGH) -> float:
    """Fréchet distance of uint8 images (B, 3, 64, 64) to new renderings, given by their statistics or their number."""
    against = fresh_statistics(reference) if isinstance(reference, int) else reference
    return frechet_distance(image_statistics(images_B3hw), against)


def _cached(path: Path, origin: Origin) -> Statistics | None:
    if not path.is_file():
        return None
    try:
        with open_archive(path) as archive:
            return statistics_in(archive, POOLED) if origin_in(archive) == origin else None
    except (OSError, ValueError):  # a damaged file is replaced by rendering again
        return None
