"""A small model directory for the command line."""

import pytest

from var_toolkit.pipeline import Pipeline


@pytest.fixture(scope="session")
def model(tmp_path_factory, small_tokenizer, small_var) -> str:
    """A directory with the golden networks: 64 px, 10 classes, weights that draw nothing sensible."""
    folder = tmp_path_factory.mktemp("models") / "small"
    Pipeline(small_tokenizer, small_var).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
