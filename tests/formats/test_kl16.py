"""The file of KL-16 becomes the same network in diffusers, all of it or none of it."""

import pytest
import torch
from diffusers import AutoencoderKL
from golden.cases import load_case
from torch.testing import assert_close

from var_toolkit.formats.directory import save_network
from var_toolkit.tokenizers.kl16 import autoencoder_from_tensors, empty_autoencoder

SCALES = (1, 2, 4)


@pytest.fixture(scope="module")
def autoencoder(kl16_tensors) -> AutoencoderKL:
    return autoencoder_from_tensors(kl16_tensors, {}, SCALES, "kl16.ckpt")


def test_encoder_and_decoder_are_the_published_ones(autoencoder):
    case = load_case("kl16-vae")
    with torch.no_grad():
        posterior = autoencoder.encode(case.tensors["image"]).latent_dist
        decoded = autoencoder.decode(case.tensors["latent"]).sample
    assert_close(posterior.mean, case.tensors["mean"], atol=1e-4, rtol=0)
    assert_close(posterior.logvar, case.tensors["logvar"], atol=1e-4, rtol=0)
    assert_close(decoded, case.tensors["decoded"], atol=2e-4, rtol=0)
    assert autoencoder.config.scaling_factor == 0.2325


def test_diffusers_reads_what_is_written(autoencoder, tmp_path):
    save_network(autoencoder, tmp_path / "vae")
    again = AutoencoderKL.from_pretrained(tmp_path / "vae")
    latent = load_case("kl16-vae").tensors["latent"]
    with torch.no_grad():
        # Two layouts in memory, whose convolutions add up in another order: 1.1e-5 was seen with one thread.
        assert_close(again.decode(latent).sample, autoencoder.decode(latent).sample, atol=5e-5, rtol=0)
    assert again.config.scaling_factor == 0.2325


def test_without_weights_it_has_the_published_size():
    network = empty_autoencoder({}, "flowar-s")
    assert sum(p.numel() for p in network.parameters()) == 66_456_019
    assert {p.device.type for p in network.parameters()} == {"meta"}


def test_the_sizes_that_it_has_may_be_told(autoencoder, kl16_tensors):
    facts = {"embed_dim": 16, "ch_mult": [1, 1, 2, 2, 4], "use_variational": True, "ckpt_path": None}
    told = autoencoder_from_tensors(kl16_tensors, facts, SCALES, "kl16.ckpt")
    assert told.config.block_out_channels == autoencoder.config.block_out_channels == (32, 32, 64, 64, 128)
    with pytest.raises(ValueError, match="says embed_dim is 4; the tensors say 16"):
        autoencoder_from_tensors(kl16_tensors, {"embed_dim": 4}, SCALES, "kl16.ckpt")


@pytest.mark.parametrize(
    ("lost", "added", "words"),
    [
        ("encoder.down.4.attn.1.k.bias", {}, "lacks 'encoder.down_blocks.4.attentions.1.to_k.bias'"),
        ("decoder.up.0.block.2.conv2.weight", {}, "lacks 'decoder.up_blocks.4.resnets.2.conv2.weight'"),
        ("post_quant_conv.weight", {}, "lacks 'post_quant_conv.weight'"),
        ("", {"decoder.up.0.attn.0.q.bias": torch.zeros(32)}, "has the unexpected tensor"),
        ("", {"quant_conv.bias": torch.zeros(31)}, "quant_conv.bias has shape"),
        ("encoder.down.2.block.0.conv1.weight", {}, "missing or misshapen tensors"),
    ],
)
def test_a_file_that_is_not_this_network_is_refused(kl16_tensors, lost, added, words):
    tensors = {name: tensor for name, tensor in {**kl16_tensors, **added}.items() if name != lost}
    with pytest.raises(ValueError, match=words):
        autoencoder_from_tensors(tensors, {}, SCALES, "kl16.ckpt")
