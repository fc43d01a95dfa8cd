"""The script that makes the tables of a GPU: its commands fit, and so do its figures; there need not be a GPU."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from var_toolkit.evaluation.bench.peer_rows import CODES, chosen
from var_toolkit.evaluation.bench.table import find_table, read_table

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_tables.py"
PRECISIONS = ("bfloat16", "int8", "float8")


@pytest.fixture
def script():
    spec = spec_from_file_location("gpu_tables", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def after(command: list[str], option: str) -> list[str]:
    """The values of an option."""
    rest = command[command.index(option) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))]


@pytest.mark.parametrize("float8", [True, False])
def test_all_sizes_batches_and_precisions_are_asked_for(script, float8):
    steps = script.steps(Path("VAR"), Path("gpu"), float8=float8)
    precisions = PRECISIONS if float8 else PRECISIONS[:2]
    rows = read_table(find_table("gpu")).only(after(steps["bench"], "--only")).rows
    wanted = {(f"var-d{depth}", batch, name) for depth in (16, 30) for batch in (1, 8, 64) for name in precisions}
    assert {(row.model, row.batch, row.dtype) for row in rows} == wanted
    peers = chosen(CODES[0], after(steps["peers"], "--only"))
    assert {(peer.model, peer.batch, peer.dtype.replace("best", "bfloat16")) for peer in peers} == wanted
    for command in steps.values():
        for file in (Path(word) for word in command if word.startswith(str(SCRIPT.parents[1]))):
            assert file.exists()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_products_that_give_the_limit_fit_the_device(script, precision):
    with FakeTensorMode():
        found = script.product(precision, 64, torch.device("cuda"))()
    assert found.shape == (64, 64)
    assert found.is_cuda
    assert found.dtype == (torch.int32 if precision == "int8" else torch.bfloat16)


def test_the_share_of_the_limit_is_that_of_the_transformer(script, monkeypatch):
    monkeypatch.setattr(script, "SIDE", 64)
    monkeypatch.setattr(script, "SECONDS", 0.0)
    times = iter([0.0, -1.0, 0.0, 2.0])  # the start, before and after the only pass, and the end
    monkeypatch.setattr(script, "clock", lambda _: next(times))
    assert script.limit("bfloat16", torch.device("cpu")) == 2 * 64**3 * 10 / 2.0
    measured = {
        "name": "d16", "dtype": "int8", "seconds_per_image": 0.5, "transformer_seconds_per_image": 0.25,
        "images_per_second": 2.0, "predicted": {"multiply_adds": 1e12},
    }  # fmt: skip
    told = script.table([measured, {"name": "d30", "error": "out of memory"}], {"int8": 80e12})
    assert "| d16 | 2.00 | 4.00 | 8.00 | 10.0% |" in told
    assert "| d30 | out of memory |" in told
