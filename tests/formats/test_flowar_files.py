"""Published files of FlowAR and of its tokenizer become a model directory, with the published settings."""

import json
from collections import OrderedDict

import pytest
import torch
from golden.cases import FOLDER, load_case
from small_flowar import golden_flowar
from torch import nn

from var_toolkit.cli import main
from var_toolkit.formats.directory import save_network
from var_toolkit.formats.published import backbone_from_tensors, published_sampling
from var_toolkit.loading import load, skeleton
from var_toolkit.models.flowar import completed, sizes
from var_toolkit.registry import entry
from var_toolkit.tokenizers.kl import KLConfig

SIZES = json.loads((FOLDER / "flowar-published-settings" / "case.json").read_text())["sizes"]


def flowar_tensors(cross: bool = False) -> dict[str, torch.Tensor]:
    """The golden network as its file has it: parameters, and tables that can be computed."""
    tables = {"mask": torch.zeros(1, 1, 21, 21)}
    for stack in ("encoder_blocks.0", "encoder_blocks.1", "decoder_blocks.0", "decoder_blocks.1"):
        tables[f"{stack}.attn.rope.freqs"] = torch.ones(8)
    tables["flownet.res_blocks.0.attn.rope.freqs"] = torch.ones(16)
    return {**golden_flowar(cross).state_dict(), **tables}


@pytest.fixture(scope="module")
def published(tmp_path_factory, kl16_tensors):
    folder = tmp_path_factory.mktemp("published")
    torch.save(OrderedDict((k, nn.Parameter(v)) for k, v in flowar_tensors().items()), folder / "FlowAR-S.pth")
    torch.save({"model": kl16_tensors}, folder / "kl16.ckpt")
    return folder


def convert(out, backbone, tokenizer, *more) -> int:
    files = ["--backbone", str(backbone), "--tokenizer", str(tokenizer)]
    return main(["convert", "--family", "flowar", *files, "--out", str(out), *more])


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    assert convert(out, published / "FlowAR-S.pth", published / "kl16.ckpt") == 0
    return out


def test_published_files_become_the_networks_they_are(converted):
    pipe, expected = load(converted, device="cpu"), golden_flowar(cross=False)
    assert pipe.backbone.config == expected.config
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in pipe.backbone.state_dict().items())
    assert pipe.tokenizer.image_side == 64
    assert pipe.tokenizer.pyramid.side == 16
    assert pipe.tokenizer.autoencoder.config.scaling_factor == 0.2325
    drawn = pipe("golden retriever", seeds=0, steps=3, output_type="pt")
    assert drawn.class_labels == [207]
    assert drawn.images.shape == (1, 3, 64, 64)


def test_the_tokenizer_may_be_a_directory_of_diffusers(published, tmp_path, capsys):
    save_network(KLConfig((32, 32), 1, 16, 32, 8, encoder_attention=False).build(0.5), tmp_path / "vae")
    assert convert(tmp_path / "model", published / "FlowAR-S.pth", tmp_path / "vae", "--half") == 0
    assert "FlowAR with 4 layers, 8 px" in capsys.readouterr().out
    assert load(tmp_path / "model", device="cpu").tokenizer.autoencoder.config.scaling_factor == 0.5
    (tmp_path / "config.json").write_text('{"tokenizer": {"embed_dim": 16}}')
    told = ["--config", str(tmp_path / "config.json")]
    assert convert(tmp_path / "other", published / "FlowAR-S.pth", tmp_path / "vae", *told) == 2
    assert "has settings of the tokenizer" in capsys.readouterr().err


def test_an_autoencoder_of_other_channels_is_refused(published, tmp_path, capsys):
    save_network(KLConfig((8, 8), 1, 4, 8, 8).build(), tmp_path / "vae")
    assert convert(tmp_path / "model", published / "FlowAR-S.pth", tmp_path / "vae") == 2
    error = capsys.readouterr().err
    assert "FlowAR-S.pth expects 16 latent channels" in error
    assert "vae has 4" in error
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("cross", [False, True])
def test_sizes_are_read_from_the_tensors_and_agree_with_the_published_arguments(cross):
    case = load_case("flowar-sample-cross" if cross else "flowar-sample")
    network = backbone_from_tensors("flowar", flowar_tensors(cross), case.facts["config"], "FlowAR.pth")
    assert network.config == golden_flowar(cross).config


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"encoder_depth": 3}, "says encoder_depth is 3; the tensors say 2"),
        ({"decoder_embed_dim": 32}, "says embed_dim is 32; the tensors say 64"),
        ({"encoder_num_heads": 2, "decoder_num_heads": 4}, "says decoder_num_heads is 4, but num_heads is 2"),
        ({"scale": [1, 2, 3]}, "encoder_pos_embed_learned has shape"),
        ({"width": 64}, "unknown field 'width'; known are .*class_num.*vae_embed_dim"),
    ],
)
def test_a_configuration_that_disagrees_is_refused_by_name(told, words):
    with pytest.raises(ValueError, match=words):
        backbone_from_tensors("flowar", flowar_tensors(), told, "FlowAR.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder_embed.weight": torch.zeros(128, 64)}, "an encoder 64 wide and a decoder 128 wide"),
        ({"decoder_blocks.1.attn.rope.freqs": torch.ones(4)}, "different numbers of heads"),
    ],
)
def test_stacks_that_are_not_alike_are_refused(change, words):
    tensors = {**flowar_tensors(), **change}
    with pytest.raises(ValueError, match=words):
        backbone_from_tensors("flowar", tensors, {}, "FlowAR.pth")


