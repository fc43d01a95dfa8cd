"""The table of a benchmark, its arithmetic, and the process of a row."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from mmap import mmap

import pytest
import torch
import yaml

from var_toolkit.core.forecast import decoder_multiply_adds
from var_toolkit.evaluation.bench import child as child_module
from var_toolkit.evaluation.bench import rounds
from var_toolkit.evaluation.bench.child import Child, RowFailedError
from var_toolkit.evaluation.bench.memory import held, peak
from var_toolkit.evaluation.bench.plot import _title, appearance, pareto_front, write_plot
from var_toolkit.evaluation.bench.random_weights import random_pipeline
from var_toolkit.evaluation.bench.report import Spread, as_markdown, as_text, paired_ratio, report
from var_toolkit.evaluation.bench.rounds import Measured, fit_together, measure, size_of
from var_toolkit.evaluation.bench.table import Row, Table, find_table, plan_keywords, read_table, table_from
from var_toolkit.evaluation.bench.worker import Worker, _in_one_line
from var_toolkit.loading import load, skeleton
from var_toolkit.pipeline import Pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer, small_var) -> str:
    folder = tmp_path_factory.mktemp("models") / "small"
    Pipeline(small_tokenizer, small_var).save_pretrained(folder)
    return str(folder)


def a_row(name="plain", **changes):
    return {"name": name, "model": "stilllife-var", **changes}


BAD = [
    ([], "expected a mapping with rows"),
    ({}, "rows is empty"),
    ({"rows": 3}, "expected a list"),
    ({"rows": [a_row()], "round": 3}, "did you mean 'rounds'"),
    ({"rows": [a_row()], "rounds": 0}, "rounds is 0"),
    ({"rows": [a_row()], "seconds": -1}, "seconds is -1"),
    ({"rows": [a_row(), a_row()]}, "2 rows have the name 'plain'"),
    ({"rows": ["stilllife-var"]}, "row 1: expected a mapping"),
    ({"rows": [{"name": "plain"}]}, "row 'plain': missing key 'model'"),
    ({"rows": [{"model": "stilllife-var"}]}, "row 1: missing key 'name'"),
    ({"rows": [a_row(), a_row("fast", dtipe="bfloat16")]}, "row 'fast': unknown key 'dtipe'; did you mean 'dtype'"),
    ({"rows": [a_row("")]}, "name is ''"),
    ({"rows": [a_row("two\nlines")]}, "name is 'two"),
    ({"rows": [a_row(model=3)]}, "row 'plain': model: expected a mapping of settings"),
    ({"rows": [a_row(model={"drafter": "a", "refiner": "b"})]}, "model: missing key 'draft_scales'"),
    ({"rows": [a_row(dtype="int8")]}, "row 'plain': dtype is 'int8'; allowed: float32, bfloat16, float16"),
    ({"rows": [a_row(batch=0)]}, "batch is 0"),
    ({"rows": [a_row(batch="many")]}, "batch is 'many'; expected a whole number"),
    ({"rows": [a_row(weights="none")]}, "allowed: own, random"),
    ({"rows": [a_row(quality=1)]}, "quality is 1"),
    ({"rows": [a_row(quality=100, weights="random")]}, "random weights have no quality"),
    ({"rows": [a_row(plan=[1])]}, "row 'plain': plan is [1]"),
    ({"rows": [a_row(plan={"scale": 1})]}, "row 'plain': plan: unknown key 'scale'"),
    ({"rows": [a_row(plan={"subnet": 4, "full_scales": 2.5})]}, "plan: full_scales is 2.5; expected a whole number"),
    ({"rows": [a_row(plan={"top_k": 1.5})]}, "plan: top_k is 1.5; expected a whole number"),
    ({"rows": [a_row(plan={"smooth": 1})]}, "plan: smooth is 1; expected true or false"),
    ({"rows": [a_row()], "defaults": {"batches": 1}}, "defaults: unknown key 'batches'"),
    ({"rows": [a_row()], "defaults": {"name": "x"}}, "defaults: unknown key 'name'"),
    ({"rows": [a_row()], "defaults": 1}, "defaults: expected a mapping"),
]


@pytest.mark.parametrize(("values", "words"), BAD, ids=[words for _, words in BAD])
def test_a_table_that_does_not_fit_is_refused_in_one_line(values, words):
    with pytest.raises(ValueError, match=re.escape(words)) as complaint:
        table_from(values)
    assert "\n" not in str(complaint.value)


UNFIT = [
    ({"model": "stilllife-war"}, "did you mean 'stilllife-var'"),
    ({"plan": {"top_p": 2}}, "top_p is 2"),
    ({"plan": {"subnet": 13, "full_scales": 2}}, "subnet is 13; it must be from 2 to 12"),
    ({"model": {"drafter": "var-d30", "refiner": "var-d16", "draft_scales": 10}}, "draft_scales is 10"),
    ({"model": "var-d16", "quality": 10}, "still lifes of 64 px"),
]


@pytest.mark.parametrize(("changes", "words"), UNFIT, ids=[words for _, words in UNFIT])
def test_a_row_that_cannot_be_is_refused_before_any_work(changes, words):
    with pytest.raises(ValueError, match=words):
        size_of(Row(**a_row(**changes)))


NOT_YAML = [
    b"rows: [",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"rows: 2024-13-45",
    b"rows: !!python/name:os.system",
    b"&a [*a]",
]


@pytest.mark.parametrize("content", NOT_YAML, ids=range(len(NOT_YAML)))
def test_a_file_that_is_not_yaml_is_named(content, tmp_path):
    (tmp_path / "table.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"table\.yaml") as complaint:
        read_table(tmp_path / "table.yaml")
    assert len(str(complaint.value)) < 400
    assert "\n" not in str(complaint.value)


@pytest.mark.parametrize("where", ["rows", "defaults"])
def test_a_table_imports_code_only_if_that_is_allowed(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_method.py").write_text("open('ran', 'w')\ndef same(plan): return plan")
    plan = {"method": "evil_method:same"}
    values = {"defaults": {"plan": plan}, "rows": [a_row()]} if where == "defaults" else {"rows": [a_row(plan=plan)]}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=r"evil_method:same.*--allow-code"):
        read_table(tmp_path / "table.yaml")
    (row,) = read_table(tmp_path / "table.yaml", allow_code=True).rows
    assert not (tmp_path / "ran").exists()
    size_of(row)
    assert (tmp_path / "ran").exists()
    sys.modules.pop("evil_method")


def test_a_long_file_of_something_else_is_refused_in_a_short_line(tmp_path):
    (tmp_path / "table.yaml").write_text(str(list(range(10_000))))
    with pytest.raises(ValueError, match=r"table\.yaml") as complaint:
        read_table(tmp_path / "table.yaml")
    assert len(str(complaint.value)) < 300


def test_installed_methods_need_no_permission():
    (row,) = table_from({"rows": [a_row(plan={"method": "installed"})]}).rows
    assert row.plan == {"method": "installed"}


def test_defaults_serve_every_row_that_does_not_say_otherwise():
    table = table_from(
        {
            "defaults": {"model": "var-d16", "batch": 4, "plan": {"top_k": 1}},
            "rows": [{"name": "a"}, a_row("b", plan={})],
        }
    )
    assert [(row.model, row.batch, row.plan) for row in table.rows] == [
        ("var-d16", 4, {"top_k": 1}),
        ("stilllife-var", 4, {}),
    ]


def test_numbers_of_a_plan_are_read_as_the_pipeline_takes_them():
    rows = [Row(**a_row(plan={"cfg": value})) for value in (0, 0.0, "0e-3")]
    assert len({row.images_key for row in rows}) == 1


def test_rows_are_chosen_by_patterns_in_the_order_of_the_table():
    table = table_from({"rows": [a_row("one"), a_row("two"), a_row("three")]})
    assert [row.name for row in table.only(["t*", "one"]).rows] == ["one", "two", "three"]
    assert [row.name for row in table.only(["t*"]).rows] == ["two", "three"]
    with pytest.raises(ValueError, match=r"no row matches 'four'; rows are one, two, three"):
        table.only(["four"])


def test_every_packaged_table_can_be_measured():
    for path in find_table("stilllife").parent.glob("*.yaml"):
        for row in read_table(path).rows:
            assert size_of(row).cost.multiply_adds > 0
    with pytest.raises(ValueError, match=r"landscapes.*stilllife"):
        find_table("landscapes")


def test_a_plan_takes_what_the_pipeline_takes():
    given = {"cfg": 0.5, "top_k": 3, "top_p": 0.5, "temperature": 2.0, "smooth": True}
    assert set(given) <= set(plan_keywords())
    skeleton("stilllife-var").plan(**given)


def test_ratios_are_paired_round_by_round():
    assert paired_ratio([2.0, 4.0, 3.0], [1.0, 1.0, 3.0]) == Spread(2.0, 1.0, 4.0)
    assert paired_ratio([1.0, 5.0], [1.0, 5.0]) == Spread(1.0, 1.0, 1.0)


def test_the_front_holds_what_no_other_beats_in_both():
    assert pareto_front([(1, 9), (2, 8), (3, 5), (2, 7), (3, 4)]) == [0, 1, 2]
    assert pareto_front([(1, 1), (2, 2)]) == [1]
    assert pareto_front([(1, 1), (1, 1)]) == [0]


def a_turn(transformer, decoder):
    counted = {
        "peak_memory_bytes": 5,
        "transformer_memory_bytes": 2,
        "cache_bytes_per_image": 1,
        "forward_passes": 4,
    }
    return {"transformer": transformer, "decoder": decoder, **counted}


def test_a_report_takes_medians_of_rounds_and_of_their_batches(model):
    rows = [Row(name, model) for name in ("first", "second", "third")]
    found = [Measured(row, size_of(row)) for row in rows]
    for one in found:
        one.facts = {"gpu": None, "process_memory_bytes": 2}
    found[0].turns = [a_turn([1.0, 9.0, 2.0], [1.0, 1.0, 1.0]), a_turn([4.0], [2.0]), a_turn([6.0], [3.0])]
    found[1].turns = [a_turn([0.5], [1.0]), a_turn([1.0], [2.0]), a_turn([6.0], [3.0])]
    found[2].error = "no luck"
    told = report(Table(tuple(rows), rounds=3), found, "table.yaml")
    first, second, third = told["rows"]
    assert first["seconds_per_image"] == 6
    assert first["transformer_seconds_per_image"] == 4
    assert first["decoder_seconds_per_image"] == 2
    assert first["memory_growth_bytes"] == 3
    assert second["ratio"] == {"median": 2.0, "low": 1.0, "high": 2.0}
    assert second["transformer_ratio"] == {"median": 4.0, "low": 1.0, "high": 4.0}
    assert "seconds_per_image" not in third
    assert "failed: no luck" in as_text(told)


def test_a_first_row_that_failed_leaves_the_others_without_ratios(model):
    rows = [Row(name, model) for name in ("first", "second")]
    found = [Measured(row, size_of(row)) for row in rows]
    found[0].error, found[1].turns = "no luck", [a_turn([1.0], [1.0])]
    found[1].facts = {"gpu": "a GPU", "process_memory_bytes": 2}
    told = report(Table(tuple(rows), rounds=1), found, "table.yaml")
    assert told["rows"][1]["ratio"] is None
    assert told["rows"][1]["seconds_per_image"] == 2
    assert told["rows"][1]["memory_growth_bytes"] == 5


def test_what_is_predicted_is_the_plans_cost_and_what_the_engine_counts(model, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "Child", Here)
    plans = ({}, {"subnet": 2, "full_scales": 2}, {"cfg": 0})
    rows = tuple(Row(str(plan), model, plan=plan, batch=3, dtype="bfloat16", device="cpu") for plan in plans)
    found = measure(Table(rows, rounds=1, seconds=0), cache=tmp_path, on_step=lambda what: None)
    for row in report(Table(rows, rounds=1), found, "")["rows"]:
        pipe, predicted = load(model, device="cpu"), row["predicted"]
        counted = pipe.bind(pipe.plan(**row["plan"])).cost()
        assert predicted["multiply_adds"] == counted.multiply_adds
        assert predicted["decoder_multiply_adds"] == decoder_multiply_adds(pipe.tokenizer)
        assert predicted["cache_bytes_per_image"] == 2 * counted.cache_values == row["cache_bytes_per_image"]
        assert predicted["forward_passes"] == counted.forward_passes == row["forward_passes"]
    assert row["predicted"]["transformer_ratio"] == 2.0


class Here:
    """What measures a row, in this process."""

    started = 0

    def __init__(self, row, threads):
        type(self).started += 1
        self.worker = Worker(row, torch.get_num_threads())
        self.facts = self.worker.facts()

    def ask(self, turn, seconds):
        return self.worker.turn(turn, seconds)

    def close(self):
        pass


@pytest.mark.parametrize("keep", [True, False])
def test_rows_take_turns_and_keep_their_process_where_memory_allows(keep, model, monkeypatch, tmp_path):
    monkeypatch.setattr(rounds, "Child", Here)
    monkeypatch.setattr(Here, "started", 0)
    monkeypatch.setattr(rounds, "available", lambda place: 2**50 if keep else 0)
    order = []
    table = Table(tuple(Row(name, model, batch=1, device="cpu") for name in "ab"), rounds=2, seconds=0)
    found = measure(table, cache=tmp_path, on_step=order.append)
    assert order == ["round 1 of 2: a", "round 1 of 2: b", "round 2 of 2: a", "round 2 of 2: b"]
    assert [len(one.turns) for one in found] == [2, 2]
    assert Here.started == (2 if keep else 4)


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
        assert child._process.wait(20) == 0
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


def test_what_is_unfinished_is_said_and_what_failed_is_not_unfinished(model):
    judged, plain = Row("judged", "stilllife-var", quality=10), Row("plain", "stilllife-var")
    whole = Measured(judged, None, turns=[{}, {}])
    assert whole.unfinished(2) == "quality not judged"
    assert replace(whole, quality={}).unfinished(2) is None
    assert replace(whole, quality_error="no luck").unfinished(2) is None
    assert replace(whole, turns=[{}]).unfinished(2) == "1 of 2 rounds"
    assert Measured(plain, None, turns=[{}, {}]).unfinished(2) is None
    assert Measured(plain, None).unfinished(2) == "0 of 2 rounds"
    assert Measured(plain, None, error="no luck").unfinished(2) is None


def test_a_row_that_was_not_begun_is_told_without_figures(model):
    rows = [Row(name, model) for name in ("first", "second")]
    found = [Measured(row, size_of(row)) for row in rows]
    found[0].facts, found[0].turns = {"gpu": None, "process_memory_bytes": 2}, [a_turn([1.0], [1.0])]
    told = report(Table(tuple(rows), rounds=1), found, "table.yaml")
    assert told["interrupted"]
    assert "\nsecond  unfinished: 0 of 1 rounds\n" in as_text(told)
    assert "| second | unfinished: 0 of 1 rounds |" in as_markdown(told)


def test_rounds_without_a_pair_do_not_count():
    assert paired_ratio([2.0, 4.0, 9.0], [1.0, 1.0]) == Spread(3.0, 2.0, 4.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the peak is the one from the start")
def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    child = "import torch; from var_toolkit.evaluation.bench.memory import peak; print(peak(torch.device('cpu')))"
    parent = f"import subprocess, sys; held = b'x' * 2**30; subprocess.run([sys.executable, '-c', {child!r}])"
    told = int(subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True).stdout)
    assert 2**25 < told < 2**30


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


@pytest.mark.parametrize("name", ["stilllife-var-small", "stilllife-var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_draw_numbers_and_are_the_same_every_time(name, dtype):
    one, other = (random_pipeline(name, device="cpu", dtype=dtype) for _ in range(2))
    for a, b in zip(one.backbone.parameters(), other.backbone.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.dtype == dtype
    assert one.tokenizer.quantize.embedding.weight.dtype == torch.float32
    assert not one.backbone.training
    drawn = one([3, 7], seeds=[0, 1], output_type="pt")
    assert drawn.images.isfinite().all()
    assert len(drawn.tokens[-1].unique()) > 20
    assert len(one.backbone.head.weight.unique(dim=0)) == len(one.backbone.head.weight)


def test_random_weights_of_a_published_size_need_no_download(monkeypatch):
    def no_download(*given, **named):
        raise AssertionError("random weights were downloaded")

    monkeypatch.setattr("var_toolkit.formats.hub.download", no_download)
    pipe = random_pipeline("var-d16", device="cpu", dtype=torch.bfloat16)
    assert sum(p.numel() for p in pipe.backbone.parameters()) == size_of(Row("a", "var-d16")).parameters > 3e8


def test_memory_held_grows_and_shrinks_while_the_peak_stays():
    cpu = torch.device("cpu")
    before = held(cpu)
    block = mmap(-1, 64_000_000)  # straight from the system: an allocator may have pages left over
    block.write(b"\1" * len(block))
    assert before + 50e6 < held(cpu) <= peak(cpu)
    block.close()
    assert held(cpu) < before + 30e6 < peak(cpu)


def test_twenty_rows_of_a_plot_differ_in_colour_or_marker():
    assert len({appearance(row) for row in range(20)}) == 20


def plotted(cpu: str, rows: int, growth: int) -> dict:
    found = [
        {
            "name": f"row {i}",
            "error": None,
            "images_per_second": 1.0 + i,
            "memory_growth_bytes": growth * i,
            "quality_found": {"class_agreement": 0.5, "distance": 3.0 + i},
        }
        for i in range(rows)
    ]
    return {"machine": {"cpu": cpu, "threads": 1, "torch": "2.14"}, "rows": found}


@pytest.mark.parametrize("growth", [0, 10**8])
def test_the_heading_of_a_plot_is_wrapped_and_names_one_thread(growth, tmp_path):
    told = plotted("Processor " * 20, 3, growth)
    heading = _title(told, told["rows"])
    assert max(map(len, heading.splitlines())) <= 120
    assert "1 thread," in " ".join(heading.split())
    assert ("MiB" in heading) == (growth > 0)
    write_plot(told, tmp_path / "plot.png")  # also where the system tells no memory
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_row_that_runs_out_of_memory_says_what_to_change():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert "smaller batch" in _in_one_line(error)
    assert _in_one_line(RuntimeError("no luck\nmore")) == "RuntimeError: no luck"
