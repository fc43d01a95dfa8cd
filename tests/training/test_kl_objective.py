"""The continuous tokenizer: its divergence, its scaling factor, and what is refused."""

import pytest
import torch

from var_toolkit.formats.directory import load_network, read_json
from var_toolkit.tokenizers.kl import KLTokenizer
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train

DRAWS = Draws(0, 0, 0, 1, 8, torch.device("cpu"))


def test_the_divergence_counts_by_its_weight_and_per_number_of_the_image(build):
    losses = []
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        objective, batch = build("kl", kl=weight, perceptual=0.0, adversarial=0.0)
        losses.append(objective.phases(0)[0].loss(batch, DRAWS))
    divergence = losses[0].terms["kl"]
    mean, log_variance = objective.autoencoder.moments(batch.images).chunk(2, dim=1)
    expected = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
    torch.testing.assert_close(divergence, expected.detach())
    torch.testing.assert_close(losses[1].total - losses[0].total, 100 * divergence / (3 * 64 * 64))


def test_latents_of_what_is_delivered_have_a_standard_deviation_of_one(tiny, cache, tmp_path):
    final = train(tiny("kl", steps=2, ema=None), tmp_path, cache_dir=cache, device="cpu")
    autoencoder = load_network(final)
    assert read_json(final / "config.json")["_class_name"] == "AutoencoderKL"
    tokenizer = KLTokenizer(autoencoder)
    from var_toolkit.still_life.data_set import cached
    from var_toolkit.training.batches import to_unit_range

    images = to_unit_range(torch.from_numpy(cached(cache, 24, "train")[0].copy()))
    with torch.no_grad():
        moments = tokenizer.moments(images)
    noise = torch.randn(moments[:, :4].shape, generator=torch.Generator().manual_seed(0))
    assert tokenizer.latents(moments, noise).std() == pytest.approx(1, rel=0.05)
    again = train(tiny("kl", steps=2, ema=None), tmp_path, cache_dir=cache, device="cpu")
    assert load_network(again).config.scaling_factor == autoencoder.config.scaling_factor


def test_weights_of_other_sizes_are_refused_in_one_line(build, settings, tiny, parts, cache, tmp_path):
    wider = settings("kl")["model"] | {"latent_channels": 8}
    recipe = tiny("kl", model=wider, objective_options={"initial": str(parts / "kl")})
    with pytest.raises(ValueError, match="has latent_channels 4, but the recipe asks for latent_channels 8"):
        train(recipe, tmp_path, cache_dir=cache, device="cpu")


def test_a_run_goes_on_from_saved_weights(build, parts):
    objective, _ = build("kl", initial=str(parts / "kl"))
    saved = load_network(parts / "kl").state_dict()
    for name, tensor in objective.autoencoder.autoencoder.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective_options": {"kl": -1.0}}, "kl is -1.0; expected 0 or more"),
        (
            {"model": {"block_out_channels": [12], "norm_num_groups": 8}},
            "each must be a multiple of norm_num_groups, 8",
        ),
        ({"model": {"block_out_channels": [32, 32], "sample_size": 63}}, "sample_size is 63"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny("kl", **changes)
