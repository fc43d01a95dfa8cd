"""Upload a model to the Hugging Face hub, with a model card that describes it and the origin of its weights."""

from __future__ import annotations

import argparse
import json

from var_toolkit.cli.options import DTYPES

SUMMARY = "upload a model to the Hugging Face hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen push`."""
    parser.add_argument("model", metavar="MODEL", help="a model directory, such as final/ of a training run, or a name")
    parser.add_argument(
        "repository", metavar="USER/NAME", help="the repository on the hub; created if it does not exist"
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch other than main; created if it does not exist")
    parser.add_argument(
        "--license", metavar="ID", help="the licence of weights that have none yet, by its name on the hub, such as mit"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="precision of the stored weights (default float32)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Check the model's configuration and that an upload is possible, then load and upload."""
    import torch

    from var_toolkit.formats.hub import may_upload
    from var_toolkit.loading import load, skeleton

    skeleton(args.model)
    may_upload(args.repository)  # before anything large is downloaded or read

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
    from var_toolkit.formats.hub import with_revision

    return with_revision(args.repository, args.revision)
