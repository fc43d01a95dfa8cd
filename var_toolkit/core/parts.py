"""Parts of a plan: frozen dataclasses of plain values that are written to JSON and read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Self

from var_toolkit.strict_fields import build, shown

KIND = "kind"
# Packages with parts of plans, besides the steps of `core.plan`. Others are known once their own module is imported.
ROOMS = ("heads", "methods.speculative")


class Part:
    """A base for frozen dataclasses whose fields are numbers, texts, tuples of these, and other parts."""

    def to_json(self) -> dict[str, Any]:
        """The kind of the part, and its fields that differ from their defaults, as JSON values."""
        told = {KIND: type(self).__name__}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.init and value != field.default:
                told[field.name] = _plain(value)
        return told

    @classmethod
    def from_json(cls, given: object, *, where: str) -> Self:
        """The part that `to_json` wrote. ValueError of one line, with `where`, for anything else. Runs no code of it.

        A class of another package is known only if its module was imported before.
        """
        if not isinstance(given, Mapping) or not isinstance(given.get(KIND), str):
            raise ValueError(f"{where} is {shown(given)}; expected a mapping with a {KIND!r}")
        known = {one.__name__: one for one in _all_parts() if issubclass(one, cls)}
        if given[KIND] not in known:
            raise ValueError(
                f"{where}: kind {shown(given[KIND])} is unknown; known kinds are {', '.join(sorted(known))}"
                " (import the module that defines it first, if it is your own)"
            )
        fields = {name: _read(value, where=f"{where}: {name}") for name, value in given.items() if name != KIND}
        return build(known[given[KIND]], fields, where=where)


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_json()
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _read(value: Any, *, where: str) -> Any:
    """Parts inside of a part; other values are left to its annotations."""
    if isinstance(value, Mapping):
        return Part.from_json(value, where=where)
    if isinstance(value, list):
        return tuple(_read(one, where=f"{where}: {number}") for number, one in enumerate(value))
    return value


def _all_parts() -> Iterator[type[Part]]:
    import_module("var_toolkit.core.plan")
    for room in ROOMS:
        package = import_module(f"var_toolkit.{room}")
        for found in iter_modules(package.__path__):
            import_module(f"{package.__name__}.{found.name}")
    waiting = [Part]
    while waiting:
        for one in waiting.pop().__subclasses__():
            waiting.append(one)
            if dataclasses.is_dataclass(one):
                yield one
