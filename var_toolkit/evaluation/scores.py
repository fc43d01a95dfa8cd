"""FID, spatial FID, Inception Score, KID, precision and recall of a set of images against another one.

torch-fidelity computes the features, and from them the Inception Score, KID, precision and recall. The differences:

* The Inception Score is computed over all images at once. The average over blocks, as published evaluators have it,
  depends on the order of the images: the same 50,000 ImageNet samples give 62 in class order and 298 shuffled.
* Precision and recall use at most 10,000 images of the reference, as the ADM evaluator does.
* The Fréchet distance is ours (see `frechet`), in float64; features go into KID, precision and recall as float64 too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import var_toolkit
from var_toolkit.data.worker_batches import worker_batches
from var_toolkit.evaluation.fingerprint import fingerprint
from var_toolkit.evaluation.frechet import Statistics, frechet_distance
from var_toolkit.evaluation.image_sets import (
    STILL_LIFES,
    FreshStillLifes,
    ImageArray,
    ImageSet,
    Part,
    chosen,
    open_images,
    open_reference,
)
from var_toolkit.evaluation.reference_statistics import Origin, check_statistics_file, write_statistics
from var_toolkit.evaluation.score_notes import ALL_CLASSES, NEIGHBOURS, doubt, pixels
from var_toolkit.progress import Progress

FEATURES = ("inception", "stilllife")
METRICS = ("fid", "sfid", "isc", "kid", "precision", "recall")
# FID and its relatives are defined on Inception features, so figures of another network have other names.
NAMES = {
    "inception": dict(
        zip(METRICS, ("FID", "spatial FID", "Inception Score", "KID", "precision", "recall"), strict=True)
    ),
    "stilllife": dict(
        zip(
            METRICS,
            ("distance", "spatial distance", "classifier score", "kernel distance", "precision", "recall"),
            strict=True,
        )
    ),
}
ENOUGH_FOR_MANIFOLD = 10_000  # images of the reference, for precision and recall
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID: its average over this many random subsets of this size
BATCH = 64
DISTANCES = 500  # rows of the distance matrix in memory at a time
WORKERS, WORTH_PROCESSES = 4, 1000  # loading processes, and the number of images from which on they are used

# Written into every report, because each of these names has several definitions in the literature.
DEFINITIONS = {
    "isc": "over all images at once, so that their order does not matter",
    "kid": f"polynomial kernel of degree 3, unbiased, mean over {SUBSETS} subsets of at most {SUBSET_SIZE} images; not "
    "multiplied by 1000, as papers often print it; about 0, or slightly negative, where the sets hardly differ",
    "precision": f"k = {NEIGHBOURS}, at most {ENOUGH_FOR_MANIFOLD} images of the reference",
    "recall": f"k = {NEIGHBOURS}, at most {ENOUGH_FOR_MANIFOLD} images of the reference",
}


@dataclass(frozen=True)
class Scores:
    """The six figures and the settings they were measured with; `notes` say why a figure is None.

    With still-life features `NAMES` has their proper names: `fid` is then a Fréchet distance, but not FID.
    """

    fid: float | None
    sfid: float | None
    isc: float | None
    kid: float | None
    precision: float | None
    recall: float | None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        """Figures and settings as one dictionary that can be written as JSON."""
        return {**{name: getattr(self, name) for name in METRICS}, **self.settings, "notes": list(self.notes)}


def score(
    images: str | Path,
    reference: str | Path,
    *,
    features: str | None = None,
    inception_weights: str | Path | None = None,
    count: int | None = None,
    save_statistics: str | Path | None = None,
    save_features: bool = False,
    progress: bool = False,
    on_note: Callable[[str], object] | None = None,
) -> Scores:
    """Measure images against a reference.

    Args:
        images: a folder of images (folders in it are searched too), or an `.npz` with `arr_0`.
        reference: likewise; an `.npz` may also hold `mu`, `sigma`, `mu_s` and `sigma_s`, with images or without;
            or "stilllife", for new renderings that no training has seen.
        features: "inception" or "stilllife"; by default those of the reference's statistics if they are stored with
            their name, "stilllife" against the reference of that name, else "inception".
        inception_weights: torch-fidelity's weight file; by default it is downloaded once.
        count: the number of images to measure, the same ones every time; default all.
        save_statistics: write the statistics of the reference to this `.npz`, which can be used in its place.
        save_features: also store the features of the reference, which KID, precision and recall need.
        progress: show progress on standard error.
        on_note: called with each note as soon as it is known, mostly before the long work.

    Raises:
        ValueError: in one line, before the long work, for a set that cannot be measured.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if on_note is not None:
            on_note(text)

    drawn = open_images(images, count)
    square = drawn.size is not None and drawn.size[0] == drawn.size[1]
    truth = open_reference(reference, drawn.count, drawn.size[0] if drawn.size and square else None)
    kind = _kind(features, reference, truth, inception_weights)
    from var_toolkit.evaluation.extractors import KINDS  # which takes seconds

    facts = KINDS[kind]
    _refuse((drawn, truth), truth, kind, facts)
    saving = _saving(save_statistics, save_features, truth)
    extractor, digest = _extractor(kind, inception_weights, truth)
    doubt(drawn, truth, facts, NAMES[kind], note)
    theirs = _published(drawn, truth, note) if kind == "inception" else None
    measured = _extracted(extractor, drawn, progress)
    against = _extracted(extractor, _needed(truth), progress) if truth.count else None
    pooled, spatial = (truth.statistics or _statistics(against, "pooled"), _spatial(truth, against))
    if saving is not None and against is not None:
        _save(saving, truth, kind, digest, against, save_features)
    figures = {
        "fid": _distance(measured["pooled"], pooled),
        "sfid": _distance(measured["spatial"], spatial),
        "isc": _inception_score(measured["logits"]),
    }
    figures |= _compared(measured["pooled"], against["pooled"] if against else truth.features, truth.shuffled)
    settings = _settings(drawn, truth, kind, facts.summary, theirs, digest)
    return Scores(**figures, settings=settings, notes=tuple(notes))


