"""A page to draw, compare and edit images in the browser; Ctrl-C ends it."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from var_toolkit.cli.options import add_machine_options, add_model_option, at_least

if TYPE_CHECKING:
    from var_toolkit.demo.live import Worker
    from var_toolkit.serving.service import Service

SUMMARY = "a page to draw, compare and edit images in the browser"
PATIENCE = 5  # seconds for a layer of a large model, or a download, to end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen demo`."""
    add_model_option(parser)
    add_machine_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=at_least(1), default=7860, help="port to listen on (default 7860)")


def run(args: argparse.Namespace) -> None:
    """Take the port, load the model, serve the page."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio; pip install 'var_toolkit[demo]'")
    from var_toolkit.demo.server import serve
    from var_toolkit.listening import address, listening

    with listening(args.host, args.port) as on:
        from var_toolkit.demo.page import CSS, build, theme
        from var_toolkit.demo.studio import Studio, model_names

        studio = Studio(model_names(args.model), device=args.device, dtype=args.dtype)
        page = build(studio, args.model)
        studio.pipeline(args.model)
        print(f"vargen demo: {address(on, args.host)} (Ctrl-C ends it)", flush=True)
        serve(page, on, args.host, theme=theme(), css=CSS)
        end_drawing(studio.worker)


def end_drawing(worker: Worker | Service) -> None:
    """Wait for the drawing thread; leave without it, and past what would abort, after a while or another Ctrl-C."""
    try:
        ended = worker.end(PATIENCE)
    except KeyboardInterrupt:
        ended = False
    if not ended:
        sys.stdout.flush()
        os._exit(0)
