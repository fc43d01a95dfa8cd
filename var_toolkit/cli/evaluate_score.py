"""Measure a set of images: FID, spatial FID, Inception Score, KID, precision and recall."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from var_toolkit.cli.options import at_least

SUMMARY = "FID and the other figures of a set of images, against a reference"
FEATURES = ("inception", "stilllife")
ROWS = {
    "fid": "FID",
    "sfid": "spatial FID",
    "isc": "Inception Score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen evaluate score`."""
    parser.add_argument("--images", required=True, metavar="DIR|NPZ", help="a folder of images, or an .npz (arr_0)")
    parser.add_argument(
        "--reference",
        required=True,
        metavar="DIR|NPZ|stilllife",
        help="likewise; a folder of several sizes is cut to squares; an .npz may hold mu and sigma; "
        "stilllife: as many fresh renderings",
    )
    parser.add_argument(
        "--features", choices=FEATURES, help="default: stilllife against fresh still lifes, else inception"
    )
    parser.add_argument("--inception-weights", metavar="FILE", help="torch-fidelity's weights; default: download once")
    parser.add_argument("-n", type=at_least(2), metavar="N", help="measure N of the images (default all)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    from var_toolkit.evaluation.scores import score

    scores = score(
        args.images,
        args.reference,
        features=args.features,
        inception_weights=args.inception_weights,
        count=args.n,
        progress=sys.stderr.isatty(),
        on_note=lambda text: print(f"note: {text}", file=sys.stderr),
    )
    report = scores.report()
    if args.json:
        print(json.dumps(report, allow_nan=False))
        return
    for line in _lines(report):
        print(line)


def _lines(report: dict[str, Any]) -> list[str]:
    images, reference, sampling = report["images"], report["reference"], report["sampling"] or {}
    against = f" ({reference['count']} images)" if reference["count"] else " (statistics)"
    published = (report["published"] or {}).get("fid")
    lines = [
        f"images       {images['source']} ({images['count']} images of {images['pixels']})",
        f"reference    {reference['source']}{against}",
        f"features     {report['features']}: {report['extractor']}",
        *(
            f"{key.replace('_', ' '):12} {value}"
            for key, value in sampling.items()
            if not isinstance(value, dict | list)
        ),
        "",
    ]
    for key, name in ROWS.items():
        value = report[key]
        text = "-" if value is None else f"{value:.5f}"
        lines.append(f"{name:16} {text:>12}" + (f"   published {published:g}" if key == "fid" and published else ""))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return [*lines, "", f"{versions}; {report['device']}"]