def summarise(
    reference: str | Path,
    out: str | Path,
    *,
    features: str | None = None,
    inception_weights: str | Path | None = None,
    side: int | None = None,
    save_features: bool = False,
    progress: bool = False,
) -> Path:
    """Write the statistics of a reference to an `.npz`, without measuring anything; arguments as in `score`.

    `side`: crop images of several sizes to squares of this many pixels.
    """
    truth = open_reference(reference, ENOUGH_FOR_MANIFOLD, side)
    kind = _kind(features, reference, truth, inception_weights)
    from var_toolkit.evaluation.extractors import KINDS  # which takes seconds

    _refuse((truth,), truth, kind, KINDS[kind])
    saving = _saving(out, save_features, truth)
    assert saving is not None
    extractor, digest = _extractor(kind, inception_weights, truth)
    _save(saving, truth, kind, digest, _extracted(extractor, truth, progress), save_features)
    return saving


def _kind(features: str | None, reference: str | Path, truth: ImageSet, weights: str | Path | None) -> str:
    """The features to use."""
    stored = truth.origin.extractor if truth.origin else None
    kind = features or stored or (STILL_LIFES if str(reference) == STILL_LIFES else "inception")
    if kind not in FEATURES:
        raise ValueError(f"features is {kind!r}; it must be one of {', '.join(FEATURES)}")
    if weights is not None and kind != "inception":
        raise ValueError(f"weights of Inception are given, but the features are {kind!r}")
    if stored not in (None, kind):
        raise ValueError(f"{truth.source} holds statistics of {stored} features, not of {kind} features")
    return kind


def _saving(path: str | Path | None, with_features: bool, truth: ImageSet) -> Path | None:
    """The file for the statistics of the reference; None if they are not saved."""
    if path is None:
        if with_features:
            raise ValueError("save_features is for a file of statistics; give save_statistics as well")
        return None
    if truth.statistics is not None:
        raise ValueError(f"{truth.source} holds statistics already; save_statistics takes a reference of images")
    check_statistics_file(Path(path))
    return Path(path)


def _extractor(kind: str, weights: str | Path | None, truth: ImageSet) -> tuple[Any, str]:
    """The extractor and the hash of its weights; ValueError if the reference's statistics are of other weights."""
    from var_toolkit.evaluation.extractors import create

    extractor = create(kind, None if weights is None else Path(weights), cuda=torch.cuda.is_available())
    digest, stored = fingerprint([extractor]), truth.origin.extractor_hash if truth.origin else None
    if stored not in (None, digest):
        raise ValueError(
            f"{truth.source} holds statistics of {kind} features with the weights {stored}, not {digest}; compute them "
            "again with --save-statistics"
        )
    return extractor, digest


def _save(path: Path, truth: ImageSet, kind: str, digest: str, found: dict[str, Tensor], with_features: bool) -> None:
    """Write the statistics of the reference."""
    classes = ALL_CLASSES if isinstance(truth.images, FreshStillLifes) else (truth.settings or {}).get("classes")
    origin = Origin(
        truth.count, kind, digest, truth.source, truth.size, classes if isinstance(classes, str) else "", truth.shuffled
    )
    pooled, spatial = Statistics.of(found["pooled"]), Statistics.of(found["spatial"])
    write_statistics(path, origin, pooled, spatial, found["pooled"] if with_features else None)


def _refuse(sets: tuple[ImageSet, ...], truth: ImageSet, kind: str, facts: Any) -> None:
    """ValueError for what cannot be measured."""
    for found in sets:
        if found.images is not None and found.count < 2:
            raise ValueError(f"{found.source} holds {found.count} image; a covariance takes 2 or more")
        if facts.side and found.size not in (None, (facts.side, facts.side)):
            raise ValueError(
                f"{found.source} holds images of {pixels(found)}; {kind} features take {facts.side}x{facts.side}"
            )
    for told, length in ((truth.statistics, facts.pooled), (truth.spatial, facts.spatial)):
        if told is not None and len(told.mu) != length:
            raise ValueError(
                f"{truth.source} holds statistics of {len(told.mu)} features; {kind} features are {length}: "
                "it was made with another extractor"
            )


