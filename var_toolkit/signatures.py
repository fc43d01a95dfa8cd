"""Show each keyword of a method with `**keywords: Unpack[Table]` in its signature and in its help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

COMMENTED = re.compile(r"    (\w+): [^#]*#\s*(.*)")  # a line of such a table


def show_keywords(method: Callable[..., Any], tables: Sequence[type], defaults: dict[str, Any]) -> None:
    """Give a method its effective signature, and one line of help for each keyword of the TypedDicts.

    The help is the comment on the key in its table. The default is None for keywords that `defaults` lacks.
    """
    hints: dict[str, Any] = {}
    for table in reversed(tables):  # from the table that others extend; their own keys are shown first
        hints = {name: hint for name, hint in get_type_hints(table).items() if name not in hints} | hints
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=hint)
        for name, hint in hints.items()
    ]
    plain = inspect.signature(method)
    own = [each for each in plain.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    method.__signature__ = plain.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
    comments = {name: text for table in tables for name, text in _comments(table)}
    lines = [f"    {name}: {comments[name]}" if name in comments else f"    {name}" for name in hints]
    method.__doc__ = "\n".join([inspect.cleandoc(method.__doc__ or ""), "", "Keywords:", *lines])


def _comments(table: type) -> list[tuple[str, str]]:
    """The comment on each key of a TypedDict; empty if its source is not available."""
    try:
        lines = inspect.getsource(table).splitlines()
    except OSError:
        return []
    return [(match[1], match[2]) for match in map(COMMENTED.match, lines) if match]
