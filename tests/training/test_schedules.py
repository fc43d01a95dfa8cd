"""Learning rate and weight decay over a run."""

import pytest

from var_toolkit.training.recipe import OptimiserConfig, ScheduleConfig
from var_toolkit.training.schedules import learning_rate, weight_decay


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("lin0", {0: 0.005, 10: 0.5025, 20: 1.0, 60: 1.0, 999: 0.1}),
        ("cosine", {0: 0.005, 20: 1.0, 999: 0.1}),
        ("constant", {20: 1.0, 999: 1.0}),
    ],
)
def test_the_rate_follows_its_curve(kind, expected):
    schedule = ScheduleConfig(kind=kind, warmup=0.02, start=0.005, final=0.1)
    for step, rate in expected.items():
        assert learning_rate(schedule, 2.0, step, 1000) == pytest.approx(2.0 * rate)


def test_lin0_falls_along_a_straight_line_after_its_plateau():
    rates = [learning_rate(ScheduleConfig(), 1.0, step, 1000) for step in (400, 500, 600)]
    assert rates[0] - rates[1] == pytest.approx(rates[1] - rates[2])
    assert rates[0] > rates[1]


def test_weight_decay_runs_to_its_final_value():
    config = OptimiserConfig(lr=1.0, weight_decay=0.05, final_weight_decay=0.08)
    assert weight_decay(config, 0, 100) == pytest.approx(0.05)
    assert weight_decay(config, 99, 100) == pytest.approx(0.08)
    assert weight_decay(OptimiserConfig(lr=1.0), 99, 100) == 0.05


def test_the_peak_follows_the_batch_only_if_the_recipe_says_so():
    assert OptimiserConfig(base_lr=1e-4).peak(768) == pytest.approx(3e-4)
    assert OptimiserConfig(lr=1e-4).peak(768) == 1e-4