def _published(drawn: ImageSet, truth: ImageSet, note: Callable[[str], None]) -> dict[str, float] | None:
    """The authors' figures; None, with a note, if they are for other settings."""
    from var_toolkit.evaluation.published import published  # which takes all of the networks

    evaluators = truth.statistics is not None and truth.origin is None
    found, differing = published(drawn.settings, measured=drawn.count, evaluators=evaluators)
    if differing:
        note(f"published figures are left out, which are of something else: {'; '.join(differing)}")
    return found


def _needed(truth: ImageSet) -> ImageSet:
    """The images of the reference that are needed; with statistics, only those for precision and recall."""
    if truth.statistics is None or truth.count <= ENOUGH_FOR_MANIFOLD:
        return truth
    return ImageSet(truth.source, Part(truth.images, list(range(ENOUGH_FOR_MANIFOLD))), truth.size)


@torch.no_grad()
def _extracted(extractor: Any, found: ImageSet, progress: bool) -> dict[str, Tensor]:
    """The features of every image, on the CPU: each (N, C)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processes = 0 if isinstance(found.images, ImageArray) or found.count < WORTH_PROCESSES else WORKERS
    made: dict[str, list[Tensor]] = {name: [] for name in extractor.features_list}
    rows = [range(at, min(at + BATCH, found.count)) for at in range(0, found.count, BATCH)]
    with Progress(found.count, "images", what=found.source, active=progress, leave=False) as bar:
        for (batch,) in worker_batches(found.images, rows, workers=processes, pin=device.type == "cuda"):
            for name, values in zip(made, extractor(batch.to(device, non_blocking=True)), strict=True):
                made[name].append(values.cpu())
            bar.update(len(batch))
    return {name: torch.cat(values) for name, values in made.items()}


def _spatial(truth: ImageSet, against: dict[str, Tensor] | None) -> Statistics | None:
    """The spatial statistics; never from images beside statistics, which are only a sample of the reference."""
    return truth.spatial if truth.statistics else _statistics(against, "spatial")


def _statistics(found: dict[str, Tensor] | None, layer: str) -> Statistics | None:
    return Statistics.of(found[layer]) if found else None


def _distance(features: Tensor, reference: Statistics | None) -> float | None:
    return frechet_distance(Statistics.of(features), reference) if reference else None


def _inception_score(logits: Tensor) -> float:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return float(isc_features_to_metric(logits, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN])


def _compared(features: Tensor, against: Tensor | None, shuffled: bool) -> dict[str, float | None]:
    """KID, precision and recall."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    found: dict[str, float | None] = dict.fromkeys(("kid", "precision", "recall"))
    if against is None:
        return found
    features, against = features.double(), against.double()
    size = min(SUBSET_SIZE, len(features), len(against))
    quiet = {"verbose": False}
    kid = kid_features_to_metric(features, against, kid_subsets=SUBSETS, kid_subset_size=size, **quiet)
    found["kid"] = kid[KEY_METRIC_KID_MEAN]
    if min(len(features), len(against)) > NEIGHBOURS:
        prc = prc_features_to_metric(
            features,
            manifold_part(against, shuffled),
            prc_neighborhood=NEIGHBOURS,
            prc_batch_size=DISTANCES,
            save_cpu_ram=True,  # the distance matrix in parts
            **quiet,
        )
        found |= {"precision": prc[KEY_METRIC_PRECISION], "recall": prc[KEY_METRIC_RECALL]}
    return found


def manifold_part(against: Tensor, shuffled: bool) -> Tensor:
    """The rows of the reference for precision and recall: the first 10,000 of an evaluator's file, as in ADM.

    Rows of a folder or of renderings are in class order, so a random sample of them is used.
    """
    if len(against) <= ENOUGH_FOR_MANIFOLD:
        return against
    return against[:ENOUGH_FOR_MANIFOLD] if shuffled else against[chosen(len(against), ENOUGH_FOR_MANIFOLD)]


def _settings(
    drawn: ImageSet, truth: ImageSet, kind: str, summary: str, figures: dict[str, float] | None, digest: str
) -> dict[str, Any]:
    import torch_fidelity

    return {
        "features": kind,
        "extractor": summary,
        "extractor_hash": digest,
        "names": NAMES[kind],
        "images": {"source": drawn.source, "count": drawn.count, "pixels": pixels(drawn)},
        "reference": {
            "source": truth.source,
            "kind": _reference_kind(truth),
            "count": truth.origin.count if truth.origin else truth.count,
            "pixels": pixels(truth) if truth.size else None,
        },
        "sampling": drawn.settings,
        "published": figures,
        "definitions": DEFINITIONS,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "versions": {
            "torch": torch.__version__,
            "torch_fidelity": torch_fidelity.__version__,
            "var_toolkit": var_toolkit.__version__,
        },
    }


def _reference_kind(truth: ImageSet) -> str:
    if isinstance(truth.images, FreshStillLifes):
        return "fresh still lifes"
    if truth.statistics is not None:
        return "statistics and images" if truth.count else "statistics"
    return "images"
