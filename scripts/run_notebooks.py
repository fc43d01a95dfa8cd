"""Run the notebooks from top to bottom, each in a fresh kernel, and save them with their outputs.

    python scripts/run_notebooks.py        # all of them
    python scripts/run_notebooks.py 1 6    # some, by prefixes of their names

Everything that differs between runs without a reason (execution times, object addresses) is removed.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from var_toolkit.files import write_whole

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PATIENCE = 600  # seconds per cell, on a busy machine
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LARGE = 150_000  # base64 characters beyond which JPEG is used instead of PNG
ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")


def executed(path: Path, folder: Path) -> NotebookNode:
    """The notebook after a run in `folder` without network access; CellExecutionError of nbclient if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    # One thread, because small networks gain little from more and notebooks may run in parallel.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    client = NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    return notebook


def stable(notebook: NotebookNode) -> NotebookNode:
    """Remove everything that differs between runs, in place."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = NotebookNode(), f"cell-{number}"
        for output in cell.get("outputs", []):
            if "data" in output:
                output.metadata, output.data = NotebookNode(), _slim(output.data)
    return notebook


def _slim(data: NotebookNode) -> NotebookNode:
    """Remove addresses from text; of an image in PNG and JPEG keep one, JPEG if the PNG is large."""
    slim = {kind: ADDRESS.sub("", value) if kind == "text/plain" else value for kind, value in data.items()}
    if {"image/png", "image/jpeg"} <= slim.keys():
        del slim["image/png" if len(slim["image/png"]) > LARGE else "image/jpeg"]
    return NotebookNode(slim)


def chosen(beginnings: list[str]) -> list[Path]:
    """The notebooks whose names have one of these prefixes, default all; ValueError for a prefix without a notebook."""
    found = sorted(NOTEBOOKS.glob("*.ipynb"))
    for beginning in beginnings:
        if not any(path.name.startswith(beginning) for path in found):
            raise ValueError(
                f"{beginning!r} is not the prefix of a notebook; the notebooks are {', '.join(p.name for p in found)}"
            )
    return [path for path in found if not beginnings or path.name.startswith(tuple(beginnings))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="prefixes of names of notebooks (default: all)")
    args = parser.parse_args()
    try:
        paths = chosen(args.names)
    except ValueError as error:
        parser.error(str(error))
    for path in paths:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            notebook = stable(executed(path, Path(folder)))
        write_whole(path, lambda to, notebook=notebook: nbformat.write(notebook, to))
        print(f"{path.name}: {time.perf_counter() - began:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
