"""A small decoder learns what the tokenizer's own decoder makes of latents, and is delivered with what it is for."""

import json

import pytest
import torch
from torch.testing import assert_close

from var_toolkit.formats.directory import load_network
from var_toolkit.loading import load_tokenizer
from var_toolkit.processes import Team
from var_toolkit.still_life.data_set import cached
from var_toolkit.tokenizers.small_decoder import marks_of
from var_toolkit.training.batches import Batch, to_unit_range
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.registry import objective_class

NAME = "small-decoder"
DRAWS = Draws(0, 0, 0, 1, 8, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["tokenizer", "kl", "raster-tokenizer"])
def test_it_reads_latents_and_is_to_make_the_images_of_the_tokenizer(tiny, parts, cache, kind):
    recipe = tiny(NAME, tokenizer=str(parts / kind), objective_options={"l1": 0.5, "l2": 0.25}, precision="fp32")
    objective = objective_class(NAME)(recipe, Workplace(cache, Team(0, 1, DRAWS.device)))
    shown = to_unit_range(torch.from_numpy(cached(cache, 24, "train")[0][:8].copy()))
    latent, wanted = objective.tokenizer.coded(shown), objective.tokenizer.reconstruct(shown)
    off = objective.networks["decoder"](latent) - wanted
    stored = next(iter(objective.source.batches([torch.arange(8)], 0)))
    for batch in (stored, Batch(stored.labels, images=shown)):  # rendered images, and those of folders
        loss = objective.phases(0)[0].loss(batch, DRAWS)
        assert_close(loss.total, 0.5 * off.abs().mean() + 0.25 * off.square().mean(), atol=1e-3, rtol=0)


def test_training_lowers_the_loss_and_delivers_a_decoder_that_knows_its_tokenizer(tiny, parts, cache, tmp_path):
    recipe = tiny(NAME, steps=20, objective_options={}, optimiser={"lr": 1e-2})
    final = train(recipe, tmp_path / "run", cache_dir=cache, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert any("validation_psnr" in line for line in lines)
    found, tokenizer = load_network(final), load_tokenizer(parts / "tokenizer", device="cpu")
    assert found.config.tokenizer == "tokenizer"
    assert found.config.marks == marks_of(tokenizer)
    found.require_tokenizer(tokenizer, "it")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": None}, "missing key 'tokenizer'"),
        ({"model": {"widths": [8, 8], "blocks": [1]}}, r"blocks is \[1\]"),
        (
            {"model": {"widths": [8, 8], "blocks": [1, 1], "latent_channels": 4}},
            r"model: .* for 4 x 4 pixels, but the tokenizer has .* for 8 x 8",
        ),
    ],
)
def test_what_does_not_fit_is_named(tiny, cache, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train(tiny(NAME, **changes), tmp_path, cache_dir=cache, device="cpu")
