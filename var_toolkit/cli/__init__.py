"""`vargen`: the command line. Thin: what it does, Python users can do too.

A command is a module here with `SUMMARY`, `add_arguments` and `run`; nothing heavy is imported before `run`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

COMMANDS = ("sample", "edit", "vary", "reconstruct", "models", "convert", "train", "evaluate", "bench", "demo", "push")
BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (`{self.prog} --help` shows all options)\n")


def parser() -> Parser:
    """The parser of the whole command line."""
    import var_toolkit

    top = Parser(prog="vargen", description="Visual autoregressive image generation.")
    top.add_argument("--version", action="version", version=f"vargen {var_toolkit.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"var_toolkit.cli.{name}")
        command = commands.add_parser(name, help=module.SUMMARY, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Bad input ends in one line on standard error and status 2.

    Status 1 with a line stands for input that was good, and a computation that went wrong.
    """
    arguments = parser().parse_args(argv)
    try:
        status = arguments.run(arguments) or 0
        sys.stdout.flush()  # here, where a full disk or a reader that has gone can still be told
        return status
    except KeyboardInterrupt:
        print("vargen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`vargen models | head`); keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"vargen {arguments.command}: {where}{error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    except FloatingPointError as error:
        print(f"vargen {arguments.command}: {error}", file=sys.stderr)
        return FAILED
    except ValueError as error:
        print(f"vargen {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
