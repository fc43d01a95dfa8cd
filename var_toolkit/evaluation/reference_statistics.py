"""Statistics of a reference: written once, then read instead of its images.

The file is an `.npz` with `mu`, `sigma`, `mu_s` and `sigma_s` as the ADM evaluator, pytorch-fid and torch-fidelity's
`fid_statistics_to_metric` name them, in float64. Beside them stand the number of images (`count`), the extractor
(`extractor`, and `extractor_hash` of its weights), and what the images were (`source`, `size`, `classes`). KID,
precision and recall need the features themselves, which are stored as `features` (float32, N x C) on request.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from var_toolkit.evaluation.frechet import Statistics
from var_toolkit.evaluation.npz_files import POOLED, SPATIAL, Archive
from var_toolkit.files import check_writable, write_whole

FEATURES = "features"


@dataclass(frozen=True)
class Origin:
    """What statistics were computed from, and by which extractor."""

    count: int  # images
    extractor: str
    extractor_hash: str
    source: str = ""
    size: tuple[int, int] | None = None  # height and width
    classes: str = ""  # as in a set's `settings.json`; "" if unknown
    shuffled: bool = False  # whether the order of the images is random


def check_statistics_file(path: Path) -> None:
    """ValueError if the file cannot be written, or has another name than the evaluators expect."""
    if path.suffix != ".npz" or path.is_dir():
        raise ValueError(f"{path} is no name for a file of statistics; it must end in .npz and not be a folder")
    check_writable(path.parent)


def write_statistics(
    path: Path, origin: Origin, pooled: Statistics, spatial: Statistics | None = None, features: Tensor | None = None
) -> None:
    """Write the file, whole or not at all."""
    arrays: dict[str, Any] = {
        "count": np.int64(origin.count),
        "extractor": np.str_(origin.extractor),
        "extractor_hash": np.str_(origin.extractor_hash),
        "source": np.str_(origin.source),
        "size": np.array(origin.size or (0, 0), np.int64),
        "classes": np.str_(origin.classes),
        "shuffled": np.int64(origin.shuffled),
    }
    for keys, found in ((POOLED, pooled), (SPATIAL, spatial)):
        if found is not None:
            arrays |= {keys[0]: found.mu.numpy(), keys[1]: found.sigma.numpy()}
    if features is not None:
        arrays[FEATURES] = features.numpy()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would add an ending to it
            np.savez(file, **arrays)

    write_whole(path, write)


def origin_in(archive: Archive) -> Origin | None:
    """What a file says of its statistics; None for a file of another program."""
    extractor, digest = archive.text("extractor"), archive.text("extractor_hash")
    if extractor is None or digest is None:
        return None
    count, shuffled = (int(archive.numbers(name, ())) for name in ("count", "shuffled"))
    height, width = map(int, archive.numbers("size", (2,)))
    if count < 2:
        raise ValueError(f"{archive.path}: count is {count}; it must be 2 or more images")
    return Origin(
        count=count,
        extractor=extractor,
        extractor_hash=digest,
        source=archive.text("source") or "",
        size=(height, width) if height > 0 and width > 0 else None,
        classes=archive.text("classes") or "",
        shuffled=bool(shuffled),
    )


def features_in(archive: Archive, origin: Origin, pooled: Statistics | None) -> Tensor | None:
    """The features of the images, float32 (N, C); None if they were not stored."""
    if FEATURES not in archive.names:
        return None
    length = len(pooled.mu) if pooled else 0
    header = archive.header(FEATURES)
    if header.dtype != np.float32 or header.shape != (origin.count, length):
        raise ValueError(
            f"{archive.path}: {FEATURES} is {header.dtype} {header.shape}; it must be float32 {(origin.count, length)}"
        )
    features = np.array(archive.array(FEATURES))
    if not np.isfinite(features).all():
        raise ValueError(f"{archive.path}: {FEATURES} holds values that are not finite")
    return torch.from_numpy(features)
