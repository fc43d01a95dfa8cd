"""Cases computed with the published implementations: inputs, and what must come out."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from golden.recipe import fill_
from safetensors.torch import load_file

FOLDER = Path(__file__).parent


class Case(NamedTuple):
    """One case: what it says of itself, and its tensors."""

    facts: dict
    tensors: dict[str, torch.Tensor]

    def maps(self, prefix: str) -> list[torch.Tensor]:
        """The tensors prefix_0, prefix_1, ... in order."""
        names = sorted(
            (n for n in self.tensors if n.rpartition("_")[0] == prefix), key=lambda n: int(n.rsplit("_", 1)[1])
        )
        return [self.tensors[name] for name in names]


def load_case(name: str) -> Case:
    """The case of that name."""
    folder = FOLDER / name
    return Case(json.loads((folder / "case.json").read_text()), load_file(folder / "tensors.safetensors"))


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Fill a network's weights from its key names, in place, and set it to evaluation."""
    fill_(module.state_dict())
    return module.eval()
