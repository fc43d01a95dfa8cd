"""The objectives by name: one file `<name>_objective.py` each, found by itself."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from var_toolkit import registry

Registered = TypeVar("Registered", bound=type)
_REGISTRY: dict[str, Any] = {}
ROOMS = ("var_toolkit.training", "var_toolkit.still_life")
OF_ANY_FAMILY = (
    "var",
    "raster-gpt",
    "cca",
    "distilled-decoding",
)  # objectives that ask of a network only what its family has in common


def objective(name: str) -> Callable[[Registered], Registered]:
    """Class decorator: the public name under which recipes ask for an objective."""

    def register(cls: Registered) -> Registered:
        _REGISTRY[name] = cls
        return cls

    return register


def objective_names() -> list[str]:
    """Every public name."""
    for room in ROOMS:
        package = importlib.import_module(room)
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith("_objective"):
                importlib.import_module(f"{room}.{module.name}")
    return sorted(_REGISTRY)


def objective_class(name: str, family: str | None = None) -> Any:
    """The class of a public name, a subclass of Objective, for the networks of a family instead of its own.

    ValueError with all names for an unknown one, or for an objective that trains only its own network.
    """
    names = objective_names()
    if name not in names:
        raise ValueError(f"objective is {name!r}; allowed: {', '.join(names)}")
    if family is None:
        return _REGISTRY[name]
    if name not in OF_ANY_FAMILY:
        raise ValueError(f"objective {name} trains its own network; remove family, or use {' or '.join(OF_ANY_FAMILY)}")
    return _REGISTRY[name].of_family(registry.family(str(family)))
