"""The option --out of commands that write a model directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from var_toolkit.files import check_new, check_writable


def add_new_directory_option(parser: argparse.ArgumentParser) -> None:
    """--out, a directory that does not exist yet."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the directory to write; it must not exist"
    )


def require_new_directory(out: Path) -> None:
    """ValueError in one line if it exists, or cannot be written where it is to be."""
    try:
        check_new(out)
    except ValueError as error:
        raise ValueError(f"--out {error}") from None
    check_writable(out.parent)
