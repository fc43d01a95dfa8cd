"""The notebooks run from top to bottom, and their committed outputs are whole."""

import re

import nbformat
import pytest
from matplotlib import pyplot as plt
from run_notebooks import NOTEBOOKS, executed

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
MACHINE = re.compile(r"(/home/|/root/|/tmp/|/usr/|/var/|[A-Z]:\\Users)")
LARGEST = 600_000  # bytes of a notebook
# What makes a notebook small enough for every run of the tests: every text on the left becomes the one on the right.
SMALLER = {
    "1-first-images": {
        "sides = 8": "sides = 2",
        "[207] * 8, seeds=range(8)": "[207] * 2, seeds=range(2)",
        "[0, 1.5, 3, 6]": "[0, 1.5]",
        "[:100]": "[:4]",
        "range(100)": "range(4)",
    },
    "2-methods-side-by-side": {"COUNT = 30": "COUNT = 2", "pipe(labels[:2], seeds=[0, 1], plan=plan)": ""},
    "3-your-own-images": {
        '"images/train", 64': '"images/train", 4',
        '"images/held-out", 8': '"images/held-out", 2',
        "log_every: 10": "log_every: 1",
        "steps: 160": "steps: 2",
        "steps: 40": "steps: 2",
        "steps: 60": "steps: 2",
        "validate_every: 40": "validate_every: 1",
        "validate_every: 20": "validate_every: 1",
        "sample_every: 160": "sample_every: 2",
        "[label] * 8, seeds=range(8)": "[label] * 2, seeds=range(2)",
        "arange(64)": "arange(4)",
        "range(64)": "range(4)",
    },
    "4-editing": {
        ", (113, 4), (777, 6))": ",)",
        "[207] * 6": "[207] * 2",
        "range(6)": "range(2)",
        "[7, 107, 507, 707, 807, 907]": "[7, 107]",
        "[0] * 6": "[0] * 2",
        "((207, 807), (113, 913), (350, 950))": "((207, 807),)",
        "(207, 113, 350)": "(207,)",
        "(pipe, 40)": "(pipe, 2)",
    },
    "5-speculative-decoding": {
        "COUNT = 16": "COUNT = 2",
        "range(0, 1000, 63)": "range(0, 126, 63)",
        "draft_length=1)": "draft_length=16)",
        "shown = [2, 5, 9, 13]": "shown = [0, 1, 0, 1]",
        "[2, 8, 16, 32]": "[32]",
        "labels[:4], seeds=seeds[:4]": "labels[:1], seeds=seeds[:1]",
        "unit = drawn(pipe)[1]": "unit = 1",
        '    "jacobi": (None, {"speculate": "jacobi"}),\n': "",
        '    "jacobi, kept": (None, {"speculate": "jacobi", "jacobi_keep": True}),\n': "",
        '[BLUE, "#56b4e9", ORANGE, "#e69f00", GREEN, "#888888"]': '[ORANGE, "#e69f00", GREEN, "#888888"]',
        '    "LANTERN 0.2": {"delta": 0.2},\n': "",
        '("black", BLUE, GREEN, ORANGE)': '("black", BLUE, GREEN)',
    },
    "6-fid": {
        "range(1000), 150": "range(1000), 20",
        "files[40:60]": "files[10:12]",
        "files[100]": "files[15]",
        'score("samples", "stilllife")': 'score("samples", "samples", features="stilllife")',
        "fresh_statistics(2000,": "fresh_statistics(100,",
        "fresh_batches(1000, first=2000)": "fresh_batches(60, first=2000)",
        "[50, 100, 200, 300, 500, 1000]": "[30, 60]",
        "repeats=8": "repeats=2",
        "randperm(1000,": "randperm(60,",
    },
    "7-text-to-image": {
        "COUNT = 35": "COUNT = 7",
        "[1, 2, 4]": "[1, 2]",
        "[asked[0]] * 4, seeds=range(4)": "[asked[0]] * 2, seeds=range(2)",
        "[asked[2]] * 4, seeds=range(4)": "[asked[2]] * 2, seeds=range(2)",
    },
}


def smaller(path) -> list[str]:
    """The cells with the numbers of SMALLER."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for old, new in SMALLER[path.stem].items():
        assert any(old in cell for cell in cells), f"{path.name} has no {old!r} any more"
        cells = [cell.replace(old, new) for cell in cells]
    return cells


def texts(output) -> list[str]:
    return [output.get("text", ""), *(value for kind, value in output.get("data", {}).items() if "image" not in kind)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_run_in_order_with_small_numbers(path, tmp_path, monkeypatch):
    """In this process, and without the statements that are true of many images alone."""
    before = set(path.parent.iterdir())
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "notebook"}
    with plt.rc_context({"backend": "agg"}):
        for cell in smaller(path):
            exec(compile(cell, path.name, "exec", optimize=1), names)  # which leaves out what is asserted
        plt.close("all")
    assert not list(tmp_path.iterdir())  # what it wrote lay in a temporary folder of its own
    assert set(path.parent.iterdir()) == before


@pytest.mark.slow
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
    assert [path.name[0] for path in PATHS] == list("1234567")  # those of the README
