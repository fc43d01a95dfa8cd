"""The package is the same from an installation, from a checkout, and in a checkout beside an installation."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS = PROJECT["tool"]["setuptools"]
WHERE = """
import var_toolkit.configs, var_toolkit.kernels
from importlib.resources import files
from importlib.util import find_spec
for name in ("kernels", "kernels.tiles", "configs"):
    print(find_spec(f"var_toolkit.{name}").origin)
print(files(var_toolkit.configs) / "stilllife-var.yaml")
"""


def test_every_folder_of_code_is_packaged():
    folders = {"var_toolkit", *(str(p.parent.relative_to(ROOT)) for p in (ROOT / "var_toolkit").rglob("__init__.py"))}
    named = {folder.replace("/", ".") for folder in folders} | {"var_toolkit.kernels", "var_toolkit.configs"}
    assert set(SETTINGS["packages"]) == named


def test_kernels_are_never_a_top_level_package():
    assert SETTINGS["package-dir"]["var_toolkit.kernels"] == "kernels"
    assert "kernels" not in SETTINGS["packages"]
    assert (ROOT / "kernels" / "__init__.py").read_text().count("import") == 0


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the checkout's code, elsewhere: what is imported from there cannot be what is installed."""
    for name in ("var_toolkit", "kernels", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("embedded", "__pycache__"))
    return tmp_path


def imported(folder: Path, *options: str, path: str = "") -> list[Path]:
    """Where kernels and configs come from, for Python started in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": path} if path else {}
    command = [sys.executable, *options, "-c", WHERE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Path(line).resolve() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("options", [(), ("-S",)], ids=["beside an installation", "without any installation"])
def test_python_started_in_a_checkout_imports_all_of_it(checkout, options):
    found = imported(checkout, *options)
    assert all(path.is_file() and path.is_relative_to(checkout.resolve()) for path in found)
    assert len(found) == 4


def test_an_installed_package_needs_no_checkout(checkout, tmp_path_factory):
    installed, elsewhere = tmp_path_factory.mktemp("site-packages"), tmp_path_factory.mktemp("elsewhere")
    for package in SETTINGS["packages"]:  # as a wheel lays them out
        top, *rest = package.split(".")
        source = checkout / SETTINGS["package-dir"].get(package, "/".join([top, *rest]))
        shutil.copytree(source, installed.joinpath(top, *rest), dirs_exist_ok=True)
    found = imported(elsewhere, path=str(installed))
    assert all(path.is_file() and path.is_relative_to(installed.resolve() / "var_toolkit") for path in found)
    assert len(found) == 4


def test_the_commands_of_the_readme_make_their_own_environment_and_ci_runs_the_second():
    commands = re.findall(r"^    (python3 -m venv .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("vargen sample --class 207")
    assert commands[1].endswith("pytest -n auto")
    assert commands[1] in (ROOT / ".ci" / "run").read_text()
