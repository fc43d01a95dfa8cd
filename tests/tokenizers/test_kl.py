"""The continuous tokenizer scales latents both ways, and its folder is one that diffusers reads."""

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from small_flowar import tiny_kl
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.directory import load_network, save_network
from var_toolkit.registry import WEIGHTS
from var_toolkit.tokenizers.kl import KLConfig, KLTokenizer


@pytest.fixture
def tokenizer() -> KLTokenizer:
    """A tokenizer with a shift factor, as some autoencoders have."""
    tokenizer = tiny_kl(1, 2, 4)
    tokenizer.autoencoder.register_to_config(shift_factor=0.3)
    return tokenizer


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_latents_are_shifted_and_scaled_in_both_directions(tokenizer, images):
    with torch.no_grad():
        mode = tokenizer.autoencoder.encode(images).latent_dist.mode()
        expected = tokenizer.autoencoder.decode(mode).sample.clamp(-1, 1)
    latent = tokenizer.encode(images)
    assert latent.shape == (2, 4, 4, 4)
    assert_close(latent, (mode - 0.3) * 0.5)
    assert_close(tokenizer.decode(latent), expected, atol=1e-5, rtol=0)
    assert_close(tokenizer.reconstruct(images), expected, atol=1e-5, rtol=0)


def test_each_channel_may_have_its_own_mean_and_standard_deviation(tokenizer, images):
    means, spreads = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    tokenizer.autoencoder.register_to_config(latents_mean=means, latents_std=spreads)
    with torch.no_grad():
        mode = tokenizer.autoencoder.encode(images).latent_dist.mode()
        expected = tokenizer.autoencoder.decode(mode).sample.clamp(-1, 1)
    mean, spread = (torch.tensor(values).view(4, 1, 1) for values in (means, spreads))
    latent = tokenizer.encode(images)
    assert_close(latent, (mode - mean) / spread * 0.5)
    assert_close(tokenizer.decode(latent), expected, atol=1e-5, rtol=0)


def test_noise_samples_latents_from_the_posteriors(tokenizer, images):
    with torch.no_grad():
        moments, posterior = tokenizer.moments(images), tokenizer.autoencoder.encode(images).latent_dist
    noise = torch.randn(2, 4, 4, 4)
    expected = (posterior.mean + posterior.std * noise - 0.3) * 0.5
    assert_close(tokenizer.latents(moments, noise), expected)
    assert_close(tokenizer.latents(moments), tokenizer.encode(images))


def test_the_training_pass_reconstructs_and_reaches_every_parameter(tokenizer, images):
    found = tokenizer(images)
    assert found.images.shape == images.shape
    assert found.kl.shape == (2,)
    (found.images.square().mean() + found.kl.mean()).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None] == []


def test_a_coarser_latent_is_enlarged_before_it_is_decoded(tokenizer):
    coarse = torch.randn(1, 4, 2, 2)
    grown = F.interpolate(coarse, size=(4, 4), mode="bicubic")
    assert torch.equal(tokenizer.decode(coarse), tokenizer.decode(grown))
    assert tokenizer.decode(coarse).shape == (1, 3, 8, 8)


def test_images_of_another_size_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"images .*\(1, 3, 16, 16\).*\(B, 3, 8, 8\)"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16))


def test_without_a_schedule_there_is_one_scale_of_sample_size():
    tokenizer = KLTokenizer(tiny_kl(4).autoencoder)
    assert (tokenizer.scales, tokenizer.image_side, tokenizer.channels) == (Schedule((4,)), 8, 4)


@pytest.mark.parametrize(
    ("upcast", "dtype", "found"),
    [
        (True, torch.float16, torch.float32),
        (True, torch.bfloat16, torch.bfloat16),
        (False, torch.float16, torch.float16),
        (True, None, torch.float32),
    ],
)
def test_float16_becomes_float32_if_the_autoencoder_has_force_upcast(tokenizer, images, upcast, dtype, found):
    tokenizer.autoencoder.register_to_config(force_upcast=upcast)
    tokenizer.place("cpu", dtype)
    assert tokenizer.autoencoder.dtype == found
    assert tokenizer.encode(images).dtype == tokenizer.reconstruct(images).dtype == torch.float32


def test_the_identity_of_a_latent_space_includes_its_scaling(tokenizer):
    ours = tokenizer.meaning()
    for name, value, kind in (("scaling_factor", 0.4, "factor"), ("shift_factor", 0.0, "shift")):
        other = tiny_kl(1, 2, 4)
        other.autoencoder.register_to_config(**{"shift_factor": 0.3, name: value})
        theirs = other.meaning()
        assert torch.equal(ours["conv_in"], theirs["conv_in"])
        assert not torch.equal(ours[kind], theirs[kind])


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"latent_channels": -1}, "latent_channels is -1"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0"),
        ({"block_out_channels": ()}, "block_out_channels is"),
        ({"block_out_channels": (32, 40)}, "block_out_channels is .* norm_num_groups, 32"),
        ({"sample_size": 24}, "sample_size is 24"),
    ],
)
def test_impossible_sizes_are_refused_by_name(setting, found):
    with pytest.raises(ValueError, match=found):
        KLConfig(**setting)


def test_encoder_attention_is_optional():
    names = {flag: [*tiny_kl(4, encoder_attention=flag).state_dict()] for flag in (True, False)}
    attentions = {flag: sum("encoder.down_blocks.1.attentions" in name for name in names[flag]) for flag in names}
    assert attentions[True] > attentions[False] == 0


@pytest.fixture
def folder(tokenizer, tmp_path):
    save_network(tokenizer.autoencoder, tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_autoencoder_loads_in_diffusers_and_here(tokenizer, folder, images):
    theirs, ours = AutoencoderKL.from_pretrained(folder).eval(), KLTokenizer(load_network(folder), tokenizer.scales)
    for config in (theirs.config, ours.autoencoder.config):
        assert (config.scaling_factor, config.shift_factor, config.sample_size) == (0.5, 0.3, 8)
    expected = tokenizer.reconstruct(images)
    assert torch.equal(ours.reconstruct(images), expected)
    with torch.no_grad():
        decoded = theirs.decode(theirs.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    assert_close(decoded, expected, atol=1e-5, rtol=0)


def without_one(tensors):
    tensors.pop("decoder.conv_in.weight")


def with_one_more(tensors):
    tensors["surplus"] = torch.zeros(1)


def of_another_size(tensors):
    tensors["decoder.conv_in.weight"] = torch.zeros(3, 4, 3, 3)


def not_finite(tensors):
    tensors["encoder.conv_in.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (without_one, "decoder.conv_in.weight"),
        (with_one_more, "surplus"),
        (of_another_size, "saved"),
        (not_finite, "encoder.conv_in.bias"),
    ],
)
def test_wrong_weights_are_refused_in_one_line(folder, damage, found):
    tensors = load_file(folder / WEIGHTS)
    damage(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=found) as error:
        load_network(folder)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("damage", ["cut short", "text", "gone", "config without sizes", "config of nonsense"])
def test_a_damaged_folder_is_refused_in_one_line_that_names_it(folder, damage):
    weights, config = folder / WEIGHTS, folder / "config.json"
    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "text":
        weights.write_text("no weights")
    elif damage == "gone":
        weights.unlink()
    elif damage == "config without sizes":
        config.write_text('{"_class_name": "AutoencoderKL"}')
    else:
        config.write_text('{"_class_name": "AutoencoderKL", "block_out_channels": "many"}')
    with pytest.raises(ValueError, match="saved") as error:
        load_network(folder)
    assert len(str(error.value).splitlines()) == 1
