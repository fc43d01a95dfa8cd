"""Visual autoregressive image generation: every family and every decoding method behind one pipeline.

import var_toolkit
pipe = var_toolkit.load("stilllife-var")
pipe(class_labels=[207, "red sphere on sand"], seeds=[0, 1]).images[0]
"""

from __future__ import annotations

import os.path
import sys
from importlib import import_module

TYPE_CHECKING = False  # rather than typing's, so that `vargen` is quick to catch Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from var_toolkit.conditions.control_images import control_image
    from var_toolkit.core.plan import Plan, Step
    from var_toolkit.loading import code, load
    from var_toolkit.methods.speculative.rules import Rule
    from var_toolkit.methods.speculative.verify import Speculation
    from var_toolkit.methods.variant import variant
    from var_toolkit.pipeline import Pipeline
    from var_toolkit.registry import list_models, register

__version__ = "0.1.0"
__all__ = [
    "Pipeline",
    "Plan",
    "Rule",
    "Speculation",
    "Step",
    "__version__",
    "code",
    "control_image",
    "list_models",
    "load",
    "register",
    "variant",
]

# Looked up on first use, so that importing the package, and `vargen --help`, stay instant.
_HOMES = {
    "Pipeline": "var_toolkit.pipeline",
    "Plan": "var_toolkit.core.plan",
    "Rule": "var_toolkit.methods.speculative.rules",
    "Speculation": "var_toolkit.methods.speculative.verify",
    "Step": "var_toolkit.core.plan",
    "code": "var_toolkit.loading",
    "control_image": "var_toolkit.conditions.control_images",
    "list_models": "var_toolkit.registry",
    "load": "var_toolkit.loading",
    "register": "var_toolkit.registry",
    "variant": "var_toolkit.methods.variant",
}


def _adopt(name: str) -> None:
    """Make a folder beside this package importable as a part of it, as an installation does."""
    from importlib.util import module_from_spec, spec_from_file_location

    top = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    spec = spec_from_file_location(f"{__name__}.{name}", os.path.join(top, name, "__init__.py"))
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    globals()[name] = module


if not os.path.isdir(
    os.path.join(os.path.dirname(__file__), "kernels")
):  # a checkout, where both folders lie beside the package
    for _name in ("kernels", "configs"):
        _adopt(_name)


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'var_toolkit' has no attribute {name!r}")
