"""Share a model on the Hugging Face hub, with a card that says what it is and where its weights come from."""

from __future__ import annotations

import argparse
import json

from var_toolkit.cli.options import DTYPES

SUMMARY = "share a model on the hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen push`."""
    parser.add_argument("model", metavar="MODEL", help="a model directory, such as the final/ of a run, or a name")
    parser.add_argument("repository", metavar="USER/NAME", help="where on the hub; made if it is missing")
    parser.add_argument("--private", action="store_true", help="if it is made, only you and whom you name see it")
    parser.add_argument("--revision", metavar="BRANCH", help="another branch than main; made if it is missing")
    parser.add_argument(
        "--license", metavar="ID", help="of weights that have none yet, as the hub names it, such as mit"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="what the weights are stored in (default float32)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """See whether the hub would listen, then load and upload."""
    from var_toolkit.zoo.hub import may_upload

    may_upload(args.repository)  # before anything large is downloaded or read
    import torch

    from var_toolkit.loading import load

    url = load(args.model, device="cpu").push_to_hub(
        args.repository,
        private=args.private or None,
        revision=args.revision,
        dtype=getattr(torch, args.dtype) if args.dtype else None,
        license=args.license,
    )
    if args.json:
        print(json.dumps({"model": args.model, "repository": args.repository, "revision": args.revision, "url": url}))
        return
    print(f"{url}: draw with `vargen sample --model {_source(args)} --class 0`")


def _source(args: argparse.Namespace) -> str:
    from var_toolkit.zoo.hub import with_revision

    return with_revision(args.repository, args.revision)
