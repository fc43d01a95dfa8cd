"""Every network and every model with a name, found in the files that define them.

A file in `models`, `tokenizers`, `conditions` or `still_life`, or that of a user's own family, has two tables of
literals: NETWORKS, its classes that a `config.json` may name, and MODELS, the models of `vargen models`. They are read
as text, as setuptools reads `attr:`, so that lists import neither torch nor anyone's code. docs/add-a-family.md has an
example.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from var_toolkit.entries import Embedded, Entry, Hub, Sampling, TextSource, entries_from
from var_toolkit.modules import imported, source_file
from var_toolkit.strict_fields import convert

if TYPE_CHECKING:
    from torch import nn

    from var_toolkit.models.family import Family

__all__ = ["Embedded", "Entry", "Hub", "Sampling", "TextSource"]

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCALE = ".eight_bit_scale"  # in such a file, ends the name of the scales of a tensor in eight bits
CARD = "README.md"
DEFAULT = "stilllife-var"
DEFAULT_FOR_PROMPTS = "scenes-infinity"
WAYS = "a name that `vargen models` lists, a hub id user/name"
BACKBONE = "backbone"  # the part of a model that a family draws with
GROUP = "var_toolkit.families"  # of entry points: installed families
NAMED = "VAR_TOOLKIT_FAMILIES"  # of the environment: modules of families, with commas between them
TABLE = re.compile(r"^(NETWORKS|MODELS)\b[^=\n]*= (\{[^\n]*\}[^\n]*$|\{.*?^\})", re.MULTILINE | re.DOTALL)


class Home(NamedTuple):
    """What a file tells of its networks."""

    module: str
    networks: dict[str, str]  # by class: the part of a model that it is
    entries: dict[str, Entry]

    @property
    def family(self) -> str | None:
        """The name of the family that lives here; None if it is no backbone."""
        return self.module.rpartition(".")[2] if BACKBONE in self.networks.values() else None


def _home(module: str, file: Path) -> Home:
    """The tables of a module. ValueError in one line if they are no literals, or do not fit."""
    tables: dict[str, Any] = {"NETWORKS": {}, "MODELS": {}}
    for name, text in TABLE.findall(file.read_text(encoding="utf-8")):
        try:
            tables[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise ValueError(
                f"{file}: {name} is read without running the file; write it with numbers, text, lists and dicts alone"
            ) from None
    networks = convert(dict[str, str], tables["NETWORKS"], where=f"{file}: NETWORKS")
    models = convert(dict[str, Any], tables["MODELS"], where=f"{file}: MODELS")
    return Home(module, networks, entries_from(models, module.rpartition(".")[2], where=f"{file}: MODELS"))


def _own() -> Iterator[Home]:
    """The files of this package that have tables."""
    package = Path(__file__).parent
    for room in ("models", "tokenizers", "conditions", "still_life"):
        for file in sorted((package / room).glob("*.py")):
            yield _home(f"{__package__}.{room}.{file.stem}", file)


def _place(entry: Entry) -> tuple[bool, bool, bool]:
    """Order of lists: the default model, the embedded ones, the published ones."""
    return entry.name != DEFAULT, isinstance(entry.source, Hub), not entry.draws


HOMES = {home.module: home for home in _own()}
ENTRIES = {
    entry.name: entry
    for entry in sorted((entry for home in HOMES.values() for entry in home.entries.values()), key=_place)
}


def register(module: str) -> None:
    """Add a family of your own: the name of its module, on Python's path or in the current folder.

    Its file is read but not run before a network of it is needed. ValueError in one line if it is no family, or if
    its names are taken.
    """
    if module in HOMES:
        return
    if not all(part.isidentifier() for part in module.split(".")) or module.endswith(".py"):
        raise ValueError(f"family {module!r} must be the name of a module, such as ring_var, without folders and .py")
    file = source_file(module)
    if file is None:
        raise ValueError(f"family {module!r} is not found; modules are searched on Python's path and in this folder")
    home = _home(module, file)
    if home.family is None:
        raise ValueError(f"{file} is no family: it has no NETWORKS, such as {{'MyVAR': 'backbone'}}")
    taken = [one for one in HOMES.values() if one.family == home.family or one.networks.keys() & home.networks.keys()]
    if taken or home.entries.keys() & ENTRIES.keys():
        where = taken[0].module if taken else "another family"
        raise ValueError(f"{file}: its name, a network or a model of it is taken by {where}; rename it")
    HOMES[module] = home
    ENTRIES.update(home.entries)


def add_family(module: str) -> None:
    """`register`, also for the processes that this one starts."""
    register(module)
    named = os.environ.get(NAMED, "").split(",")
    os.environ[NAMED] = ",".join(dict.fromkeys(filter(None, (*named, module))))


@cache
def _register_others() -> None:
    """Add the installed families, and those that the environment names."""
    for module in filter(None, os.environ.get(NAMED, "").split(",")):
        register(module)
    from importlib.metadata import entry_points  # late, since it is slow to import

    for found in entry_points(group=GROUP):
        register(found.module)


def _find(fits: Callable[[Home], bool]) -> Home | None:
    """The first file that fits; installed ones are looked up only if none of this package does."""
    found = next(filter(fits, HOMES.values()), None)
    if found is None:
        _register_others()
        found = next(filter(fits, HOMES.values()), None)
    return found


def home_of(network: str) -> Home | None:
    """The file that defines a class of networks; None for an unknown one."""
    return _find(lambda home: network in home.networks)


def families() -> list[str]:
    """The names of all families."""
    _register_others()
    return [home.family for home in HOMES.values() if home.family is not None]


def family(name: str) -> Family:
    """The family of a name, or of a module of a user's own. ValueError in one line if it is not known."""
    home = _find(lambda home: name in (home.family, home.module) and home.family is not None)
    if home is None:
        try:
            register(name)
        except ValueError as error:
            raise ValueError(f"{error}; families that are known are {', '.join(families())}") from None
        return family(name)
    found: Family | None = getattr(imported(home.module, f"family {name!r}"), "FAMILY", None)
    if found is None:
        raise ValueError(f"{home.module} has no FAMILY; end the file with FAMILY = Family(...)")
    return found


