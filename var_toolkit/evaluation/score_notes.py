"""Notes on what a score cannot be compared with, given before the long work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from var_toolkit.evaluation.image_sets import FreshStillLifes, ImageSet

NEIGHBOURS = 3  # of precision and recall
ALL_CLASSES = "0-999"  # as `settings.json` writes it


def doubt(drawn: ImageSet, truth: ImageSet, facts: Any, names: dict[str, str], note: Callable[[str], None]) -> None:
    """Note the figures that cannot be measured or that are unreliable."""
    for skipped in dict.fromkeys((drawn.skipped, truth.skipped)):
        if skipped:
            note(skipped)
    for found in (drawn, truth):
        count = found.origin.count if found.origin else 0 if found.statistics else found.count
        lacking = [names[key] for key, length in (("fid", facts.pooled), ("sfid", facts.spatial)) if count <= length]
        if count and lacking:
            note(
                f"{', '.join(lacking)}: {count} images of {found.source} are too few for {facts.pooled} pooled "
                f"and {facts.spatial} spatial features; compare only with figures of as many images"
            )
    if drawn.size and truth.size and drawn.size != truth.size:
        note(f"images are {pixels(drawn)}, those of the reference {pixels(truth)}: published figures are of one size")
    if truth.statistics is not None and truth.spatial is None:
        note(f"{names['sfid']}: the reference has no mu_s and sigma_s")
    _doubt_whole(drawn, note)
    _doubt_classes(drawn, truth, note)
    comparing = ", ".join(names[key] for key in ("kid", "precision", "recall"))
    if not truth.compared:
        way_out = "; write them with --save-features" if truth.origin else ""
        note(f"{comparing}: these need the images or features of the reference, which has statistics alone{way_out}")
    elif min(drawn.count, truth.compared) <= NEIGHBOURS:
        note(f"precision, recall: these need more than {NEIGHBOURS} images of each set")


def _doubt_whole(drawn: ImageSet, note: Callable[[str], None]) -> None:
    """Note that the set is incomplete: `vargen evaluate sample` planned more images."""
    planned = (drawn.settings or {}).get("images")
    if isinstance(planned, int) and drawn.count < planned:
        note(f"images: {drawn.count} of the {planned} images that their settings.json plans are measured")


def _doubt_classes(drawn: ImageSet, truth: ImageSet, note: Callable[[str], None]) -> None:
    """Note classes that differ from those of the reference, or that are not equally frequent."""
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
        fewest = 0  # some class has no image
    if fewest < most:
        note(f"images hold {fewest} to {most} images of a class; a whole set holds every class equally often")


def pixels(found: ImageSet) -> str:
    """Width and height of the images, 0x0 if unknown."""
    height, width = found.size or (0, 0)
    return f"{width}x{height}"
