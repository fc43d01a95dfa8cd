"""Published files that several tests read."""

import pytest
import torch
from golden.cases import load_case
from golden.recipe import fill_


@pytest.fixture(scope="session")
def kl16_tensors() -> dict[str, torch.Tensor]:
    """The state dict of a small KL-16, under the published names."""
    shapes = load_case("kl16-vae").facts["state_dict"]["vae"]
    return fill_({name: torch.zeros(shape) for name, (shape, _) in shapes.items()})
