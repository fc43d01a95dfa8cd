"""The rounds of a benchmark: whose turn it is, in which process, with how much memory."""

import json
import os
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from small_bench import Here

from var_toolkit.evaluation.bench import child as child_module
from var_toolkit.evaluation.bench import rounds
from var_toolkit.evaluation.bench.child import Child, RowFailedError
from var_toolkit.evaluation.bench.report import as_text, report
from var_toolkit.evaluation.bench.rounds import Measured, fit_together, measure, size_of
from var_toolkit.evaluation.bench.table import Row, Table
from var_toolkit.evaluation.bench.worker import _in_one_line
from var_toolkit.loading import load
from var_toolkit.pipeline import Pipeline


@pytest.mark.parametrize("keep", [True, False])
def test_rows_take_turns_and_keep_their_process_where_memory_allows(keep, model, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(rounds, "Child", lambda row, threads: started.append(row) or Here(row, threads))
    monkeypatch.setattr(rounds, "available", lambda place: 2**50 if keep else 0)
    order = []
    table = Table(tuple(Row(name, model, batch=1, device="cpu") for name in "ab"), rounds=2, seconds=0)
    found = measure(table, cache=tmp_path, on_step=order.append)
    assert order == ["round 1 of 2: a", "round 1 of 2: b", "round 2 of 2: a", "round 2 of 2: b"]
    assert [len(one.turns) for one in found] == [2, 2]
    assert len(started) == (2 if keep else 4)


def test_memory_is_counted_over_all_rows(model, monkeypatch):
    found = [Measured(row, size_of(row)) for row in (Row("a", model, device="cpu"), Row("b", model, device="cpu"))]
    need = sum(rounds.PROCESS + one.size.bytes for one in found)
    monkeypatch.setattr(rounds, "available", lambda place: 2 * need)
    assert fit_together(found)
    monkeypatch.setattr(rounds, "available", lambda place: 2 * need - 2)
    assert not fit_together(found)


def test_the_bytes_of_a_row_are_its_weights_and_its_cache(model):
    pipe = load(model, device="cpu")
    weights = sum(p.numel() for part in (pipe.tokenizer, pipe.backbone) for p in part.parameters())
    assert size_of(Row("a", model, batch=3)).bytes == 4 * (weights + 3 * pipe.bind(pipe.plan()).cost().cache_values)


def test_a_process_that_dies_is_said_to_have(model):
    with Child(Row("a", model, batch=1, device="cpu"), 1) as child:
        os.kill(child._process.pid, signal.SIGKILL)
        with pytest.raises(RowFailedError, match="SIGKILL"):
            child.ask(turn=0, seconds=0)


def test_a_process_ends_with_the_one_that_started_it(model):
    with Child(Row("a", model, batch=1, device="cpu"), 1) as child:
        child._process.stdin.close()
        assert child._process.wait(600) == 0
        child._process.stdin = None


@pytest.mark.slow
def test_a_turn_lasts_as_long_as_was_asked(model):
    with Child(Row("a", model, batch=2, device="cpu"), 1) as child:
        began = time.perf_counter()
        assert len(child.ask(turn=0, seconds=0)["transformer"]) == 1
        long = 5 * (time.perf_counter() - began)  # of which a batch takes a small part, however busy the machine is
        began = time.perf_counter()
        answer = child.ask(turn=1, seconds=long)
        assert time.perf_counter() - began >= long
    assert len(answer["transformer"]) == len(answer["decoder"]) > 1
    assert answer["peak_memory_bytes"] > child.facts["process_memory_bytes"] / 2
    json.dumps(answer)


def test_half_an_answer_is_a_row_that_failed(model, monkeypatch):
    half = "import sys; input(); print('{\"device\": ', end='')"
    monkeypatch.setattr(child_module, "COMMAND", (sys.executable, "-c", half))
    with pytest.raises(RowFailedError, match="its process ended with status 0"):
        Child(Row("a", model, batch=1, device="cpu"), 1)


def a_judged_table(tmp_path_factory, small_tokenizer, small_var) -> Table:
    folder = tmp_path_factory.mktemp("models") / "painter"
    Pipeline(small_tokenizer, small_var, data_set="still-lifes").save_pretrained(folder)
    row = Row("first", str(folder), batch=2, device="cpu", quality=4)
    return Table((row, replace(row, name="second", quality=0)), rounds=1, seconds=0)


@pytest.mark.slow
def test_quality_that_cannot_be_judged_leaves_the_speeds(
    tmp_path_factory, small_tokenizer, small_var, tmp_path, monkeypatch
):
    def no_judge(*given):
        raise OSError("no space left")

    monkeypatch.setattr(rounds, "judge", no_judge)
    table = a_judged_table(tmp_path_factory, small_tokenizer, small_var)
    told = report(table, measure(table, cache=tmp_path, on_step=lambda what: None), "")
    first, second = told["rows"]
    assert (first["error"], first["quality_error"], first["quality_found"]) == (None, "no space left", None)
    assert first["seconds_per_image"] > 0
    assert second["ratio"] is not None
    assert as_text(told).endswith("\nquality of first: failed: no space left")


def test_a_cache_that_cannot_be_written_is_refused_before_any_work(
    tmp_path_factory, small_tokenizer, small_var, tmp_path, monkeypatch
):
    monkeypatch.setattr(rounds, "Child", None)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot write to \S*cache"):
        measure(a_judged_table(tmp_path_factory, small_tokenizer, small_var), cache=tmp_path / "cache", on_step=print)


def test_a_row_that_runs_out_of_memory_says_what_to_change():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert "smaller batch" in _in_one_line(error)
    assert _in_one_line(RuntimeError("no luck\nmore")) == "RuntimeError: no luck"
