"""Measure a set of images: FID, spatial FID, Inception Score, KID, precision and recall."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from var_toolkit.cli.options import at_least

SUMMARY = "compute FID and other scores of a set of images against a reference"
FEATURES = ("inception", "stilllife")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen evaluate score`."""
    parser.add_argument("--images", metavar="DIR|NPZ", help="a folder of images, or an .npz (arr_0)")
    parser.add_argument(
        "--reference",
        required=True,
        metavar="DIR|NPZ|stilllife",
        help="the images to compare with: a folder or an .npz as for --images, an .npz with statistics (mu and sigma), "
        "or stilllife, which renders as many still lifes as there are images; in a folder with images of several "
        "sizes, the middle square of each is used",
    )
    parser.add_argument(
        "--features",
        choices=FEATURES,
        help="the feature extractor; only inception gives FID (default: stilllife with --reference stilllife, else "
        "inception)",
    )
    parser.add_argument(
        "--inception-weights", metavar="FILE", help="torch-fidelity's weight file (default: downloaded once)"
    )
    parser.add_argument("-n", type=at_least(2), metavar="N", help="score only N of the images (default: all)")
    parser.add_argument(
        "--save-statistics",
        metavar="FILE.npz",
        help="write the statistics of the reference to a file that --reference accepts; without --images nothing else "
        "is done",
    )
    parser.add_argument(
        "--save-features",
        action="store_true",
        help="also store the features of the reference there, which KID, precision and recall need (8 kB per image)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    from var_toolkit.evaluation.scores import score, summarise

    shared: dict[str, Any] = {
        "features": args.features,
        "inception_weights": args.inception_weights,
        "save_features": args.save_features,
        "progress": True,
    }
    if args.images is None:
        if args.save_statistics is None or args.n is not None:
            raise ValueError("--images is missing; it may be omitted only with --save-statistics and without -n")
        path = summarise(args.reference, args.save_statistics, **shared)
        print(json.dumps({"statistics": str(path)}) if args.json else f"{path}: statistics of {args.reference}")
        return
    scores = score(
        args.images,
        args.reference,
        count=args.n,
        save_statistics=args.save_statistics,
        on_note=lambda text: print(f"note: {text}", file=sys.stderr),
        **shared,
    )
    report = scores.report()
    if args.json:
        print(json.dumps(report, allow_nan=False))
        return
    for line in _lines(report):
        print(line)


def _lines(report: dict[str, Any]) -> list[str]:
    images, reference, sampling = report["images"], report["reference"], report["sampling"] or {}
    many = f"{reference['count']} images" if reference["count"] else ""
    against = f"statistics{' of ' * bool(many)}{many}" if reference["kind"] == "statistics" else many
    published = (report["published"] or {}).get("fid")
    lines = [
        f"images       {images['source']} ({images['count']} images of {images['pixels']})",
        f"reference    {reference['source']} ({against})",
        f"features     {report['features']}: {report['extractor']}",
        *(
            f"{key.replace('_', ' '):12} {value}"
            for key, value in sampling.items()
            if not isinstance(value, dict | list)
        ),
        "",
    ]
    for key, name in report["names"].items():
        value = report[key]
        text = "-" if value is None else f"{max(value, 0):.5f}"
        beside = f"   published {published:g}" if key == "fid" and published else ""
        lines.append(f"{name:16} {text:>12}{_about_kernel(value) if key == 'kid' else beside}")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return [*lines, "", f"{versions}; {report['device']}"]


def _about_kernel(value: float | None) -> str:
    """A remark printed beside a KID: its value times 1000, or why it is printed as 0."""
    if value is None:
        return ""
    if value < 0:
        return f"   estimate {value:.3g}: unbiased, so nearly equal sets give values around 0, also negative ones"
    return f"   times 1000: {1000 * value:.5g}"
