"""`vargen convert` beyond whole published pairs: tokenizers alone, choices, shards, refusals before any work."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from var_toolkit import registry
from var_toolkit.cli import main
from var_toolkit.files import partial
from var_toolkit.loading import load, load_tokenizer
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.training.starting_weights import network_from


@pytest.fixture(scope="module")
def published(tmp_path_factory, small_tokenizer, small_var):
    folder = tmp_path_factory.mktemp("published")
    torch.save(small_tokenizer.state_dict(), folder / "vae.pth")
    torch.save(small_var.state_dict(), folder / "var.pth")
    sizes = {"patch_nums": [1, 2, 3, 4]}
    (folder / "tokenizer.json").write_text(json.dumps({"tokenizer": sizes}))
    (folder / "config.json").write_text(json.dumps({"backbone": sizes}))
    return folder


def convert(folder, out, *more, backbone="var.pth", config="config.json", tokenizer="vae.pth") -> int:
    words = ["--tokenizer", str(folder / tokenizer), "--config", str(folder / config), "--out", str(out), *more]
    if backbone is not None:
        words += ["--backbone", str(folder / backbone)]
    return main(["convert", "--family", "var", *words])


def test_a_tokenizer_converts_alone_and_recipes_take_it(published, tmp_path, small_tokenizer, capsys):
    assert convert(published, tmp_path / "vae", backbone=None, config="tokenizer.json") == 0
    assert f"tokenizer: {tmp_path / 'vae'}" in capsys.readouterr().out
    found = network_from(str(tmp_path / "vae"), MultiScaleVQ, what="tokenizer")
    assert found.config == small_tokenizer.config
    assert all(map(torch.equal, found.state_dict().values(), small_tokenizer.state_dict().values()))
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    alone = load_tokenizer(tmp_path / "vae", device="cpu")
    torch.testing.assert_close(alone.reconstruct(images), small_tokenizer.reconstruct(images))


def test_a_tokenizer_alone_has_the_published_maps_of_256_pixels_if_nothing_is_said(published, tmp_path):
    words = ["--tokenizer", str(published / "vae.pth"), "--out", str(tmp_path / "vae")]
    assert main(["convert", "--family", "hmar", *words]) == 0
    assert load_tokenizer(tmp_path / "vae", device="cpu").image_side == 256


@pytest.mark.parametrize(("name", "kind"), [("stilllife-tokenizer", "MultiScaleVQ"), ("stilllife-var", "MultiScaleVQ")])
def test_names_of_the_zoo_are_tokenizers_of_recipes(name, kind):
    assert type(network_from(name, MultiScaleVQ, what="tokenizer")).__name__ == kind


def test_a_published_name_gives_its_tokenizer_without_its_backbone(published, monkeypatch, small_tokenizer):
    entry = registry.ENTRIES["var-d16"]
    sizes = {"tokenizer": {"patch_nums": (1, 2, 3, 4)}, "backbone": {"patch_nums": (1, 2, 3, 4)}}
    sizes["backbone"] |= {"depth": 1, "embed_dim": 64, "num_heads": 1, "vocab_size": 64, "latent_channels": 8}
    monkeypatch.setitem(registry.ENTRIES, "var-d16", replace(entry, source=replace(entry.source, configs=sizes)))
    asked = []
    monkeypatch.setattr(
        "var_toolkit.formats.hub.download", lambda name, file: asked.append(file) or published / "vae.pth"
    )
    found = network_from("var-d16", MultiScaleVQ, what="tokenizer")
    assert asked == ["vae_ch160v4096z32.pth"]
    assert found.config == small_tokenizer.config
    assert load_tokenizer("var-d16", device="cpu").image_side == 64
    with pytest.raises(ValueError, match=r"^tokenizer: .*no-such-tokenizer"):
        network_from("no-such-tokenizer", MultiScaleVQ, what="tokenizer")


def test_the_weights_taken_are_said_and_may_be_chosen(published, tmp_path, small_var, capsys):
    averaged = small_var.state_dict()
    raw = {name: tensor + 0.5 for name, tensor in averaged.items()}
    torch.save({"model": raw, "ema": averaged, "epoch": 3}, published / "both.pth")
    for words, bias in (((), averaged["head.bias"]), (("--weights", "model"), raw["head.bias"])):
        out = tmp_path / "-".join(["model", *words])
        assert convert(published, out, *words, backbone="both.pth") == 0
        told = capsys.readouterr().err
        assert told.startswith(f"{published / 'both.pth'}: took '{words[1] if words else 'ema'}'")
        assert told.count("\n") == 1
        assert torch.equal(load(out, device="cpu").backbone.head.bias, bias)
    assert convert(published, tmp_path / "none", "--weights", "ema") == 2
    assert "--weights ema" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["index", "folder"])
def test_shards_convert(published, tmp_path, small_var, words):
    tensors = small_var.state_dict()
    folder = tmp_path / "shards"
    folder.mkdir()
    place = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(place.values()):
        save_file({name: t.contiguous() for name, t in tensors.items() if place[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": place}))
    assert convert(published, tmp_path / "m", backbone=index if words == "index" else folder) == 0
    found = load(tmp_path / "m", device="cpu").backbone.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in tensors.items())


def test_what_is_refused_leaves_no_folders(published, tmp_path, capsys):
    assert convert(published, tmp_path / "a" / "b" / "out", backbone="vae.pth") == 2
    assert "vae.pth" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_half_precision_that_cannot_hold_the_weights_is_refused_by_name(published, tmp_path, small_var, capsys):
    torch.save({**small_var.state_dict(), "head.bias": torch.full((64,), 1e5)}, published / "large.pth")
    assert convert(published, tmp_path / "m", "--half", backbone="large.pth") == 2
    error = capsys.readouterr().err
    assert "head.bias" in error
    assert "float16" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["pos_1LC", "word_embed.weight", "class_emb.weight", "lvl_embed.weight", "head.weight"]
)
@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (1, 1, 1, 1, 1)])
def test_misshapen_tensors_are_named(published, tmp_path, small_var, capsys, name, shape):
    torch.save({**small_var.state_dict(), name: torch.zeros(shape)}, published / "odd.pth")
    assert convert(published, tmp_path / "m", backbone="odd.pth") == 2
    error = capsys.readouterr().err
    assert "odd.pth" in error
    assert name in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "backbone",
    [{"num_heads": float("nan")}, {"num_heads": "two"}, {"mlp_ratio": -1}, {"depth": 10**9}, {"patch_nums": 3}],
)
def test_a_configuration_of_a_wrong_kind_is_refused_by_key(published, tmp_path, capsys, backbone):
    (published / "wrong.json").write_text(json.dumps({"backbone": backbone}))
    assert convert(published, tmp_path / "m", config="wrong.json") == 2
    error = capsys.readouterr().err
    assert "wrong.json" in error or next(iter(backbone)) in error
    assert error.count("\n") == 1


def test_a_convert_that_was_killed_leaves_nothing_to_the_next(published, tmp_path):
    with partial(tmp_path / "m", folder=True) as left:
        kept = tmp_path / left.name.replace("m-", "n-")
        kept.mkdir()
    (kept / "weights").write_bytes(b"x")
    assert convert(published, tmp_path / "m") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stilllife", "did you mean 'stilllife-var'"),
        ("vard16", "did you mean 'var-d16'"),
        ("qqq", "vargen models"),
        ("runs/nowhere", "runs/nowhere"),
        ("./nowhere/at/all", "nowhere/at/all: "),
        ("", "empty"),
    ],
)
def test_an_unknown_model_is_told_in_a_short_line_that_suggests_what_draws(name, words):
    if name == "runs/nowhere":
        with pytest.raises(ValueError, match="does not exist"):
            registry.entry(name)
        return
    with pytest.raises(ValueError, match=words) as caught:
        load(name)
    assert len(str(caught.value)) < 200
