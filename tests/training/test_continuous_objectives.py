"""Objectives of continuous tokens: the loss falls, and what a run saves has the published settings and draws."""

import json

import pytest

from var_toolkit.training.loop import train

SETTINGS = {
    "himar": {"steps": 4},
    "acdit": {"cfg": 1.5, "denoising_steps": 25},
    "xar": {"steps": 40, "guidance_interval": (0.0, 1.0)},
    "ecar": {"steps": 8, "guidance_interval": (0.0, 1.0)},
}
FEW = {"denoising_steps": 2, "steps": 2}  # for a test


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_falls_and_what_it_saves_draws(tiny, tmp_path, cache, name):
    from var_toolkit.loading import load

    recipe = tiny(name, steps=24, sample_every=24, validate_every=24, optimiser={"lr": 1e-2}, ema=None)
    final = train(recipe, tmp_path / "out", cache_dir=cache, device="cpu")
    lines = map(json.loads, (tmp_path / "out" / "log.jsonl").read_text().splitlines()[1:])
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-6:]) < 0.95 * sum(losses[:6])
    pipe = load(final, device="cpu")
    assert {key: getattr(pipe.sampling, key) for key in SETTINGS[name]} == SETTINGS[name]
    fewer = {key: FEW[key] for key in SETTINGS[name] if key in FEW}
    assert pipe(3, seeds=0, output_type="latent", **fewer).images.shape == (1, 4, 8, 8)
