"""Show each keyword of a method with `**keywords: Unpack[Table]` in its signature and in its help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from var_toolkit.setting_table import Setting, declared


def show_keywords(method: Callable[..., Any], tables: Sequence[type], defaults: dict[str, Any]) -> None:
    """Give a method its effective signature, and one line of help for each keyword of the TypedDicts.

    The default is None for keywords that `defaults` lacks.
    """
    settings: dict[str, Setting] = {}
    for table in reversed(tables):  # from the table that others extend; their own keys are shown first
        settings = {name: one for name, one in declared(table).items() if name not in settings} | settings
    hints = get_type_hints(tables[0])
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=hints[name])
        for name in settings
    ]
    plain = inspect.signature(method)
    own = [each for each in plain.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    method.__signature__ = plain.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
    lines = [f"    {name}: {setting.help}" for name, setting in settings.items()]
    method.__doc__ = "\n".join([inspect.cleandoc(method.__doc__ or ""), "", "Keywords:", *lines])
