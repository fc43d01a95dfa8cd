"""Models of each kind that requests meet, which draw in milliseconds."""

from __future__ import annotations

import pytest
from small_flexvar import small_flexvar_pipe
from small_infinity import small_varedit, words_pipeline
from small_llamagen import tiny_gpt, tiny_vq

from var_toolkit.pipeline import Pipeline

NAMES = [f"letter {name}" for name in "abcdefghij"]


@pytest.fixture(scope="session")
def models(small_tokenizer, small_var):
    """Models as a service has them, by name."""
    from var_toolkit.serving.models import Served

    pipes = {
        "letters": Pipeline(small_tokenizer, small_var, class_names=NAMES),
        "words": words_pipeline(),
        "editor": words_pipeline(small_varedit),
        "sizes": small_flexvar_pipe(),
        "tokens": Pipeline(tiny_vq(), tiny_gpt()),
    }
    return {name: Served(name, pipe, pipe) for name, pipe in pipes.items()}
