"""Numbers that users set: NumPy's are taken; booleans, NaN and what lies out of range are refused by name and value."""

import re

import numpy as np
import pytest
import torch
from small_flowar import tiny_flowar, tiny_kl
from small_llamagen import tiny_gpt, tiny_vq

from var_toolkit.pipeline import Pipeline
from var_toolkit.ranges import checked
from var_toolkit.registry import Sampling
from var_toolkit.setting_table import SETTINGS
from var_toolkit.settings import seeds_of

NUMBERS = [name for name, setting in SETTINGS.items() if setting.range]
FLAGS = [name for name, setting in SETTINGS.items() if setting.types == (bool,)]


def pipeline(name):
    if name in ("steps", "guidance_interval"):
        return Pipeline(tiny_kl(), tiny_flowar(), Sampling(2.0, 0, 0.0))
    return Pipeline(tiny_vq(), tiny_gpt(), Sampling(2.0, 0, 0.0))


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [True, "2", float("nan"), float("inf"), -2e9, 1e39, [[2]], torch.tensor(2.0)], ids=str
)
def test_what_is_no_number_in_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is [^\n]*; it must be [^\n]*$"):
        pipeline(name).plan(**{name: value})


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [1, "yes", 0.0], ids=str)
def test_what_is_neither_true_nor_false_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value!r}; it must be True or False$"):
        pipeline(name).plan(**{name: value})


@pytest.mark.parametrize("value", [1e-40, 1e-38, 0.0, 1e39])
def test_temperatures_at_which_float32_ends_are_refused(value):
    with pytest.raises(
        ValueError, match=rf"^temperature is {re.escape(str(value))}; it must be a number from 1e-06 to 1e\+06$"
    ):
        pipeline("temperature").plan(temperature=value)


def test_the_ends_of_a_range_draw():
    pipe = pipeline("temperature")
    for settings in ({"temperature": 1e-6, "guidance_scale": 1e4}, {"temperature": 1e6}, {"top_k": 2**31 - 1}):
        assert pipe([1], seeds=0, **settings).images


def test_numbers_of_numpy_are_taken_as_those_of_python():
    pipe = pipeline("top_k")
    ours = pipe([1], seeds=3, guidance_scale=2.0, top_k=5, temperature=0.5, batch_size=2)
    theirs = pipe(
        [1], seeds=np.int64(3), guidance_scale=np.float32(2), top_k=np.int32(5), temperature=np.float64(0.5),
        batch_size=np.uint8(2),
    )  # fmt: skip
    assert torch.equal(ours.tokens[0], theirs.tokens[0])
    assert theirs.seeds == [3]
    assert type(theirs.seeds[0]) is int


@pytest.mark.parametrize("given", [np.array([4, 5]), torch.tensor([4, 5]), (4, np.int32(5)), range(4, 6)], ids=str)
def test_seeds_may_be_any_whole_numbers(given):
    assert seeds_of(given, 2, None) == [4, 5]


@pytest.mark.parametrize("given", [True, np.bool_(True), 1.5, "7", -1, 2**63, None, torch.tensor(True)], ids=str)
def test_what_is_no_seed_is_refused_by_name(given):
    for seeds in ([given], given):
        if seeds is not None:
            with pytest.raises(ValueError, match=r"^seed is "):
                seeds_of(seeds, 1, None)


@pytest.mark.parametrize("value", [0, -3, True, 2.0, "8"], ids=str)
def test_batch_sizes_are_checked_before_anything_is_drawn(value):
    with pytest.raises(ValueError, match=f"^batch_size is {value!r}; it must be a whole number from 1 "):
        pipeline("top_k")([1], seeds=0, batch_size=value)


@pytest.mark.parametrize("plan", ["fast", 3, {"steps": 2}], ids=str)
def test_a_plan_that_is_none_is_refused(plan):
    with pytest.raises(ValueError, match=r"^plan is [^\n]*; it must be a Plan"):
        pipeline("top_k")([1], seeds=0, plan=plan)


def test_a_generator_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"^generator is 5; "):
        pipeline("top_k")([1], generator=5)


def test_a_number_is_shown_in_one_short_line():
    with pytest.raises(ValueError, match=r"^steps is ") as told:
        checked("steps", torch.zeros(50, 50))
    assert len(str(told.value)) < 160
    assert "\n" not in str(told.value)
