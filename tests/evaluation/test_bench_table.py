"""The table of a benchmark: what is read from a file, and what is refused."""

import re
import sys

import pytest
import yaml

from var_toolkit.evaluation.bench.rounds import size_of
from var_toolkit.evaluation.bench.table import Row, find_table, read_table, table_from


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
    ({"rows": [a_row(dtype="int4")]}, "row 'plain': dtype is 'int4'; allowed: float32, bfloat16, float16"),
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
    ({"model": "mar-base", "compile": True}, "MAR draws groups of tokens"),
    ({"plan": {"subnet": 13, "full_scales": 2}}, "subnet is 13; it must be from 2 to 12"),
    ({"model": {"drafter": "var-d30", "refiner": "var-d16", "draft_scales": 10}}, "draft_scales is 10"),
    ({"model": "var-d16", "quality": 10}, "still lifes of 64 px"),
]


@pytest.mark.parametrize(("changes", "words"), UNFIT, ids=[words for _, words in UNFIT])
def test_a_row_that_cannot_be_is_refused_before_any_work(changes, words):
    with pytest.raises(ValueError, match=words):
        size_of(Row(**a_row(**changes)))


@pytest.mark.parametrize(("units", "wide"), [("bfloat16", "torch.bfloat16"), ("none", "torch.float32")])
def test_a_row_may_take_the_fastest_precision_of_its_device(units, wide, monkeypatch):
    monkeypatch.setattr("var_toolkit.precision.has_units", lambda kind: kind == units)
    assert str(Row(**a_row(dtype="auto", device="cpu")).precision().wide) == wide


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
    with pytest.raises(ValueError, match=r"landscapes' does not exist"):
        find_table("landscapes")
