"""Edits show what they were asked for."""

from var_toolkit.loading import load
from var_toolkit.still_life.editing_quality import replacement_agreement, replacements


def test_cases_ask_for_another_solid_and_box_the_one_that_is_there():
    cases = list(replacements(20))
    assert [case.label for case in cases] == [case.label for case in replacements(20)]
    for case in cases:
        x, y, w, h = case.box
        assert x >= 0
        assert y >= 0
        assert x + w <= 64
        assert y + h <= 64
        assert 10 <= w < 64


def test_the_classifier_sees_the_solid_that_took_the_place_of_another():
    """87.5 % of 200 cases (`scripts/judge_editing.py`)."""
    assert replacement_agreement(load("stilllife-var", device="cpu").pack(), 24).whole >= 0.6
