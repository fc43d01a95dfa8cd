"""Print the lowest version of each dependency that pyproject.toml allows, as `pip install` takes it.

PyTorch's own packages are left out: they are large, and what is installed is within the bounds.
"""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "triton"}

dependencies = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["dependencies"]
for requirement in map(Requirement, dependencies):
    if requirement.name not in LEFT_OUT:
        (bound,) = requirement.specifier
        print(f"{requirement.name}=={bound.version}")
