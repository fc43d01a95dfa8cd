"""The report of a benchmark: ratios, what is predicted, what is unfinished, and the plot."""

from dataclasses import replace

import pytest
from small_bench import Here

from var_toolkit.core.forecast import decoder_multiply_adds
from var_toolkit.evaluation.bench import rounds
from var_toolkit.evaluation.bench.plot import _title, appearance, pareto_front, write_plot
from var_toolkit.evaluation.bench.report import Spread, as_markdown, as_text, paired_ratio, report
from var_toolkit.evaluation.bench.rounds import Measured, measure, size_of
from var_toolkit.evaluation.bench.table import Row, Table
from var_toolkit.loading import load


def test_ratios_are_paired_round_by_round():
    assert paired_ratio([2.0, 4.0, 3.0], [1.0, 1.0, 3.0]) == Spread(2.0, 1.0, 4.0)
    assert paired_ratio([1.0, 5.0], [1.0, 5.0]) == Spread(1.0, 1.0, 1.0)


def test_rounds_without_a_pair_do_not_count():
    assert paired_ratio([2.0, 4.0, 9.0], [1.0, 1.0]) == Spread(3.0, 2.0, 4.0)


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
        run = pipe.bind(pipe.plan(**row["plan"]))
        counted = run.cost()
        assert predicted["multiply_adds"] == counted.multiply_adds
        assert predicted["decoder_multiply_adds"] == decoder_multiply_adds(run)
        assert predicted["cache_bytes_per_image"] == 2 * counted.cache_values == row["cache_bytes_per_image"]
        assert predicted["forward_passes"] == counted.forward_passes == row["forward_passes"]
    assert row["predicted"]["transformer_ratio"] == 2.0


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


def test_the_front_holds_what_no_other_beats_in_both():
    assert pareto_front([(1, 9), (2, 8), (3, 5), (2, 7), (3, 4)]) == [0, 1, 2]
    assert pareto_front([(1, 1), (2, 2)]) == [1]
    assert pareto_front([(1, 1), (1, 1)]) == [0]


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
