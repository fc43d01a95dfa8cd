"""Methods by name: functions from a plan to a plan, of this package or of anyone else.

A method is called `module:function`, of a module that Python finds or that lies in the current folder, or by the name
of an entry point of the group `var_toolkit.methods` of an installed package. Its options are the parameters behind the
plan; their annotations say what they may be. docs/add-a-method.md shows how one is written.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, get_type_hints

from var_toolkit.sampling.plan import Plan
from var_toolkit.strict_fields import convert, refuse_unknown_keys

GROUP = "var_toolkit.methods"
Method = Callable[..., Plan]


def apply_method(plan: Plan, method: str | Method, options: Mapping[str, Any]) -> Plan:
    """What a method makes of a plan; ValueError in one line if there is no such method, or the options do not fit it.

    Plans are also made of networks without weights, to count their cost: a method looks at sizes alone.
    """
    if isinstance(method, str):
        name, function = method, find_method(method)
    else:
        name, function = getattr(method, "__name__", repr(method)), method
    if not callable(function):
        raise ValueError(f"method {name} is no function; it must be one from a plan to a plan")
    made = function(plan, **_checked(function, options, where=f"method {name}"))
    if not isinstance(made, Plan):
        raise ValueError(f"method {name} returned {type(made).__name__}; it must return a Plan")
    return made


def find_method(name: str) -> Method:
    """The function that `module:function` or an entry point names. Its module is imported, and so it runs."""
    module, colon, function = name.partition(":")
    if not colon:
        installed = {entry.name: entry for entry in entry_points(group=GROUP)}
        if name not in installed:
            known = ", ".join(sorted(installed)) or "none"
            raise ValueError(f"method {name!r} is not installed; give module:function, or one that is: {known}")
        module, function = installed[name].module, installed[name].attr
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise ValueError(f"method {name!r} must be written module:function, such as shy_method:shy, without folders")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it hides nothing
    try:
        found: Method = attrgetter(function)(import_module(module))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"method {name!r}: {error}; modules are looked for where Python does and in the current folder"
        ) from error
    except Exception as error:  # whatever an author's module raises
        reason = " ".join(str(error).split())
        raise ValueError(f"method {name!r} cannot be imported: {type(error).__name__}: {reason}") from error
    return found


def _checked(function: Method, options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The options as the function's signature has them."""
    try:
        _plan, *parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # nothing to read, or no parameter
        raise ValueError(f"{where} must be a function of a plan and of options by name") from None
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    refuse_unknown_keys(options, [one.name for one in named], where=where)
    for one in named:
        if one.default is one.empty and one.name not in options:
            raise ValueError(f"{where}: missing option {one.name!r}; give it a value")
    # Of the options alone: what else is annotated may be imported for type checkers only.
    written = {one.name: Any if one.annotation is one.empty else one.annotation for one in named}
    try:
        space = getattr(inspect.unwrap(function), "__globals__", {})
        hints = get_type_hints(SimpleNamespace(__annotations__=written), space)
    except NameError as error:
        raise ValueError(f"{where}: an option is annotated with a name that is not there: {error}") from None
    return {name: convert(hints[name], value, where=f"{where}: {name}") for name, value in options.items()}
