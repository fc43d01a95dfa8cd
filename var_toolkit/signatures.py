"""Show each keyword of a method with `**keywords: Unpack[Table]` in its signature and in its help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from var_toolkit.setting_table import declared


def show_keywords(method: Callable[..., Any], table: type, defaults: dict[str, Any]) -> None:
    """Give a method its effective signature, and one line of help for each keyword of the TypedDict.

    Keywords with a default in `defaults` are shown first; that of the others is None.
    """
    settings, hints = declared(table), get_type_hints(table)
    names = sorted(settings, key=lambda name: name not in defaults)
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=hints[name])
        for name in names
    ]
    plain = inspect.signature(method)
    own = [each for each in plain.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    method.__signature__ = plain.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
    lines = [f"    {name}: {settings[name].help}" for name in names]
    method.__doc__ = "\n".join([inspect.cleandoc(method.__doc__ or ""), "", "Keywords:", *lines])
