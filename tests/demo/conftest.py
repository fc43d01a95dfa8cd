"""A studio with the embedded models, which are loaded once."""

from pathlib import Path

import pytest
from small_infinity import words_pipeline

from var_toolkit.demo.studio import Studio, model_names
from var_toolkit.registry import DEFAULT


@pytest.fixture(scope="session")
def studio() -> Studio:
    """Everything that `vargen demo` offers."""
    return Studio(model_names(DEFAULT), device="cpu")


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a small model that draws prompts of two words."""
    folder: Path = tmp_path_factory.mktemp("models") / "text"
    words_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def text_studio(text_model: str) -> Studio:
    """A model of text, and one of classes."""
    return Studio([text_model, "stilllife-var"], device="cpu")
