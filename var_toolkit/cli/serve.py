"""An HTTP server in the form of OpenAI's image API; SIGTERM or Ctrl-C ends it once accepted requests are answered."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from var_toolkit.cli.demo import end_drawing
from var_toolkit.cli.options import add_machine_options, at_least
from var_toolkit.registry import DEFAULT

SUMMARY = "an HTTP server in the form of OpenAI's image API"
KEY = "VARGEN_API_KEY"  # in the environment
SHORTEST_KEY = 8  # characters
NEEDED = ("fastapi", "uvicorn", "multipart", "prometheus_client")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen serve`."""
    parser.add_argument(
        "--model",
        action="append",
        help="a name from `vargen models`, a model directory, or a hub id; several times for several models, of which "
        f"the first is the default of requests (default {DEFAULT})",
    )
    add_machine_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=at_least(1), default=8000, help="port to listen on (default 8000)")
    parser.add_argument(
        "--batch", type=at_least(1), default=16, metavar="N", help="images drawn together at most (default 16)"
    )
    parser.add_argument(
        "--queue",
        type=at_least(1),
        default=128,
        metavar="N",
        help="images that may wait; requests beyond are answered 429 (default 128)",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"keys, one a line, of which requests must send one; or one key in the variable {KEY}",
    )


def run(args: argparse.Namespace) -> None:
    """Take the port, check the models, load them, serve."""
    if not all(map(_is_installed, NEEDED)):
        raise ValueError("the server needs FastAPI and others; pip install 'var_toolkit[serve]'")
    keys = _keys(args.api_key_file)
    from var_toolkit.listening import address, listening, trusted_hosts

    with listening(args.host, args.port) as on:
        hosts = trusted_hosts(on, args.host)
        from var_toolkit.devices import find_device
        from var_toolkit.precision import precision_of
        from var_toolkit.serving.app import build
        from var_toolkit.serving.models import served, shapes
        from var_toolkit.serving.process import serve
        from var_toolkit.serving.service import Service

        precision_of(args.dtype, find_device(args.device))  # raises ValueError before anything is read
        found = shapes(args.model or [DEFAULT])
        models = {name: served(name, shape, device=args.device, dtype=args.dtype) for name, shape in found.items()}
        service = Service(models, queue=args.queue, batch=args.batch)
        if not keys and hosts == ["*"]:
            print("note: anybody who reaches this machine can draw; give --api-key-file", file=sys.stderr)
        app = build(service, keys=keys, hosts=["*"] if keys else hosts)
        service.start()
        print(f"vargen serve: {address(on, args.host)} (Ctrl-C ends it)", flush=True)
        serve(app, service, on)
        end_drawing(service)


def _is_installed(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except ValueError:  # of a module that was made missing
        return False


def _keys(file: Path | None) -> list[str]:
    """The API keys; none if there is neither a file nor the variable. ValueError in one line for a file without any."""
    if file is None:
        found = [os.environ[KEY].strip()] if os.environ.get(KEY) else []
        where = f"the variable {KEY}"
    else:
        where = f"--api-key-file {file}"
        # What is no UTF-8 becomes characters that no key may have, about which a complaint names the file.
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{where} is empty; write a key into it, one a line")
    if any(len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() for key in found):
        raise ValueError(f"{where} has a key that is too short or not ASCII; use {SHORTEST_KEY} characters or more")
    return found
