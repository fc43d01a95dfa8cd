"""List the classes that a model draws: label, name, and other names that `--class` takes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from var_toolkit.cli.hints import unnamed
from var_toolkit.cli.options import add_model_option
from var_toolkit.conditions.class_names import CLASSES, ClassNames, class_names
from var_toolkit.registry import find_entry

SUMMARY = "list the classes that a model draws"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen classes`."""
    parser.add_argument("pattern", nargs="?", help='words of a name, such as retriever, or a pattern such as "red*"')
    add_model_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Print the classes that match, one per line."""
    names, note = _names(args.model)
    labels = range(len(names)) if args.pattern is None else names.matching(args.pattern)
    if not labels:
        raise ValueError(_nothing(names, args.pattern, args.model))
    rows = [names.row(label) for label in labels]
    if args.json:
        facts = {"model": args.model, "named": names.named is not None, "note": note, "classes": rows}
        print(json.dumps(facts | _still_life_words(names)))
        return
    if note is not None:
        print(f"{args.model}: {note}")
    if names.named is None:
        return
    for what, words in _still_life_words(names).items() if args.pattern is None else ():
        print(f"{what:8} {', '.join(words)}")
    for row in rows:
        others = ", ".join([*row["synonyms"], *([row["synset"]] if row["synset"] else [])])
        print(f"{row['label']:>5}  {row['name']:30} {others}".rstrip())


def _names(model: str) -> tuple[ClassNames, str | None]:
    """The names of a model's classes, and a note if it has none."""
    known = find_entry(model)
    if known is not None and known.draws and not Path(model).is_dir():
        return class_names(known.class_names, CLASSES), None  # at once, without torch
    from var_toolkit.loading import skeleton

    pipe = skeleton(model)
    names = pipe.class_names
    return names, None if names.named is not None else unnamed(names, pipe.facts)


def _still_life_words(names: ClassNames) -> dict[str, list[str]]:
    """The words that make up the names of still lifes; label = 100 * solid + 10 * colour + ground."""
    if names.named != "still-lifes":
        return {}
    from var_toolkit.still_life.names import COLOURS, GROUNDS, SOLIDS

    return {"solids": list(SOLIDS), "colours": list(COLOURS), "grounds": list(GROUNDS)}


def _nothing(names: ClassNames, pattern: str, model: str) -> str:
    """The error for a pattern that no class matches, with the classes that exist."""
    if names.named is None:
        return f"no class matches {pattern!r}: {model} has no class names; its labels are 0 to {len(names) - 1}"
    near = names.nearest(pattern)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return (
        f"no class of {model} matches {pattern!r}; {hint}{names.elsewhere(pattern)}there are {len(names)} classes, "
        f"such as {names.name(min(207, len(names) - 1))!r}; `vargen classes --model {model}` lists all"
    )
