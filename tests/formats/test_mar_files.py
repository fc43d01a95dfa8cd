"""Published files of MAR and of its tokenizer become a model directory, with the published settings."""

import argparse
import json

import pytest
import torch
from golden.cases import FOLDER
from golden.recipe import fill_
from safetensors.torch import save_file
from small_mar import tiny_acdit_config, tiny_himar_config, tiny_mar

from var_toolkit.cli import main
from var_toolkit.formats.directory import save_network
from var_toolkit.formats.published import backbone_from_tensors, published_sampling
from var_toolkit.loading import load
from var_toolkit.models.acdit import ACDiT, ACDiTConfig
from var_toolkit.models.himar import HiMAR
from var_toolkit.registry import entry
from var_toolkit.tokenizers.kl import KLConfig

ACDIT = json.loads((FOLDER / "acdit-published-settings" / "case.json").read_text())
TOLD = {"encoder_num_heads": 2, "decoder_num_heads": 2}
CHANNELS = 16  # of KL-16
TABLES = {f"cond_diffloss.net.{name}": torch.zeros(1, 25, 16) for name in ("pos_embed", "c_pos_embed")}


@pytest.fixture(scope="module")
def published(tmp_path_factory, kl16_tensors):
    """A folder with the authors' checkpoint, the mirror's file and the tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    plain, average = (tiny_mar(salt, latent_channels=CHANNELS).state_dict() for salt in ("", "average"))
    content = {"model": plain, "model_ema": average, "epoch": 800, "args": argparse.Namespace(model="mar_base")}
    torch.save(content, folder / "checkpoint-last.pth")
    save_file({name: tensor.contiguous() for name, tensor in average.items()}, folder / "mar-base.safetensors")
    torch.save({"model": kl16_tensors}, folder / "kl16.ckpt")
    (folder / "config.json").write_text(json.dumps({"backbone": TOLD}))
    return folder


def convert(published, backbone, out, *more) -> int:
    files = ["--backbone", str(published / backbone), "--tokenizer", str(published / "kl16.ckpt")]
    told = ["--config", str(published / "config.json")]
    return main(["convert", "--family", "mar", *files, *told, "--out", str(out), *more])


@pytest.mark.parametrize(
    ("file", "more", "salt"),
    [
        ("checkpoint-last.pth", [], "average"),
        ("checkpoint-last.pth", ["--weights", "model"], ""),
        ("mar-base.safetensors", [], "average"),
    ],
)
def test_published_files_become_the_networks_they_are(published, tmp_path, file, more, salt):
    assert convert(published, file, tmp_path / "model", *more) == 0
    pipe, expected = load(tmp_path / "model", device="cpu"), tiny_mar(salt, latent_channels=CHANNELS)
    assert pipe.backbone.config == expected.config
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in pipe.backbone.state_dict().items())
    assert pipe.tokenizer.autoencoder.config.scaling_factor == 0.2325
    assert pipe.sampling == entry("mar-base").sampling
    drawn = pipe("golden retriever" if pipe.backbone.config.num_classes == 1000 else 3, seeds=0, solver="dpm++",
                 denoising_steps=3, output_type="pt")  # fmt: skip
    assert drawn.images.shape == (1, 3, pipe.tokenizer.image_side, pipe.tokenizer.image_side)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "does not determine the number of heads; give encoder_num_heads"),
        (TOLD | {"encoder_depth": 3}, "says encoder_depth is 3; the tensors say 1"),
        (TOLD | {"patch_size": 3}, "tokens of 16 channels, which are not patches of side 3"),
        (TOLD | {"width": 64}, "unknown field 'width'"),
    ],
)
def test_a_configuration_that_disagrees_is_refused_by_name(told, words):
    tensors = tiny_mar(latent_channels=CHANNELS).state_dict()
    with pytest.raises(ValueError, match=words):
        backbone_from_tensors("mar", tensors, told, "checkpoint-last.pth")


def test_a_checkpoint_of_himar_becomes_the_network_it_is(published, tmp_path, kl16_tensors):
    network = HiMAR(tiny_himar_config(latent_channels=CHANNELS, num_classes=1000))
    torch.save({"model_ema": network.state_dict() | TABLES}, tmp_path / "checkpoint-last.pth")
    told = {"backbone": {"encoder_num_heads": 2, "decoder_num_heads": 2, "head": 2}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    files = ["--backbone", str(tmp_path / "checkpoint-last.pth"), "--tokenizer", str(published / "kl16.ckpt")]
    options = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "model")]
    assert main(["convert", "--family", "himar", *files, *options]) == 0
    pipe = load(tmp_path / "model", device="cpu")
    assert pipe.backbone.config == network.config
    assert pipe.sampling == entry("himar-base").sampling
    drawn = pipe(207, seeds=0, steps=2, solver="dpm++", denoising_steps=2, pivot_cfg=1.0, output_type="latent")
    assert drawn.images.shape == (1, CHANNELS, 5, 5)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_checkpoint_of_acdit_becomes_the_network_it_is(tmp_path, patch):
    network = ACDiT(tiny_acdit_config(patch_size=patch))
    args = argparse.Namespace(model="ACDiT-XL", ar_len=4)
    torch.save({"model": fill_(network.state_dict()), "args": args}, tmp_path / "ACDiT-XL-img.pt")
    save_network(KLConfig((8, 8), 1, 4, 4, 8 * patch).build(0.18215), tmp_path / "vae")
    told = {"backbone": {"spatial_len": 16, "block_size": 4, "ar_len": 4, "patch_size": patch}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    files = ["--backbone", str(tmp_path / "ACDiT-XL-img.pt"), "--tokenizer", str(tmp_path / "vae")]
    options = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "model")]
    assert main(["convert", "--family", "acdit", *files, *options]) == 0
    pipe = load(tmp_path / "model", device="cpu")
    assert pipe.backbone.config == network.config
    assert (pipe.sampling.cfg, pipe.sampling.denoising_steps) == (1.5, 25)
    drawn = pipe(3, seeds=0, denoising_steps=2, output_type="pt")
    assert drawn.images.shape == (1, 3, 8 * patch, 8 * patch)
    edited = pipe.edit(drawn.images[0], (0, 0, 4, 4), 3, seeds=1, denoising_steps=2, output_type="latent")
    given = pipe.tokenizer.encode(drawn.images * 2 - 1)  # the edit has read it as bytes
    torch.testing.assert_close(edited.images[..., -patch:], given[..., -patch:], atol=5e-3, rtol=0)
    with pytest.raises(ValueError, match=r"^steps is for [^\n]*$"):
        pipe.plan(steps=4)


@pytest.mark.parametrize("size", ["XL", pytest.param("H", marks=pytest.mark.slow)])
def test_published_sizes_of_acdit_are_read_without_a_configuration(size):
    """From tensors of the published shapes; they take no memory."""
    facts = ACDIT["sizes"][size]
    config = ACDiTConfig(embed_dim=facts["hidden_size"], depth=facts["depth"])
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ACDiT(config).state_dict().items()}
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    network = backbone_from_tensors("acdit", tensors, {}, f"ACDiT-{size}-img.pt")
    assert network.config == config
    assert (network.config.side**2, network.config.block_side**2) == (
        ACDIT["image"]["spatial_len"],
        ACDIT["image"]["block_size"],
    )
    assert sum(p.numel() for p in network.parameters()) == facts["parameters_image"]
    with pytest.raises(ValueError, match=r"lacks 'blocks\.3\.attn"):
        backbone_from_tensors(
            "acdit", {n: t for n, t in tensors.items() if not n.startswith("blocks.3.attn.")}, {}, "a file"
        )


@pytest.mark.parametrize(("decoder", "patch"), [(48, 1), (32, 2)])
def test_sizes_are_read_from_the_tensors(decoder, patch):
    network = tiny_mar(decoder_embed_dim=decoder, patch_size=patch, latent_channels=4)
    told = TOLD | ({"patch_size": patch} if patch > 1 else {})
    assert backbone_from_tensors("mar", network.state_dict(), told, "a file").config == network.config


@pytest.mark.parametrize("name", ["mar-base", "mar-large", "mar-huge"])
def test_a_file_of_a_published_width_has_the_published_settings(name):
    found = entry(name)
    config = argparse.Namespace(embed_dim=found.source.configs["backbone"]["embed_dim"])
    assert published_sampling("mar", config, "checkpoint-last.pth") == found.sampling
