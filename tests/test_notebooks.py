"""The notebooks run from top to bottom, and their committed outputs are whole."""

import re

import nbformat
import pytest
from run_notebooks import NOTEBOOKS, executed

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
MACHINE = re.compile(r"(/home/|/root/|/tmp/|/usr/|/var/|[A-Z]:\\Users)")
LARGEST = 600_000  # bytes of a notebook


def texts(output) -> list[str]:
    return [output.get("text", ""), *(value for kind, value in output.get("data", {}).items() if "image" not in kind)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    before = set(path.parent.iterdir())
    executed(path, tmp_path)
    assert not list(tmp_path.iterdir())  # what it wrote lay in a temporary folder of its own
    assert set(path.parent.iterdir()) == before


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_committed_outputs_are_those_of_a_run_without_errors(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if any(kind.startswith("image/") for kind in output.get("data", {}))]
    written = "\n".join(text for output in outputs for text in texts(output))
    assert not re.findall("Traceback|Warning", written)
    assert not MACHINE.findall(written)
    assert path.stat().st_size < LARGEST


def test_there_are_notebooks():
    assert [path.name[0] for path in PATHS] == list("123456")  # those of the README
