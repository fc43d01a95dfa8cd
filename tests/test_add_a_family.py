"""docs/add-a-family.md is correct: the test writes its files, runs its commands literally and checks the results."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from pages import BLOCK, commands_of, files_of, here
from PIL import Image

from var_toolkit import registry
from var_toolkit.cli import main

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-family.md").read_text()
COMMANDS = commands_of(PAGE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder outside of the package that contains only the files of the page; the registry forgets its family."""
    for name, text in files_of(PAGE).items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("VARGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(registry.NAMED, "")
    monkeypatch.setattr(registry, "HOMES", dict(registry.HOMES))
    monkeypatch.setattr(registry, "ENTRIES", dict(registry.ENTRIES))
    yield tmp_path
    sys.modules.pop("warm_var", None)


def test_the_files_and_commands_of_the_page_work(folder, capsys):
    assert set(files_of(PAGE)) == {"warm_var.py", "warm.yaml", "publish.py", "warm_bench.yaml"}
    listed, *_ = (here(command, capsys) for command in COMMANDS)
    assert "warm-var-d16" in listed
    first, second = (np.asarray(Image.open(folder / name)) for name in ("warm.png", "same.png"))
    assert np.array_equal(first, second)
    index = json.loads((folder / "converted" / "model_index.json").read_text())
    assert index["backbone"] == ["warm_var", "WarmVAR"]
    assert index["_sampling"]["cfg"] == 2.0
    assert "Warm VAR, 2 layers" in (folder / "converted" / "README.md").read_text()
    rows = json.loads((folder / "bench" / "warm_bench.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["warm"]
    assert rows[0]["seconds_per_image"] > 0


def test_an_installed_family_is_known_without_an_option(folder, monkeypatch):
    (block,) = (text for language, text in BLOCK.findall(PAGE) if language == "toml")
    package = tomllib.loads(block)
    ((name, target),) = package["project"]["entry-points"][registry.GROUP].items()
    (module,) = package["tool"]["setuptools"]["py-modules"]
    assert name == target == module
    installed = folder / "warm-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: warm\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {target}\n")
    code = (
        "import sys; from var_toolkit import registry; assert registry.families()[-1] == 'warm_var'; "
        "registry.entry('warm-var-d16'); assert 'torch' not in sys.modules and 'warm_var' not in sys.modules"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "NETWORKS"),
        ("NETWORKS = {name: 'backbone'}\n", "NETWORKS"),
        ("NETWORKS = {'Odd'}\n", "NETWORKS"),
        ("NETWORKS = {'Odd': 'backbone'}\nMODELS = {'odd'}\n", "MODELS"),
        ("NETWORKS = {'VAR': 'backbone'}\n", "taken by var_toolkit.models.var"),
        ("NETWORKS = {'Odd': 'backbone'}\nMODELS = {'odd': {'hidden': 1}}\n", "MODELS: odd.*'hidden'"),
        ("NETWORKS = {'Odd': 'backbone'}\nMODELS = {'odd': {'like': 'even'}}\n", "odd.*'even'"),
        ("NETWORKS = {'Odd': 'backbone'}\nMODELS = {'odd': {'files': {'backbone': 'a/b'}}}\n", "odd.*'a/b'"),
        ("NETWORKS = {'Odd': 'backbone'}\nMODELS = {'odd': {'files': {'backbone': 'a/b/c'}}}\n", "odd.*'parameters'"),
    ],
)
def test_a_file_that_is_no_family_is_refused_in_one_line(text, words, folder, capsys):
    (folder / "odd_family.py").write_text(text)
    with pytest.raises(ValueError, match=rf"odd_family\.py.*{words}"):
        registry.register("odd_family")
    assert main(["models", "--family", "odd_family"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["nowhere_var", "warm_var.py", "folder/warm_var", "var_toolkit.nowhere"])
def test_a_module_that_is_not_there_is_named(name, folder):
    with pytest.raises(ValueError, match=f"family '{name}'"):
        registry.register(name)


def test_a_model_directory_runs_no_code_of_a_family_that_was_not_named(folder, capsys):
    model = folder / "model"
    (model / "backbone").mkdir(parents=True)
    (model / "tokenizer").mkdir()
    (model / "backbone" / "config.json").write_text('{"_class_name": "WarmVAR"}')
    (model / "model_index.json").write_text('{"tokenizer": [], "backbone": ["warm_var", "WarmVAR"]}')
    (model / "tokenizer" / "config.json").write_text('{"_class_name": "WarmVAR"}')
    assert main(["sample", "--class", "3", "--model", str(model)]) == 2
    assert "'WarmVAR'" in capsys.readouterr().err
    assert "warm_var" not in sys.modules
