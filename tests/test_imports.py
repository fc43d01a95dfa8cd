"""Imports run one way: no circle of modules, and no arrow from a lower level to a higher one (docs/design.md).

Deferred imports count too; what only type checkers import, and what is looked up by name, does not.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import var_toolkit

PACKAGE = Path(var_toolkit.__file__).parent
KERNELS = Path(var_toolkit.kernels.__file__).parent
# From the bottom to the top; a module is at the level of its longest prefix here, and else at the bottom.
LEVELS = (
    ("", "kernels"),
    (
        "core", "conditions", "heads", "models", "tokenizers", "formats", "guidance", "registry", "entries",
        "still_life", "ranges", "setting_table", "signatures",
    ),
    ("methods",),
    (
        "best_of", "pipeline", "streaming", "loading", "saving", "output", "default_plans", "settings", "editing",
        "formats.model_card", "loaded_adapters", "wanted", "image_conditions", "precision",
        "named_plans",
    ),
    (
        "evaluation", "training", "still_life.quality", "still_life.editing_quality", "still_life.data_set",
        "still_life.image_cache", "still_life.classifier_objective", "still_life.scene_data",
        "still_life.scene_detector_objective", "still_life.scene_quality",
        "still_life.scene_edit_quality",
    ),
    ("cli", "demo", "serving", "__main__"),
)  # fmt: skip


def module_files() -> dict[str, Path]:
    """Every module by its name without that of the package, which is "" itself."""
    found = {}
    for folder, first in ((PACKAGE, ()), (KERNELS, ("kernels",))):
        for file in folder.rglob("*.py"):
            parts = (*first, *file.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = module_files()


def imports_of(tree: ast.AST) -> set[str]:
    """The modules of the package that a piece of code imports, wherever it does."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import must name the whole module"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            found |= imports_of(node)
            continue
        for name in names:
            package, _, module = name.partition(".")
            if package == "var_toolkit":
                found.add(module if module in MODULES else module.rpartition(".")[0])
    return found


GRAPH = {name: imports_of(ast.parse(file.read_text())) - {name} for name, file in MODULES.items()}


def level(module: str) -> int:
    fits = [
        (len(prefix), number)
        for number, prefixes in enumerate(LEVELS)
        for prefix in prefixes
        if not prefix or f"{module}.".startswith(f"{prefix}.")
    ]
    return max(fits)[1]


def test_no_module_imports_itself_through_others():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize("module", GRAPH)
def test_a_module_imports_only_from_its_level_or_below(module):
    upward = {other for other in GRAPH[module] if level(other) > level(module)}
    assert not upward


@pytest.mark.parametrize("prefix", [prefix for prefixes in LEVELS for prefix in prefixes])
def test_every_room_of_the_rule_exists(prefix):
    assert prefix in MODULES


OPENERS = {
    "PIL.Image.open",
    "Image.open",
    "torchvision.io",
    "imageio",
    "cv2.imread",
    "cv2.imdecode",
    "matplotlib.image",
}


def opened_images(tree: ast.AST) -> set[str]:
    """What a piece of code uses that opens image files."""
    names = [
        f"{node.module}.{one.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names
    ]
    names += [one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names]
    names += [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {name for name in names if any(f"{name}.".startswith(f"{opener}.") for opener in OPENERS)}


def test_every_image_file_is_opened_by_the_module_images():
    opening = {name for name, file in MODULES.items() if opened_images(ast.parse(file.read_text()))}
    assert opening == {"images"}
