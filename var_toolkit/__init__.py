"""One road from label and seed to picture, for every visual autoregressive method.

import var_toolkit
pipe = var_toolkit.load("stilllife-var")
pipe(class_labels=[207, "red sphere on sand"], seeds=[0, 1]).images[0]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from var_toolkit.loading import load
    from var_toolkit.pipeline import Pipeline
    from var_toolkit.sampling.collaborative import code
    from var_toolkit.sampling.plan import Plan, Stage
    from var_toolkit.sampling.variant import variant
    from var_toolkit.speculative.engine import Speculation
    from var_toolkit.speculative.rules import Rule
    from var_toolkit.zoo.registry import list_models

__version__ = "0.1.0"
__all__ = ["Pipeline", "Plan", "Rule", "Speculation", "Stage", "__version__", "code", "list_models", "load", "variant"]

# Looked up on first use, so that importing the package, and `vargen --help`, stay instant.
_HOMES = {
    "Pipeline": "var_toolkit.pipeline",
    "Plan": "var_toolkit.sampling.plan",
    "Rule": "var_toolkit.speculative.rules",
    "Speculation": "var_toolkit.speculative.engine",
    "Stage": "var_toolkit.sampling.plan",
    "code": "var_toolkit.sampling.collaborative",
    "list_models": "var_toolkit.zoo.registry",
    "load": "var_toolkit.loading",
    "variant": "var_toolkit.sampling.variant",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'var_toolkit' has no attribute {name!r}")
