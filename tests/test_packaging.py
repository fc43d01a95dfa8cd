"""What an installed package holds is what the checkout holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_of_code_is_packaged():
    folders = {"var_toolkit", *(str(p.parent.relative_to(ROOT)) for p in (ROOT / "var_toolkit").rglob("__init__.py"))}
    named = {folder.replace("/", ".") for folder in folders} | {"var_toolkit.kernels", "var_toolkit.configs"}
    assert set(SETTINGS["packages"]) == named


def test_kernels_are_never_a_top_level_package():
    assert SETTINGS["package-dir"]["var_toolkit.kernels"] == "kernels"
    assert "kernels" not in SETTINGS["packages"]
    assert (ROOT / "kernels" / "__init__.py").read_text().count("import") == 0