def test_a_file_of_another_family_is_refused(published, tmp_path, small_var, capsys):
    torch.save(small_var.state_dict(), tmp_path / "var.pth")
    assert convert(tmp_path / "model", tmp_path / "var.pth", published / "kl16.ckpt") == 2
    assert "lacks 'z_proj.weight'" in capsys.readouterr().err


@pytest.mark.parametrize(("length", "sides"), [(341, (1, 2, 4, 8, 16)), (21, (1, 2, 4)), (1365, (1, 2, 4, 8, 16, 32))])
def test_scales_that_double_are_known_by_their_number_of_tokens(length, sides):
    tensors = {"decoder_embed.weight": torch.zeros(64, 64), "encoder_pos_embed_learned": torch.zeros(1, length, 64)}
    found = completed({"embed_dim": 1536}, tensors, "a file")
    assert found == {"embed_dim": 1536, "num_heads": 16, "patch_nums": sides, "input_side": 16}
    tensors["encoder_pos_embed_learned"] = torch.zeros(1, length + 1, 64)
    with pytest.raises(ValueError, match=f"{length + 1} tokens, .*; give patch_nums by --config"):
        completed({"embed_dim": 1536}, tensors, "a file")
    told = {"embed_dim": 1536, "patch_nums": (1, 3), "input_side": 3}
    assert completed(told, tensors, "a file") == {**told, "num_heads": 16}


def test_heads_that_no_tensor_tells_are_asked_for():
    tensors = {name: tensor for name, tensor in flowar_tensors().items() if not name.endswith("rope.freqs")}
    with pytest.raises(ValueError, match="heads; give encoder_num_heads by --config"):
        backbone_from_tensors("flowar", tensors, {}, "FlowAR.pth")
    network = backbone_from_tensors("flowar", tensors, {"encoder_num_heads": 2}, "FlowAR.pth")
    assert network.config.num_heads == 2


@pytest.mark.parametrize(
    ("width", "hidden", "ratio"),
    [(768, 2048, 4.0), (64, 170, 4.0), (64, 85, 2.0), (1536, 2560, 2.5), (64, 100, 26 / 11), (64, 1, 1 / 22)],
)
def test_the_roundest_ratio_of_the_mlp_is_found(width, hidden, ratio):
    tensors = {**flowar_tensors(), "z_proj.weight": torch.zeros(width, 16)}
    tensors["encoder_blocks.0.mlp.fc1_g.weight"] = torch.zeros(hidden, 1)
    found = sizes(tensors)["mlp_ratio"]
    assert int(width * found * 2 / 3) == hidden
    assert found == ratio


@pytest.mark.parametrize("size", ["S", "L", "H"])
def test_every_published_size_has_its_parameters_and_settings(size):
    facts, found = SIZES[size], entry(f"flowar-{size.lower()}")
    pipe = skeleton(found.name)
    assert sum(p.numel() for p in pipe.backbone.parameters()) == facts["parameters"]
    assert found.source.parameters == pytest.approx(facts["parameters"], abs=5e5)
    assert pipe.tokenizer.image_side == 256
    flow = pipe.plan().steps[-1].head
    assert 1 + pipe.plan().steps[-1].guidance == pytest.approx(facts["readme_sampling"]["cfg"])
    assert flow.steps == facts["readme_sampling"]["num_steps"]
    assert flow.interval == (0.0, facts["readme_sampling"]["guidance"])
    assert found.sampling == published_sampling("flowar", pipe.backbone.config, "other.pth")
    assert found.published["fid"] == facts["fid_in_readme"] or facts["fid_in_readme"] is None
