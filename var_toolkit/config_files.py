"""YAML files of settings, given as a path or by the name of one that comes with the package."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path


def configs(folder: str = "") -> dict[str, Path]:
    """The files in a folder of the package's configs, by name."""
    return {path.stem: path for path in sorted((Path(str(files("var_toolkit.configs"))) / folder).glob("*.yaml"))}


def find_config(name: str, what: str, folder: str = "") -> Path:
    """The file that `name` means: a path, or the name of a file in `folder` of the package's configs.

    ValueError with the nearest names if it does not exist; `what` is the kind of file, such as "recipe".
    """
    known = configs(folder)
    if Path(name).is_file():
        return Path(name)
    if name in known:
        return known[name]
    if Path(name).is_dir():
        raise ValueError(f"{name} is a folder; give the path of a YAML file, or the name of a {what}")
    near = get_close_matches(Path(name).stem, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(
        f"the {what} {name!r} does not exist; give the path of a YAML file, or a name: {hint}"
        f"`vargen {folder or 'train'} --help` lists all"
    )


def read_yaml(path: Path) -> object:
    """What a YAML file holds; ValueError in one line if it is not YAML. OSError if it cannot be read."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not YAML: it is not UTF-8 text") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two of impossible dates and numbers
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
