"""A studio with the embedded models, which are loaded once."""

from pathlib import Path

import pytest
from small_infinity import small_bsq, small_infinity

from var_toolkit.conditions.words import WordEncoder, WordEncoderConfig
from var_toolkit.demo.studio import Studio, model_names
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import DEFAULT


@pytest.fixture(scope="session")
def studio() -> Studio:
    """Everything that `vargen demo` offers."""
    return Studio(model_names(DEFAULT), device="cpu")


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a small model that draws prompts of two words."""
    encoder = WordEncoder(WordEncoderConfig(words=("cube", "red"), width=16, depth=1, num_heads=2, longest=6))
    encoder.init_weights()
    folder: Path = tmp_path_factory.mktemp("models") / "text"
    Pipeline(small_bsq(), small_infinity(), text_encoder=encoder).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def text_studio(text_model: str) -> Studio:
    """A model of text, and one of classes."""
    return Studio([text_model, "stilllife-var"], device="cpu")
