"""Edits of scenes: what changes and what does not, instructions, and the judge of edited images."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from var_toolkit.still_life.captions import unseen
from var_toolkit.still_life.scene_data import edited, numbered
from var_toolkit.still_life.scene_detector import Found, FoundScene
from var_toolkit.still_life.scene_drawing import SIZE, foot_at, placed, seen_at
from var_toolkit.still_life.scene_edit_quality import Case, cases, edit_scores, untouched
from var_toolkit.still_life.scene_edits import (
    KINDS,
    PLACES,
    edit_of,
    instruction,
    inverted,
    judge_edit,
    pair_of,
    relation,
    training_instruction,
    unseen_instruction,
    vocabulary,
)
from var_toolkit.still_life.scenes import HELD_OUT, scene_of

MANY = 400
EDITS = [pair_of(number, "validation") for number in range(MANY)]


def of_kind(kind):
    return next((number, edit) for number, edit in enumerate(EDITS) if edit.kind == kind)


def shown(scene):
    """What a faultless detector finds."""
    things = (Found(t.solid, t.colour, t.size, seen_at(t)[0], foot_at(t)) for t in scene.things)
    return FoundScene(tuple(things), scene.ground, scene.light)


def test_an_edit_is_a_function_of_its_number_and_of_every_kind():
    assert edit_of(5) == edit_of(5)
    assert {edit.kind for edit in EDITS} == set(KINDS)
    assert all(edit_of(number, "validation").before == scene_of(number, "validation") for number in range(MANY))
    with pytest.raises(ValueError, match="nowhere"):
        edit_of(0, "nowhere")


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_edit_and_its_inverse_are_shown_in_turns(epoch):
    for number in range(20):
        edit = edit_of(number)
        assert pair_of(number, epoch=epoch) == (edit.inverse if inverted(number, epoch) else edit)
        assert edit.inverse.inverse == edit
        assert inverted(number, epoch) != inverted(number, epoch + 1)


def test_what_an_edit_does_not_touch_stays_as_it_is():
    for edit in EDITS:
        before, after = edit.before, edit.after
        assert (before.ground != after.ground) == (edit.kind == "ground")
        assert (before.light != after.light) == (edit.kind == "light")
        assert set(edit.untouched) == set(before.things) & set(after.things)
        assert len(after.things) - len(before.things) == {"add": 1, "remove": -1}.get(edit.kind, 0)
        if edit.kind in ("colour", "solid", "size"):
            old, new = before.things[edit.touched], after.things[edit.touched]
            assert replace(old, **{edit.kind: getattr(new, edit.kind)}) == new != old


def test_no_solid_becomes_a_pair_that_is_held_out_or_like_another():
    for number in range(MANY):
        edit = edit_of(number, "validation")
        looks = [(thing.colour, thing.solid) for thing in edit.after.things]
        assert not set(looks) & set(HELD_OUT)
        if edit.kind in ("colour", "solid", "add"):
            assert looks.count(looks[edit.touched]) == 1


def test_solids_are_whole_in_the_image_and_stand_in_order():
    for edit in EDITS:
        columns = [seen_at(thing)[0] for thing in edit.after.things]
        assert all(0.1 < column < 0.9 for column in columns)
        assert edit.after.arrangement != "row" or columns == sorted(columns)


@pytest.mark.parametrize("kind", ["colour", "solid", "size", "add", "remove"])
def test_renderings_are_equal_outside_of_what_changes(kind):
    number, edit = of_kind(kind)
    before, after = numbered(number, "validation"), edited(number, "validation")
    rows, columns = np.nonzero((before != after).any(0))
    larger = edit.before if kind == "remove" else edit.after
    solid = placed(larger.things[edit.touched])
    (column, row), reach = seen_at(larger.things[edit.touched]), SIZE * solid.bound / 3.2
    assert len(rows) > 20
    assert (before == after).all(0).mean() > 0.4
    if kind == "colour":  # a colour changes the solid alone, any other change also its shadow
        assert np.hypot(rows - SIZE * row, columns - SIZE * column).max() < reach
    assert np.hypot(rows - SIZE * row, columns - SIZE * column).min() < reach


def test_instructions_are_varied_and_of_the_vocabulary():
    words, texts = set(vocabulary()), set()
    for number, edit in enumerate(EDITS):
        text = instruction(edit, number).text
        assert set(re.findall(r"[a-z]+|,", text)) <= words
        texts.add(text)
    assert len(texts) > 0.75 * MANY


def test_training_never_uses_unseen_instructions():
    assert not any(unseen(training_instruction(number, epoch)) for number in range(60) for epoch in range(4))
    found = [unseen_instruction(edit, number).text for number, edit in enumerate(EDITS[:60])]
    assert sum(map(unseen, found)) > 30  # a few edits have no unseen words


def test_an_instruction_names_one_solid_that_is_there():
    for number, edit in enumerate(EDITS):
        if edit.kind not in ("colour", "size", "remove") or "it" in instruction(edit, number).text.split():
            continue
        thing, text = edit.before.things[edit.touched], instruction(edit, number).text
        alike = [one for one in edit.before.things if one.solid == thing.solid]
        if len(alike) > 1:
            told = re.search(rf"left|middle|right|{thing.colour}|small|little|tiny|large|big|huge", text)
            assert told, text


@pytest.mark.parametrize("kind", KINDS)
def test_the_scene_that_is_asked_for_is_right_and_the_source_is_not(kind):
    for number, edit in enumerate(EDITS):
        if edit.kind != kind:
            continue
        asked = instruction(edit, number)
        assert judge_edit(edit, asked, shown(edit.after)) == (True, True)
        assert judge_edit(edit, asked, shown(edit.before)) == (False, True)


@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_the_rest_are_seen(kind):
    edit = next(one for one in EDITS if one.kind == kind and one.untouched)
    asked, right = instruction(edit, 0), shown(edit.after)
    other = edit.after.things.index(edit.untouched[0])
    thing = right.things[other]
    for wrong in (
        thing._replace(colour="red" if thing.colour != "red" else "blue"),
        thing._replace(x=thing.x + 0.3),
        thing._replace(size="small" if thing.size == "large" else "large"),
    ):
        things = (*right.things[:other], wrong, *right.things[other + 1 :])
        assert not judge_edit(edit, asked, right._replace(things=things)).kept
    extra = (*right.things, thing._replace(x=0.02, foot=0.9))
    assert not judge_edit(edit, asked, right._replace(things=extra)).kept
    for field in {"ground", "light"} - {kind}:
        assert not judge_edit(edit, asked, right._replace(**{field: "other"})).kept


@pytest.mark.parametrize("name", PLACES)
def test_a_solid_is_added_where_the_instruction_says(name):
    edit = next(edit for edit in EDITS if edit.kind == "add" and relation(edit)[0] == name)
    asked, right = instruction(edit, 0), shown(edit.after)
    new = right.things[edit.touched]
    away = {
        "left": new._replace(x=0.99),
        "right": new._replace(x=0.01),
        "front": new._replace(foot=0.05),
        "behind": new._replace(foot=0.99),
        "between": new._replace(x=0.01),
    }[name]
    things = tuple(away if one is new else one for one in right.things)
    assert judge_edit(edit, asked, right) == (True, True)
    assert judge_edit(edit, asked, right._replace(things=things)) == (False, True)


@pytest.fixture(scope="module")
def asked():
    return cases(2 * len(KINDS))


def test_renderings_score_and_sources_do_not(asked):
    targets, sources = (torch.stack([getattr(one, name) for one in asked]) for name in ("target", "source"))
    assert [one.edit.kind for one in asked] == [*KINDS, *KINDS]
    right, wrong = edit_scores(targets, asked, sources), edit_scores(sources, asked, sources)
    assert set(right) == {*KINDS, "all"}
    assert right["all"].both > 0.8
    assert wrong["all"].followed < 0.2
    assert wrong["all"].kept > 0.8
    assert right["colour"].psnr == right["add"].psnr == 60.0
    assert right["light"].psnr is None


def test_the_rest_has_a_psnr_of_its_own(asked):
    one = next(one for one in asked if one.edit.kind == "colour")
    noisy = one.target.clone()
    noisy[:, untouched(one)] ^= 16
    (found,) = {edit_scores(noisy[None], [one], one.source[None])["all"].psnr}
    assert found == pytest.approx(-20 * np.log10(16 / 255), abs=1e-3)
    touched_alone = torch.where(untouched(one), one.target, 255 - one.target)
    assert edit_scores(touched_alone[None], [one], one.source[None])["all"].psnr == 60.0
    with pytest.raises(ValueError, match="2 images"):
        edit_scores(torch.stack([noisy, noisy]), [one], one.source[None])


def test_a_case_shows_the_inverse_of_an_odd_number(asked):
    number = next(n for n in range(1, 99, 2) if EDITS[n].kind == asked[0].edit.kind)
    assert isinstance(asked[0], Case)
    assert inverted(number, 0)
    with pytest.raises(ValueError, match="0"):
        cases(0)
