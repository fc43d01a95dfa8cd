"""A mapping read from a file -> a frozen dataclass; whatever does not fit is refused in one line."""

import dataclasses
import difflib
import functools
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

Config = TypeVar("Config")


def build(cls: type[Config], values: object, *, where: str) -> Config:
    """An instance of the dataclass `cls` from a mapping; `where` names file and section in every complaint."""
    return made(cls, read(cls, values, where=where), where=where)


def read(cls: type, values: object, *, where: str) -> dict[str, Any]:
    """The fields of `cls` in a mapping, each of its annotated type; unknown and missing keys are refused by name."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a mapping of settings, got {shown(values)}")
    hints = _hints(cls)
    allowed = [field.name for field in dataclasses.fields(cls) if field.init]
    refuse_unknown_keys(values, allowed, where=where)
    found = {key: convert(hints[key], value, where=f"{where}: {key}") for key, value in values.items()}
    missing = [field.name for field in dataclasses.fields(cls) if field.name not in found and _is_required(field)]
    if missing:
        raise ValueError(f"{where}: missing key {missing[0]!r}; give it a value")
    return found


_hints = functools.cache(typing.get_type_hints)


def made(cls: type[Config], fields: Mapping[str, Any], *, where: str) -> Config:
    """An instance from fields of the right types; what the class refuses is told with `where`."""
    try:
        return cls(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def refuse_unknown_keys(values: Mapping[Any, Any], allowed: Sequence[str], *, where: str) -> None:
    """ValueError naming the first key that is not allowed, with the nearest one that is."""
    for key in values:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{where}: unknown key {shown(key)}; {hint}Allowed keys: {', '.join(allowed)}")


def shown(value: object) -> str:
    """A value for a complaint: one line of a bounded length, whatever it is."""
    limits = reprlib.Repr()
    limits.maxstring = limits.maxother = limits.maxlong = 60
    try:
        return " ".join(limits.repr(value).split())
    except ValueError:  # of an integer with thousands of digits, which Python refuses to print
        return "a huge number"


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def convert(hint: Any, value: object, *, where: str) -> Any:
    """`value` as the annotated type `hint`, or a ValueError that names place, value and what is allowed."""
    if dataclasses.is_dataclass(value):
        return value  # a section that was read before
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, where=where)
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{where} is {shown(value)}; allowed: {', '.join(map(str, get_args(hint)))}")
        return value
    if origin in (tuple, Sequence):
        return _convert_tuple(hint, value, where=where)
    if origin is list:
        return list(_convert_tuple(Sequence[get_args(hint)], value, where=where))  # type: ignore[misc]
    if origin is dict:
        return _convert_dict(hint, value, where=where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where=where)
    return _convert_scalar(hint, value, where=where)


def _convert_union(hint: Any, value: object, *, where: str) -> Any:
    members = get_args(hint)
    if value is None and type(None) in members:
        return None
    lists = [member for member in members if get_origin(member) in (tuple, Sequence)]
    kinds = [member for member in members if member is not type(None) and member not in lists]
    if lists and isinstance(value, list | tuple):
        return convert(lists[0], value, where=where)
    exact = [member for member in kinds if type(value) is member]
    return convert((exact or kinds or lists)[0], value, where=where)


def _convert_tuple(hint: Any, value: object, *, where: str) -> tuple[Any, ...]:
    members = get_args(hint)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} is {shown(value)}; expected a list such as [1,2]")
    if len(members) == 1 or (len(members) == 2 and members[1] is Ellipsis):  # Sequence[x], tuple[x, ...]
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise ValueError(f"{where} is {shown(value)}; expected a list of {len(members)} values")
    return tuple(convert(member, item, where=where) for member, item in zip(members, value, strict=True))


def _convert_dict(hint: Any, value: object, *, where: str) -> dict[Any, Any]:
    of_keys, of_values = get_args(hint)
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {shown(value)}; expected a mapping")
    return {
        convert(of_keys, key, where=f"{where}: key {shown(key)}"): convert(of_values, item, where=f"{where}: {key}")
        for key, item in value.items()
    }


def _finite(value: float | str) -> float | None:
    """A finite number, also from text, as which YAML 1.1 reads 1e-3 without a dot; None for anything else."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _convert_scalar(hint: Any, value: object, *, where: str) -> Any:
    if hint in (Any, object):
        return value
    if hint is float and not isinstance(value, bool) and isinstance(value, int | float | str):
        if (number := _finite(value)) is not None:
            return number
    elif type(value) is hint:
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if hint is str and isinstance(value, bool):
        raise ValueError(f"{where} is {value!r}, which is how YAML reads on and off, yes and no; put it in quotes")
    raise ValueError(f"{where} is {shown(value)}; expected {names.get(hint, hint)}")
