"""The objectives by name: one file `<name>_objective.py` each, found by itself."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

Registered = TypeVar("Registered", bound=type)
_REGISTRY: dict[str, Any] = {}


def objective(name: str) -> Callable[[Registered], Registered]:
    """Class decorator: the public name under which recipes ask for an objective."""

    def register(cls: Registered) -> Registered:
        _REGISTRY[name] = cls
        return cls

    return register


def objective_names() -> list[str]:
    """Every public name."""
    import var_toolkit.training as package

    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_objective"):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return sorted(_REGISTRY)


def objective_class(name: str) -> Any:
    """The class of a public name, a subclass of Objective. ValueError with all names for an unknown one."""
    names = objective_names()
    if name not in names:
        raise ValueError(f"objective is {name!r}; allowed: {', '.join(names)}")
    return _REGISTRY[name]
