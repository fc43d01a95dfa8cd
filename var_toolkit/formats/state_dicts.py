"""Reads the sizes of a network from a published state dict, and from published argument names that a user gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from torch import Tensor

from var_toolkit.strict_fields import convert, shown

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Arguments:
    """How the arguments of a published constructor map to ours, and which of them are ignored."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()  # they do not change what a trained network computes
    prepared: Callable[[Mapping[str, Any], str], Mapping[str, Any]] = lambda given, source: given  # applied first


@dataclass(frozen=True)
class Told:
    """Settings that a user gives for a file, under the argument names of the published constructor."""

    settings: dict[str, Any]
    source: str

    @classmethod
    def read(cls, given: Mapping[str, Any], allowed: type, arguments: Arguments, source: str) -> Told:
        """Take the settings that our configuration has, drop ignored ones and refuse the rest by name."""
        known, hints = {field.name for field in fields(allowed)}, get_type_hints(allowed)
        settings: dict[str, Any] = {}
        for name, value in arguments.prepared(given, source).items():
            if name in arguments.ignored:
                continue
            ours = arguments.renamed.get(name, name)
            if ours not in known:
                choices = sorted(known | {theirs for theirs, ours in arguments.renamed.items() if ours in known})
                raise ValueError(f"{source} has the unknown field {shown(name)}; known are {', '.join(choices)}")
            value = convert(hints[ours], value, where=f"{source}: {name}")
            if settings.setdefault(ours, value) != value:
                raise ValueError(
                    f"{source} says {name} is {value}, but {ours} is {settings[ours]}; they must be the same"
                )
        return cls(settings, source)

    def merged(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """The sizes `seen` in the tensors and the user's settings; ValueError where they differ."""
        for name, value in self.settings.items():
            if name in seen and seen[name] != value:
                raise ValueError(f"{self.source} says {name} is {value}; the tensors say {seen[name]}")
        return {**self.settings, **seen}


def require(tensors: Tensors, names: tuple[str, ...], source: str) -> None:
    """Refuse a state dict that lacks one of these tensors."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"{source} lacks {missing[0]!r} ({len(tensors)} tensors): not a published file of this kind")


def sizes_of(read: Callable[[Tensors], dict[str, Any]], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes that `read` finds in the tensors; ValueError in one line if tensors are missing or misshapen."""
    try:
        return read(tensors)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{source} has missing or misshapen tensors ({error}): it is damaged or of another kind"
        ) from None


def shape(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor. KeyError if it is missing, ValueError if it has another number of axes."""
    found = tuple(tensors[name].shape)
    if len(found) != axes or 0 in found:
        raise ValueError(f"{name} has shape {found}, expected {axes} axes and no size of 0")
    return found


def count(tensors: Tensors, prefix: str) -> int:
    """The number of different names between a prefix and the next dot, such as layers or levels."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})
