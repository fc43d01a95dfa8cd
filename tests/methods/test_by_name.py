"""A method of anyone's is found by name, its options are checked, and it has the last word on the plan."""

import sys
from dataclasses import replace

import pytest

import var_toolkit
from var_toolkit.evaluation.bench.table import table_from
from var_toolkit.methods.by_name import GROUP, apply_method
from var_toolkit.methods.variant import variant
from var_toolkit.pipeline import Pipeline

MODULE = """
from __future__ import annotations
from dataclasses import replace
from typing import TYPE_CHECKING, Literal
if TYPE_CHECKING:
    from var_toolkit import Plan  # which is not there when options are read

def cooler(plan: Plan, *, by: float = 0.5, since: int = 0, order: Literal["up", "down"] = "up", to: list[int] = (),
           span: tuple[int, float] = (0, 1.0)):
    assert isinstance(by, float) and isinstance(since, int) and isinstance(to, (list, tuple))
    steps = (*plan.within(range(since)), *plan.within(range(since, len(plan.schedule))))
    return replace(plan, steps=tuple(s.with_head(temperature=s.head.temperature * by) for s in steps))

def needs(plan, amount): return plan
def forgets(plan): pass
def of_nothing(): pass
def misspelt(plan, *, by: flaot = 1.0): return plan
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with the module above, and nothing of it left behind."""
    name = f"methods_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import this_is_not_there")
    (tmp_path / "worse.py").write_text("def f(:")
    (tmp_path / "colorsys.py").write_text("def cool(plan): return plan")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield name
    for module in (name, "broken", "worse"):
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def pipe(small_tokenizer, small_var):
    return Pipeline(small_tokenizer, small_var)


def test_a_module_of_the_current_folder_is_found_and_its_options_read(here, pipe):
    plan = pipe.plan(method=f"{here}:cooler", method_options={"by": "5e-1", "since": 2, "order": "down", "to": [1]})
    assert [step.head.temperature for step in plan.steps] == [0.5] * 4


def test_an_installed_method_needs_no_module(here, pipe, tmp_path, monkeypatch):
    installed = tmp_path / "site" / "cooling-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: cooling\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[{GROUP}]\ncool = {here}:cooler\n")
    monkeypatch.syspath_prepend(installed.parent)
    assert pipe.plan(method="cool").steps[0].head.temperature == 0.5
    with pytest.raises(ValueError, match=r"method 'warm' is not installed; .* installed method: cool$"):
        pipe.plan(method="warm")


def test_a_function_itself_will_do_and_comes_after_all_other_settings(pipe):
    def halved(plan, *, scales: int):
        assert plan.steps[0].layers is not None
        assert plan.steps[0].head.temperature == 0.8
        fine = (step.with_head(temperature=0.4) for step in plan.within(range(scales, 4)))
        return replace(plan, steps=(*plan.within(range(scales)), *fine))

    plan = pipe.plan(temperature=0.8, subnet=2, full_scales=3, method=halved, method_options={"scales": 1})
    assert [step.head.temperature for step in plan.steps] == [0.8, 0.4, 0.4, 0.4]


def test_methods_of_the_package_have_names_as_well(pipe):
    named = pipe.plan(method="var_toolkit.methods.variant:variant", method_options={"subnet": 2, "full_scales": 2})
    assert named == variant(pipe.plan(), subnet=2, full_scales=2)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("nothing_of_this_name:f", {}, "No module named 'nothing_of_this_name'"),
        ("nothing_of_this_name.at_all:f", {}, "No module named 'nothing_of_this_name'"),
        ("broken:f", {}, "the module broken imports this_is_not_there, which is not installed"),
        ("worse:f", {}, "cannot be imported: SyntaxError"),
        ("{}:coolr", {}, "has no function 'coolr'; the nearest there: cooler, "),
        ("broken", {}, "'broken' is a module; did you mean broken:FUNCTION?"),
        ("broken.py", {}, "did you mean broken:FUNCTION?"),
        ("empty", {}, "'empty' is not installed; give module:function"),
        (
            "{}.py:cooler",
            {},
            "must be written module:function, such as shy_method:shy, without folders and without .py",
        ),
        ("./{}:cooler", {}, "must be written module:function"),
        ("{}:", {}, "must be written module:function"),
        ("{}:number", {}, "is not a function"),
        ("{}:cooler", {"bye": 1}, "unknown key 'bye'; did you mean 'by'?"),
        ("{}:cooler", {"plan": 1}, "unknown key 'plan'"),
        ("{}:cooler", {"by": "much"}, "by is 'much'; expected a number"),
        ("{}:cooler", {"since": 1.5}, "since is 1.5; expected a whole number"),
        ("{}:cooler", {"order": "sideways"}, "order is 'sideways'; allowed: up, down"),
        ("{}:cooler", {"to": ["a"]}, "to is 'a'; expected a whole number"),
        ("{}:cooler", {"to": 1}, "to is 1; expected a list such as [1,2]"),
        ("{}:cooler", {"span": "0,1"}, "span is '0,1'; expected a list such as [1,2]"),
        ("{}:cooler", {"span": [0]}, "span is [0]; expected a list of 2 values"),
        ("{}:cooler", 3, "method_options is 3; it must be a mapping"),
        ("{}:needs", {}, "missing option 'amount'"),
        ("{}:forgets", {}, "returned NoneType; it must return a Plan"),
        ("{}:of_nothing", {}, "must be a function of a plan"),
        ("{}:misspelt", {"by": 1}, "name 'flaot' is not defined"),
        (5, {}, "is not a function"),
        (None, {"by": 1}, "give method as well"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(method, options, words, here, pipe):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as told:
        pipe.plan(method=method.format(here) if isinstance(method, str) else method, method_options=options)
    assert words in str(told.value)


def test_a_file_that_another_module_hides_is_told_apart_from_it(here, pipe):
    import colorsys

    with pytest.raises(ValueError, match=r"^[^\n]*; it hides colorsys.py in this folder; rename that file$") as told:
        pipe.plan(method="colorsys:cool")
    assert f"{colorsys.__file__} has no function 'cool'; the nearest there: " in str(told.value)
    with pytest.raises(ValueError, match=r"of_nothing[^;]*$"):
        pipe.plan(method=f"{here}:nothing")


def test_rows_of_a_bench_table_have_methods(here, pipe):
    plan = {"method": f"{here}:cooler", "method_options": {"by": 0.25}}
    (row,) = table_from({"rows": [{"name": "cool", "model": "stilllife-var", "plan": plan}]}, allow_code=True).rows
    assert pipe.plan(**row.plan).steps[0].head.temperature == 0.25
    for wrong, words in (({"method": 3}, "method is 3; expected text"), ({"method_options": 3}, "expected a mapping")):
        with pytest.raises(ValueError, match=words):
            table_from({"rows": [{"name": "cool", "model": "stilllife-var", "plan": {**plan, **wrong}}]})


def test_what_authors_need_is_at_the_top_of_the_package(pipe):
    for name in var_toolkit.__all__:
        assert hasattr(var_toolkit, name)
    assert apply_method(pipe.plan(), lambda plan: plan, {}) == pipe.plan()
    assert isinstance(pipe.plan(), var_toolkit.Plan)
    assert isinstance(pipe.plan().steps[0], var_toolkit.Step)
