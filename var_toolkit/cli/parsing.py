"""The parser of the command line, and its errors: one line that names the input and the remedy."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import takewhile
from typing import Any, NoReturn

COMMANDS = (
    "sample", "edit", "vary", "reconstruct", "control", "embed", "models", "classes", "convert", "merge", "train",
    "evaluate", "bench", "demo", "serve", "push", "doctor",
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An argument parser with errors of one line and without abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        self.set_defaults(leaf=self)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` shows all options)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, except that unknown options are refused first, by the command that they were given to."""
        if self._subparsers is None:
            for word in takewhile(lambda word: word != "--", args or ()):
                self._require_known(word)
        found, surplus = super().parse_known_args(args, namespace)
        if surplus:
            self.error(f"unexpected argument {surplus[0]!r}")
        return found, surplus

    def _require_known(self, word: str) -> None:
        option = word.partition("=")[0]
        if not option.startswith("--") or " " in option or option in self._option_string_actions:
            return
        near = near_options(option, list(self._option_string_actions))
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        self.error(f"unknown option {option}{hint}")


def near_options(option: str, known: Sequence[str]) -> list[str]:
    """Up to three options that may have been meant: of the same letters, a longer form, or a similar spelling."""
    letters = option.strip("-").replace("_", "-").lower()
    bare = {name.strip("-"): name for name in known}
    same = [name for text, name in bare.items() if text == letters]
    longer = [name for text, name in bare.items() if len(letters) > 1 and text.startswith(letters)]
    close = [bare[text] for text in get_close_matches(letters, bare, n=3, cutoff=0.75)]
    return (same or list(dict.fromkeys(longer + close)))[:3]


def parser() -> Parser:
    """The parser of the whole command line."""
    import var_toolkit

    top = Parser(prog="vargen", description="Visual autoregressive image generation.")
    top.add_argument("--version", action="version", version=f"vargen {var_toolkit.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"var_toolkit.cli.{name}")
        command = commands.add_parser(name, help=module.SUMMARY, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
        _add_family(command)
    return top


def _add_family(command: argparse.ArgumentParser) -> None:
    """--family, of every command that has none of its own; of a command with commands, theirs."""
    inner = [action.choices for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    for each in [found for choices in inner for found in choices.values()]:
        _add_family(each)
    if not inner and "--family" not in command._option_string_actions:
        command.add_argument(
            "--family",
            dest="own_family",
            metavar="MODULE",
            help="a module with a family of models of your own, on Python's path or in the current folder; it is run",
        )


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; its mistakes end the program with status 2."""
    top = parser()
    first = words[0] if words else ""
    if words and not first.startswith("-") and first not in COMMANDS:
        near = get_close_matches(first, COMMANDS, n=1, cutoff=0.7)
        top.error(f"{first!r} is not a command; {f'did you mean {near[0]}?' if near else f'use {_listed()}'}")
    arguments = top.parse_args(words)
    if arguments.command is None:
        top.error(f"give a command: {_listed()}")
    return arguments


def _listed() -> str:
    return ", ".join(COMMANDS)


def as_typed(message: str, command: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """The message of a Python error, with settings named by the options of a command: top_k becomes --top-k.

    A name of several words is replaced anywhere, one of a single word where the message begins with it and the option
    was typed. Messages about files keep the names that are used in the files.
    """
    typed = {word.partition("=")[0] for word in words}
    in_file = re.search(r"\.(json|ya?ml)\b", message)
    for action in command._actions:
        given = [option for option in action.option_strings if option in typed]
        long = [option for option in action.option_strings if option.startswith("--")]
        if not long or (in_file and not given):
            continue
        option = (given or long)[0]
        if "_" in action.dest:
            message = re.sub(rf"(?<![\w/.-]){action.dest}\b(?!/)", option, message)
        elif given:
            message = re.sub(rf"^{action.dest}\b", option, message)
    return message
