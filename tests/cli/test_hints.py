"""Hints on standard error."""

from dataclasses import replace

import pytest

from var_toolkit.cli.hints import tell_label_order, tell_purpose
from var_toolkit.conditions.class_names import class_names
from var_toolkit.formats.facts import Facts

OF_FOLDERS = replace(Facts(), recipe="data:\n  kind: folders\n")


@pytest.mark.parametrize(
    ("model", "of_image", "told"),
    [
        ("stilllife-var", False, True),
        ("stilllife-flowar", False, False),  # which someone chose
        ("stilllife-flowar", True, True),
        ("stilllife-tokenizer", True, True),
        ("var-d16", True, False),
        ("runs/mine/final", True, False),
    ],
)
def test_still_life_models_say_what_they_are_for(model, of_image, told, capsys):
    tell_purpose(model, of_image=of_image)
    error = capsys.readouterr().err
    assert ("var-d16" in error and model in error) == told
    assert ("photographs" in error) == (told and of_image)


@pytest.mark.parametrize(
    ("names", "facts", "told"),
    [
        (class_names(None, 12), OF_FOLDERS, True),
        (class_names(None, 9), OF_FOLDERS, False),
        (class_names(None, 12), Facts(), False),
        (class_names(tuple(map(str, range(12))), 12), OF_FOLDERS, False),
    ],
)
def test_labels_of_folders_sorted_as_text_are_told(names, facts, told, capsys):
    tell_label_order(names, facts)
    assert ("0, 1, 10, 11, 2" in capsys.readouterr().err) == told
