"""Methods by name: functions from a plan to a plan, from this package or any other.

A method is called `module:function`, of a module on Python's path or in the current folder, or by the name
of an entry point of the group `var_toolkit.methods` of an installed package. Its options are the parameters after the
plan, checked against their annotations. docs/add-a-method.md shows how one is written.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from operator import attrgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_type_hints

from var_toolkit.core.plan import Plan
from var_toolkit.modules import imported
from var_toolkit.strict_fields import convert, refuse_unknown_keys

GROUP = "var_toolkit.methods"
Method = Callable[..., Plan]


def apply_method(plan: Plan, method: str | Method, options: Mapping[str, Any]) -> Plan:
    """The plan that a method returns. ValueError of one line if the method does not exist or its options do not fit.

    Plans are also built from networks without weights, to count their cost, so a method may read only sizes.
    """
    if isinstance(method, str):
        name, function = method, find_method(method)
    else:
        name, function = getattr(method, "__name__", repr(method)), method
    if not callable(function):
        raise ValueError(f"method {name} is not a function; it must take a plan and return a plan")
    if not isinstance(options, Mapping):
        raise ValueError(f"method_options is {options!r}; it must be a mapping from options to values")
    made = function(plan, **_checked(function, options, where=f"method {name}"))
    if not isinstance(made, Plan):
        raise ValueError(f"method {name} returned {type(made).__name__}; it must return a Plan")
    return made


def find_method(name: str) -> Method:
    """The function that `module:function` or an entry point names. This imports, and so runs, its module."""
    module, colon, function = name.partition(":")
    if not colon:
        module, function = _installed(name)
    if module.endswith(".py") or not all(part.isidentifier() for part in f"{module}.{function}".split(".")):
        raise ValueError(
            f"method {name!r} must be written module:function, such as shy_method:shy, without folders and without .py"
        )
    found = imported(module, f"method {name!r}")
    try:
        method: Method = attrgetter(function)(found)
    except AttributeError as error:
        raise ValueError(f"method {name!r}: {_missing(found, function)}") from error
    return method


def _installed(name: str) -> tuple[str, str]:
    """Module and function of a method that is named by an entry point."""
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in entries:
        return entries[name].module, entries[name].attr
    meant, known = name.removesuffix(".py"), ", ".join(sorted(entries))
    spec = PathFinder.find_spec(meant, [*sys.path, os.getcwd()]) if meant.isidentifier() else None
    if spec and spec.origin:  # a folder without code has no origin
        raise ValueError(f"method {name!r} is a module; did you mean {meant}:FUNCTION?")
    raise ValueError(
        f"method {name!r} is not installed; give module:function{f', or an installed method: {known}' if known else ''}"
    )


def _missing(module: ModuleType, function: str) -> str:
    """The file that lacks the function, similar functions in it, and another file that may have been meant."""
    here, file = Path(f"{module.__name__}.py"), getattr(module, "__file__", None) or f"Python's own {module.__name__}"
    own = [name for name, value in inspect.getmembers(module, inspect.isfunction) if inspect.getmodule(value) is module]
    near = get_close_matches(function, own, n=3, cutoff=0.0)
    words = f"{file} has no function {function!r}" + (f"; the nearest there: {', '.join(near)}" if near else "")
    if here.is_file() and here.resolve() != Path(file).resolve():
        words += f"; it hides {here} in this folder; rename that file"
    return words


def _checked(function: Method, options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The options, converted to the annotations of the function."""
    try:
        _plan, *parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # no signature, or no parameter
        raise ValueError(f"{where} must be a function of a plan and of options by name") from None
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    refuse_unknown_keys(options, [one.name for one in named], where=where)
    for one in named:
        if one.default is one.empty and one.name not in options:
            raise ValueError(f"{where}: missing option {one.name!r}; give it a value")
    # Only of the options, because other annotations may be imported for type checkers only.
    written = {one.name: Any if one.annotation is one.empty else one.annotation for one in named}
    try:
        space = getattr(inspect.unwrap(function), "__globals__", {})
        hints = get_type_hints(SimpleNamespace(__annotations__=written), space)
    except NameError as error:
        raise ValueError(f"{where}: an option is annotated with an unknown name: {error}") from None
    return {name: convert(hints[name], value, where=f"{where}: {name}") for name, value in options.items()}
