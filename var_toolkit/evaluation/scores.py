"""FID, spatial FID, Inception Score, KID, precision and recall of a set of images against another one.

torch-fidelity computes the features, and from them the Inception Score, KID, precision and recall. What is done
otherwise than there, and why:

* The Inception Score is taken over all images at once. Averaged over blocks, as published evaluators do, it depends
  on the order of the images: the same 50,000 ImageNet samples give 62 in the order of their classes and 298 shuffled.
* Precision and recall use at most 10,000 images of the reference, as the ADM evaluator does.
* The Fréchet distance is ours (see `frechet`), in float64; features go into KID, precision and recall as float64 too.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import var_toolkit
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

FEATURES = ("inception", "stilllife")
METRICS = ("fid", "sfid", "isc", "kid", "precision", "recall")
NEIGHBOURS = 3
ENOUGH_FOR_MANIFOLD = 10_000  # images of the reference, for precision and recall
ALL_CLASSES = "0-999"  # in the words of `settings.json`
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID: its average over this many random subsets of this size
BATCH = 64
DISTANCES = 500  # rows of the distance matrix that are held at a time
WORTH_PROCESSES = 1000  # images for which loading processes are worth their start

# Written into every report, since each of these names has several meanings in the field.
DEFINITIONS = {
    "isc": "over all images at once, so that their order does not matter",
    "kid": f"polynomial kernel of degree 3, mean over {SUBSETS} subsets of at most {SUBSET_SIZE} images",
    "precision": f"k = {NEIGHBOURS}, at most {ENOUGH_FOR_MANIFOLD} images of the reference",
    "recall": f"k = {NEIGHBOURS}, at most {ENOUGH_FOR_MANIFOLD} images of the reference",
}


@dataclass(frozen=True)
class Scores:
    """The six figures (None: `notes` say why), and what they were measured with."""

    fid: float | None
    sfid: float | None
    isc: float | None
    kid: float | None
    precision: float | None
    recall: float | None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        """Everything as one object, the figures and the settings side by side; it can be written as JSON."""
        return {**{name: getattr(self, name) for name in METRICS}, **self.settings, "notes": list(self.notes)}


def score(
    images: str | Path,
    reference: str | Path,
    *,
    features: str | None = None,
    inception_weights: str | Path | None = None,
    count: int | None = None,
    progress: bool = False,
    on_note: Callable[[str], object] | None = None,
) -> Scores:
    """Measure images against a reference.

    Args:
        images: a folder of images (folders in it are searched too), or an `.npz` with `arr_0`.
        reference: likewise; an `.npz` may also hold `mu`, `sigma`, `mu_s` and `sigma_s`, with images or without;
            or "stilllife", for renderings that no training saw.
        features: "inception" or "stilllife"; by default the classifier's against still lifes, else Inception's.
        inception_weights: torch-fidelity's weight file; without it torch-fidelity's own is downloaded once.
        count: measure so many of the images, the same ones every time; default all.
        progress: show a bar for each set on standard error.
        on_note: called with each note as soon as it is known, most before the long work.

    Raises:
        ValueError: in one line, before the long work, for whatever cannot be measured.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if on_note is not None:
            on_note(text)

    kind = features or (STILL_LIFES if str(reference) == STILL_LIFES else "inception")
    if kind not in FEATURES:
        raise ValueError(f"features is {kind!r}; it must be one of {', '.join(FEATURES)}")
    if inception_weights is not None and kind != "inception":
        raise ValueError(f"weights of Inception are given, but the features are {kind!r}")
    drawn = open_images(images, count)
    square = drawn.size is not None and drawn.size[0] == drawn.size[1]
    truth = open_reference(reference, drawn.count, drawn.size[0] if drawn.size and square else None)
    from var_toolkit.evaluation.extractors import KINDS, create  # which takes seconds

    facts = KINDS[kind]
    _refuse(drawn, truth, kind, facts)
    cuda = torch.cuda.is_available()
    extractor = create(kind, None if inception_weights is None else Path(inception_weights), cuda=cuda)
    _doubt(drawn, truth, facts, note)
    theirs = _published(drawn, truth, note) if kind == "inception" else None
    measured = _extracted(extractor, drawn, cuda, progress)
    against = _extracted(extractor, _needed(truth), cuda, progress) if truth.count else None
    figures = {
        "fid": _distance(measured["pooled"], truth.statistics or _statistics(against, "pooled")),
        # Images beside statistics are a sample of those that the statistics are of: no substitute for mu_s, sigma_s.
        "sfid": _distance(measured["spatial"], truth.spatial if truth.statistics else _statistics(against, "spatial")),
        "isc": _inception_score(measured["logits"]),
    }
    figures |= _compared(measured["pooled"], against["pooled"] if against else None, truth.shuffled)
    settings = _settings(drawn, truth, kind, facts.summary, theirs, cuda)
    return Scores(**figures, settings=settings, notes=tuple(notes))


def _refuse(drawn: ImageSet, truth: ImageSet, kind: str, facts: Any) -> None:
    """ValueError for what cannot be measured."""
    for found in (drawn, truth):
        if found.images is not None and found.count < 2:
            raise ValueError(f"{found.source} holds {found.count} image; a covariance takes 2 or more")
        if facts.side and found.size not in (None, (facts.side, facts.side)):
            raise ValueError(
                f"{found.source} holds images of {_pixels(found)}; {kind} features take {facts.side}x{facts.side}"
            )
    for told, length in ((truth.statistics, facts.pooled), (truth.spatial, facts.spatial)):
        if told is not None and len(told.mu) != length:
            raise ValueError(
                f"{truth.source} holds statistics of {len(told.mu)} features; {kind} features are {length}: "
                "it was made with another extractor"
            )


