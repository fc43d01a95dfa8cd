"""`vargen`: the command line. Thin: what it does, Python users can do too.

A command is a module here with `SUMMARY`, `add_arguments` and `run`; nothing heavy is imported before `run`. Here even
the parser is imported late, so that Ctrl-C ends in one line from the first moment on.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from typing import Any

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Bad input ends in one line on standard error and status 2.

    Status 1 with one line means that the input was good and the computation failed.
    """
    try:
        from var_toolkit.cli.parsing import parse

        words = sys.argv[1:] if argv is None else list(argv)
        return _run(parse(words), words)
    except KeyboardInterrupt:
        print("vargen: interrupted", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from var_toolkit.cli.parsing import parser

    return parser()


@contextmanager
def _notes() -> Iterator[None]:
    """Warnings of this package, which Python users can filter, as one line each."""
    import warnings

    others = warnings.showwarning

    def show(message: Any, category: Any, filename: str, *rest: Any, **more: Any) -> None:
        if category is UserWarning and os.path.dirname(__file__).removesuffix("cli") in filename:
            print(f"note: {message}", file=sys.stderr)
        else:
            others(message, category, filename, *rest, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _output_is_closed() -> bool:
    """Whether the reader of standard output has gone (`vargen models | head`), rather than that of another pipe."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Keeps the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    """Run the command that was parsed from some words."""
    prog = arguments.leaf.prog
    try:
        from var_toolkit.user_folders import settle_user

        settle_user()
        if getattr(arguments, "own_family", None):
            from var_toolkit.registry import add_family

            add_family(arguments.own_family)
        with _notes():
            status: int = arguments.run(arguments) or 0
        sys.stdout.flush()  # here, where a full disk or a reader that has gone can still be told
        return status
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 0
        where = f"{error.filename}: " if error.filename else ""
        print(f"{prog}: {where}{error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    except FloatingPointError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return FAILED
    except (MemoryError, RuntimeError) as error:
        from var_toolkit.cli.memory import REMEDY, ran_out_of_memory

        if not ran_out_of_memory(error):
            raise
        print(f"{prog}: {REMEDY}", file=sys.stderr)
        return FAILED
    except ValueError as error:
        from var_toolkit.cli.parsing import as_typed

        print(f"{prog}: {as_typed(' '.join(str(error).split()), arguments.leaf, words)}", file=sys.stderr)
        return BAD_INPUT
