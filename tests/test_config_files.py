"""Recipes and tables are found by path or by name."""

import pytest

from var_toolkit.cli import main
from var_toolkit.config_files import configs, find_config, read_yaml


def test_the_recipes_and_tables_of_the_package_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "tokenizer: stilllife-tokenizer" in find_config("stilllife-var", "recipe").read_text()
    assert "rows:" in find_config("stilllife", "table", "bench").read_text()


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stilllife-var").write_text("mine")
    assert find_config("stilllife-var", "recipe").read_text() == "mine"


@pytest.mark.parametrize("name", ["stillife-var", "configs/stilllife-var.yaml", "stilllife-var.yml"])
def test_an_unknown_name_is_told_with_those_near_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}' .*did you mean stilllife-var "):
        find_config(name, "recipe")


@pytest.mark.parametrize(
    ("what", "folder", "command"), [("recipe", "", "train"), ("table", "bench", "bench")], ids=["recipe", "table"]
)
def test_a_name_that_is_near_to_none_is_told_with_the_command_that_lists_all(
    what, folder, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"qqq' .*`vargen {command} --help` lists all") as told:
        find_config("qqq", what, folder)
    assert len(str(told.value)) < 150
    with pytest.raises(SystemExit):
        main([command, "--help"])
    listed = "".join(capsys.readouterr().out.split())  # names are broken at hyphens
    assert all(name in listed for name in configs(folder))


def test_a_folder_is_no_recipe():
    with pytest.raises(ValueError, match="is a folder"):
        find_config(".", "recipe")


@pytest.mark.parametrize("text", ["a: [1,", "[" * 100_000, "2001-99-99", "a: !!python/object/apply:os.getcwd []", "\0"])
def test_what_is_not_yaml_is_refused_in_one_line_with_its_name(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
