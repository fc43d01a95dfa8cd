"""`vargen doctor` tells what a bug report needs, and errors of memory end in one line, whatever raised them."""

import json
from contextlib import suppress

import pytest
import torch

from var_toolkit import devices
from var_toolkit.cli import doctor, main
from var_toolkit.cli.memory import ran_out_of_memory
from var_toolkit.core import forecast
from var_toolkit.devices import find_device
from var_toolkit.evaluation import sample_set
from var_toolkit.evaluation.bench import machine, rounds
from var_toolkit.models.layers import linear
from var_toolkit.precision import precision_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(machine, "SECONDS", 1e-6)
    monkeypatch.setattr(machine, "SIZE", 32)


def test_facts_are_told_in_words_and_as_json(capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == ["installed", "machine", "used", "rates", "folders"]
    assert facts["installed"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert list(facts["rates"]) == ["float32", "bfloat16", "int8"]
    for part, values in facts.items():
        for name in (part, *values):
            assert name in told


def test_rates_of_the_machine_are_told_in_words_and_as_json(capsys):
    assert main(["bench", "machine", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert all("FLOP" in facts[name] or "not supported" in facts[name] for name in ("float32", "bfloat16", "int8"))
    assert facts["auto"].startswith(precision_of("auto", find_device("auto")).name)
    assert main(["bench", "machine"]) == 0
    told = capsys.readouterr().out
    assert "int8" in told
    assert "auto" in told
    assert main(["bench", "machine", "--rounds", "2"]) == 2
    assert "--rounds" in capsys.readouterr().err


def test_why_a_path_is_used_is_told(monkeypatch, capsys):
    monkeypatch.setattr(linear, "_has_onednn", lambda: False)
    monkeypatch.setattr(devices, "processor_features", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor", "--json"]) == 0
    used = json.loads(capsys.readouterr().out)["used"]
    assert used["device"].startswith("cpu (")
    assert "missing or differ" in used["linear layers"]
    assert "no bfloat16 units" in used["bfloat16"]


def test_operators_of_torch_that_are_missing_or_differ_are_not_used(monkeypatch):
    if not linear._has_onednn():
        pytest.skip("this processor does not use them")
    for broken in (lambda: torch.ops.mkldnn.no_such_operator, lambda: False):
        monkeypatch.setattr(linear, "_operators_agree", broken)
        assert linear._has_onednn.__wrapped__() is False
    monkeypatch.undo()
    assert linear._has_onednn.__wrapped__() is True


@pytest.mark.parametrize("units", [["avx2"], ["avx2", "avx512_bf16"], ["amx_bf16"], []], ids=str)
def test_half_precision_without_units_is_told_before_drawing(units, monkeypatch, capsys):
    monkeypatch.setattr(devices, "processor_features", lambda: frozenset(units))
    monkeypatch.setattr(forecast, "_speed", lambda dtype: 1e9)
    assert main(["sample", "--class", "3", "--dtype", "bfloat16", "--device", "cpu", "--dry-run", "--json"]) == 0
    note = json.loads(capsys.readouterr().out).get("note", "")
    assert ("no bfloat16 units" in note) == (units == ["avx2"])
    assert devices.slow_dtype(torch.device("cpu"), torch.float32) is None
    assert devices.slow_dtype(torch.device("cuda"), torch.bfloat16) is None


def test_long_runs_in_half_precision_without_units_are_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(devices, "processor_features", lambda: frozenset({"avx2"}))

    def stop(*args, **settings):
        raise ValueError("stopped")

    monkeypatch.setattr(sample_set, "load", stop)
    monkeypatch.setattr(rounds, "measure", stop)
    table = tmp_path / "table.yaml"
    table.write_text("rows: [{name: one, model: stilllife-var, dtype: bfloat16, device: cpu}]")
    drawing = ["evaluate", "sample", "--out", str(tmp_path / "set"), "--classes", "0", "--dtype", "bfloat16"]
    for command in ([*drawing, "--device", "cpu"], ["bench", str(table)]):
        with suppress(SystemExit):
            main(command)
        told = capsys.readouterr().err
        assert told.count("no bfloat16 units") == 1
        assert "stopped" in told


def test_processors_are_known_without_the_function_of_new_torch(monkeypatch):
    known = devices.processor_features()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert bool(devices.processor_features()) or not known


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    RuntimeError("could not create a memory object"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_memory_that_runs_out_is_one_line_with_the_way_out(error, monkeypatch, capsys):
    def run(args):
        raise error

    monkeypatch.setattr(doctor, "run", run)
    assert main(["doctor"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    for word in ("out of memory", "--batch-size", "-n", "--dtype"):
        assert word in told


def test_other_errors_are_not_taken_for_it():
    for error in (RuntimeError("shapes differ"), NotImplementedError("out of order"), ValueError("out of memory")):
        assert not ran_out_of_memory(error)


def test_images_beyond_number_are_not_listed_first(monkeypatch, tmp_path, capsys):
    from var_toolkit.pipeline import Pipeline

    def draw(self, labels, **drawing):
        assert [next(labels), next(labels)] == [3, 3]
        assert [next(drawing["seeds"]), next(drawing["seeds"])] == [7, 8]
        raise FloatingPointError("reached")

    monkeypatch.setattr(Pipeline, "stream", draw)
    command = "sample --class 3 -n 2000000000000 --batch-size 2 --seed 7 --device cpu --out"
    assert main([*command.split(), str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip().endswith("reached")


def test_steps_beyond_number_are_refused(capsys):
    assert main(["sample", "--class", "3", "--model", "stilllife-flowar", "--steps", "1000000000000", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "steps is 1000000000000; it must be a whole number from 1 to 10000" in told
