"""A judge of drafts: which tokens are right, what it reads, and that it learns to tell."""

import json

import pytest
import torch
from torch.testing import assert_close

from var_toolkit.formats.directory import load_network
from var_toolkit.models.judge_head import JudgeHead
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train

DRAWS = Draws(0, 0, 0, 1, 8, torch.device("cpu"))


@pytest.mark.parametrize("near", [0, 3])
def test_right_are_the_image_s_own_token_and_the_nearest_codes(build, near):
    objective, batch = build("judge-head", near=near, replaced=0.7)
    features, right, drafted = objective._examples(batch, DRAWS.numbers("drafts"))
    tokens = batch.tokens.long()
    assert features.shape == (8, 63, 16)
    assert right.shape == drafted.shape == (8, 63)
    assert right[~drafted].all()  # what was not replaced is right
    assert 0.6 < drafted.float().mean() < 0.8
    assert 0 < right[drafted].float().mean() < 1
    codes = objective.tokenizer.pyramid.codebook()
    order = torch.cdist(codes[tokens[:, :-1]], codes).argsort(dim=-1)[..., : near + 1]
    assert_close(objective.right_Vk[tokens[:, :-1]].sort().values, order.sort().values)


def test_features_are_the_target_s_own_at_the_token(build):
    """Without drafts: of the conditional row, at each token of the image but the last."""
    objective, batch = build("judge-head", replaced=1e-9)
    features, right, drafted = objective._examples(batch, DRAWS.numbers("drafts"))
    assert right.all()
    assert not drafted.any()
    seen = batch.tokens[:, :-1].long()
    with torch.no_grad():
        expected = objective.teacher.next_hidden(objective.teacher.prefix(batch.labels), seen)[:, 1:]
    assert_close(features, expected)


def test_a_short_run_learns_to_accept_right_drafts_rather_than_wrong_ones(tiny, settings, cache, tmp_path):
    recipe = tiny("judge-head", optimiser={"lr": 3e-2, "weight_decay": 0.0}, steps=30, validate_every=1, ema=None)
    final = train(recipe, tmp_path, cache_dir=cache, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "validation_loss" in line]
    assert judged[-1]["validation_loss"] < judged[0]["validation_loss"] - 0.01
    assert {"right_accepted", "wrong_accepted"} <= lines[1].keys()
    assert isinstance(load_network(final), JudgeHead)


@pytest.mark.parametrize(
    ("model", "changed_options", "words"),
    [
        ({"embed_dim": 32}, {}, "embed_dim is 32, but the teacher has 16"),
        ({}, {"replaced": 0.0}, "replaced is 0.0; .*above 0"),
        ({}, {"near": -1}, "near is -1; .*0 or more"),
        ({}, {"near": 32}, "neighbours is 32; it must be from 1 to 31"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(tiny, settings, tmp_path, cache, model, changed_options, words):
    given = settings("judge-head")

    def run():
        options = given["objective_options"] | changed_options
        train(tiny("judge-head", model=given["model"] | model, objective_options=options), tmp_path, cache_dir=cache)

    with pytest.raises(ValueError, match=words):
        run()
