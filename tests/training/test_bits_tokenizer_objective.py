"""The bitwise tokenizer learns: what its loss holds, what a decoder stage leaves alone, and that bits stay in use."""

import json

import pytest
import torch
from torch.testing import assert_close

from var_toolkit.formats.directory import load_network
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train


def test_the_loss_adds_commitment_and_entropy_by_their_weights(build):
    terms = {"perceptual": 0.0, "adversarial": 0.0, "l1": 0.0, "l2": 0.0}
    objective, batch = build("bits-tokenizer", **terms, commitment=0.5, entropy=0.25, sharpness=2.0)
    loss = objective.phases(0)[0].loss(batch, Draws(0, 0, 0, 1, 8, torch.device("cpu")))
    found = objective.autoencoder(batch.images, 2.0)
    assert_close(loss.total, 0.5 * found.commitment + 0.25 * found.entropy)
    assert 0 < loss.terms["balance"] <= 1


def test_training_lowers_the_loss_and_writes_images_and_a_tokenizer(tiny, cache, tmp_path):
    recipe = tiny("bits-tokenizer", steps=12, objective_options={}, optimiser={"lr": 1e-2})
    final = train(recipe, tmp_path / "run", cache_dir=cache, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert any("validation_psnr" in line for line in lines)
    assert (tmp_path / "run" / "samples" / "0000012.png").is_file()
    assert load_network(final).config == recipe.model


def test_a_decoder_stage_changes_images_but_no_bit(tiny, cache, tmp_path, build):
    first = train(tiny("bits-tokenizer", ema=None, objective_options={}), tmp_path / "a", cache_dir=cache, device="cpu")
    options = {"initial": str(first), "train_only": "decoder"}
    recipe = tiny("bits-tokenizer", ema=None, objective_options=options)
    second = train(recipe, tmp_path / "b", cache_dir=cache, device="cpu")
    images = build("bits-tokenizer")[1].images
    before, after = load_network(first), load_network(second)
    maps = zip(before.token_maps(images), after.token_maps(images), strict=True)
    assert all(torch.equal(one, other) for one, other in maps)
    assert not torch.equal(before.reconstruct(images), after.reconstruct(images))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective_options": {"commitment": -1.0}}, "commitment is -1.0"),
        ({"objective_options": {"train_only": "decoder"}}, "train_only: decoder needs initial"),
        ({"model": {"codebook_dim": 2000}}, "codebook_dim is 2000"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny, changes, words):
    with pytest.raises(ValueError, match=words):
        tiny("bits-tokenizer", **changes)