def _doubt(drawn: ImageSet, truth: ImageSet, facts: Any, note: Callable[[str], None]) -> None:
    """Note what can be measured only in part, or means little."""
    for found in (drawn, truth):
        lacking = [name for name, length in (("fid", facts.pooled), ("sfid", facts.spatial)) if found.count <= length]
        if found.count and found.statistics is None and lacking:
            note(
                f"{', '.join(lacking)}: {found.count} images of {found.source} are too few for {facts.pooled} pooled "
                f"and {facts.spatial} spatial features; compare with no figure that was not taken from as many"
            )
    if drawn.size and truth.size and drawn.size != truth.size:
        note(f"images are {_pixels(drawn)}, those of the reference {_pixels(truth)}: published figures are of one size")
    if truth.statistics is not None and truth.spatial is None:
        note("sfid: the reference has no mu_s and sigma_s")
    _doubt_whole(drawn, note)
    _doubt_classes(drawn, truth, note)
    fewest = min(drawn.count, truth.count)
    if not truth.count:
        note("kid, precision, recall: the reference has statistics alone; they take images")
    elif fewest <= NEIGHBOURS:
        note(f"precision, recall: they take more than {NEIGHBOURS} images of each set")


def _doubt_whole(drawn: ImageSet, note: Callable[[str], None]) -> None:
    """Note where the images are not the whole of what `vargen evaluate sample` set out to draw."""
    planned = (drawn.settings or {}).get("images")
    if isinstance(planned, int) and drawn.count < planned:
        note(f"images: {drawn.count} of the {planned} images that their settings.json plans are measured")


def _doubt_classes(drawn: ImageSet, truth: ImageSet, note: Callable[[str], None]) -> None:
    """Note where the images are of other classes than the reference, or of some more often than of others."""
    settings = drawn.settings or {}
    classes, theirs = settings.get("classes"), (truth.settings or {}).get("classes")
    if isinstance(truth.images, FreshStillLifes):
        theirs = ALL_CLASSES
    if theirs is None and classes not in (None, ALL_CLASSES):
        note(f"images are of the classes {classes} alone; against a reference of others distances grow")
    elif classes not in (None, theirs) and theirs is not None:
        note(f"images are of the classes {classes}; against a reference of {theirs} distances grow by the difference")
    often = Counter(drawn.labels or [])
    images, per_class = settings.get("images"), settings.get("per_class")
    fewest, most = min(often.values(), default=0), max(often.values(), default=0)
    if isinstance(images, int) and isinstance(per_class, int) and len(often) * per_class < images:
        fewest = 0  # no image of some class is there
    if fewest < most:
        note(f"images hold {fewest} to {most} images of a class; a whole set holds every class equally often")


def _published(drawn: ImageSet, truth: ImageSet, note: Callable[[str], None]) -> dict[str, float] | None:
    """The authors' figures, or a note why they are left out."""
    from var_toolkit.evaluation.published import published  # which takes all of the networks

    found, differing = published(drawn.settings, measured=drawn.count, evaluators=truth.statistics is not None)
    if differing:
        note(f"published figures are left out, which are of something else: {'; '.join(differing)}")
    return found


def _pixels(found: ImageSet) -> str:
    height, width = found.size or (0, 0)
    return f"{width}x{height}"


def _needed(truth: ImageSet) -> ImageSet:
    """Where the reference brings statistics, its images serve for precision and recall alone: take what these use."""
    if truth.statistics is None or truth.count <= ENOUGH_FOR_MANIFOLD:
        return truth
    return ImageSet(truth.source, Part(truth.images, list(range(ENOUGH_FOR_MANIFOLD))), truth.size)


def _extracted(extractor: Any, found: ImageSet, cuda: bool, progress: bool) -> dict[str, Tensor]:
    """The features of every image, on the CPU: each (N, C)."""
    from torch_fidelity.utils import get_featuresdict_from_dataset

    whole_in_memory = isinstance(found.images, ImageArray)
    try:
        with warnings.catch_warnings(action="ignore"):  # four loading processes, whatever the machine has
            return get_featuresdict_from_dataset(
                found.images,
                extractor,
                BATCH,
                cuda,
                save_cpu_ram=whole_in_memory or found.count < WORTH_PROCESSES,  # which is: no loading processes
                verbose=progress,
            )
    except ValueError as error:  # one of a loading process carries that process's whole traceback
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None


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
    """The rows of the reference that precision and recall use: the first 10,000 of an evaluator's file, as ADM does.

    Those of a folder or of renderings come in the order of their classes, so there it is a random choice.
    """
    if len(against) <= ENOUGH_FOR_MANIFOLD:
        return against
    return against[:ENOUGH_FOR_MANIFOLD] if shuffled else against[chosen(len(against), ENOUGH_FOR_MANIFOLD)]


def _settings(
    drawn: ImageSet, truth: ImageSet, kind: str, summary: str, figures: dict[str, float] | None, cuda: bool
) -> dict[str, Any]:
    import torch_fidelity

    return {
        "features": kind,
        "extractor": summary,
        "images": {"source": drawn.source, "count": drawn.count, "pixels": _pixels(drawn)},
        "reference": {
            "source": truth.source,
            "kind": _reference_kind(truth),
            "count": truth.count,
            "pixels": _pixels(truth) if truth.size else None,
        },
        "sampling": drawn.settings,
        "published": figures,
        "definitions": DEFINITIONS,
        "device": "cuda" if cuda else "cpu",
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