def family_of(network: nn.Module) -> Family:
    """The family of a backbone."""
    return family(type(network).__module__)


def networks(part: str) -> list[str]:
    """The classes of networks that may be a part of a model."""
    _register_others()
    return [name for home in HOMES.values() for name, kind in home.networks.items() if kind == part]


def published(family: str) -> list[tuple[Entry, Hub]]:
    """The published models of a family, and where their files are."""
    _register_others()
    found = [(one, one.source) for one in ENTRIES.values() if isinstance(one.source, Hub)]
    return [(one, source) for one, source in found if source.family == family]


def list_models(pattern: str = "*") -> list[str]:
    """The names of the zoo that match a shell pattern, such as "var*"."""
    _register_others()
    return [name for name in ENTRIES if fnmatch(name, pattern)]


def prompt_models(*, edits: bool = False) -> list[str]:
    """The models that take prompts; with `edits` those that edit an image by an instruction instead."""
    return [name for name in list_models() if ENTRIES[name].takes_prompts and ENTRIES[name].edits == edits]


def default_for_prompts() -> str:
    """The model that draws prompts unless another is named. ValueError that lists the others, if it is missing."""
    if DEFAULT_FOR_PROMPTS in ENTRIES:
        return DEFAULT_FOR_PROMPTS
    named = ", ".join(prompt_models()) or "a model directory"
    raise ValueError(f"no model that takes prompts comes with this package; name one by --model: {named}")


def find_entry(name: str) -> Entry | None:
    """The entry of a name; None if there is none."""
    if name not in ENTRIES and "/" not in name and os.sep not in name:
        _register_others()
    return ENTRIES.get(name)


def entry(name: str) -> Entry:
    """The entry of a name; ValueError with the nearest name of a model that draws, if it is unknown."""
    found = find_entry(name)
    if found is not None:
        return found
    if os.sep in name or "/" in name or name.startswith((".", "~")):
        raise ValueError(f"{name}: this folder does not exist; give {WAYS}, or a model directory")
    nearest = nearest_drawing(name)
    hint = f"did you mean {nearest!r}? " if nearest else ""
    raise ValueError(f"model {name!r} is not known; {hint}give {WAYS}, or a model directory")


def nearest_drawing(name: str) -> str | None:
    """The model that draws images whose name begins so, or is nearest; None if no name is similar."""
    drawing = [known for known, other in ENTRIES.items() if other.draws]
    begun = [known for known in drawing if name and known.startswith(name.lower())]
    return next(iter(begun or get_close_matches(name.lower(), drawing, n=1)), None)


def embedded_part(name: str) -> Path:
    """The folder of an embedded network by its name, such as "stilllife-tokenizer". ValueError if it is not there."""
    folder = Embedded.folder(name)
    if not folder.is_dir():
        raise ValueError(f"no weights named {name!r} come with the package; give a directory")
    return folder
