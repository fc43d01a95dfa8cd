"""A studio with the embedded models, which are loaded once."""

import pytest

from var_toolkit.demo.studio import Studio, model_names
from var_toolkit.registry import DEFAULT


@pytest.fixture(scope="session")
def studio() -> Studio:
    """Everything that `vargen demo` offers."""
    return Studio(model_names(DEFAULT), device="cpu")
