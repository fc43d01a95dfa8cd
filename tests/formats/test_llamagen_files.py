"""Published files of LlamaGen and of its tokenizer become a model directory, with the published settings."""

import json
import re
from argparse import Namespace

import pytest
import torch
from golden.cases import FOLDER, load_case
from safetensors.torch import load_file, save_file
from small_flowar import tiny_flowar, tiny_kl
from small_llamagen import golden_gpt, golden_vq, tiny_gpt, tiny_vq, vq_tensors

from var_toolkit import registry
from var_toolkit.cli import main
from var_toolkit.formats.directory import save_network
from var_toolkit.formats.fitting import fitted
from var_toolkit.formats.published import backbone_from_tensors, published_sampling
from var_toolkit.heads.categorical import Categorical
from var_toolkit.loading import load, load_tokenizer, skeleton
from var_toolkit.models.llamagen import completed
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling, entry
from var_toolkit.tokenizers.raster_vq import tokenizer_from_tensors

FACTS = json.loads((FOLDER / "llamagen-published-settings" / "case.json").read_text())
CONFIG = load_case("llamagen-generate").facts["config"]


def gpt_tensors() -> dict[str, torch.Tensor]:
    """The golden network as some files have it: with a table that can be computed."""
    return {**golden_gpt().state_dict(), "freqs_cis": torch.zeros(17, 16, 2)}


def convert(folder, out, *more, backbone="c2i.pt", told=CONFIG) -> int:
    (folder / "config.json").write_text(json.dumps({"backbone": told}))
    files = ["--backbone", str(folder / backbone), "--tokenizer", str(folder / "vq.pt")]
    config = ["--config", str(folder / "config.json")] if told else []
    return main(["convert", "--family", "llamagen", *files, *config, "--out", str(out), *more])


@pytest.fixture
def published(tmp_path):
    torch.save({"model": gpt_tensors()}, tmp_path / "c2i.pt")
    torch.save({"model": vq_tensors()}, tmp_path / "vq.pt")
    return tmp_path


@pytest.mark.parametrize("nesting", ["model", "module", "state_dict", "bare", "checkpoint"])
def test_converted_files_draw_the_published_tokens_from_the_command_line(nesting, published, capsys):
    """The files of the small models, two kinds of exports of the large ones, and what the training script writes."""
    tensors, more = gpt_tensors(), {"optimizer": {"state": {}}, "steps": 3, "args": Namespace(gpt_model="GPT-B")}
    content = {"bare": tensors, "checkpoint": {"model": tensors, **more}}.get(nesting, {nesting: tensors})
    torch.save(content, published / "c2i.pt")
    assert convert(published, published / "model") == 0
    assert "RasterGPT with 3 layers, 64 px" in capsys.readouterr().out
    golden, tokens = load_case("llamagen-generate"), published / "tokens.safetensors"
    case, cfg = golden.tensors, str(golden.facts["sampling"]["cfg_scale"])
    labels = map(str, case["label"].tolist())
    drawing = ["sample", "--model", str(published / "model"), "--class", *labels, "--top-k", "1", "--cfg", cfg]
    assert main([*drawing, "--out", str(published), "--save-tokens", str(tokens)]) == 0
    saved = load_file(tokens)
    assert saved.keys() == {"tokens", "latent"}
    assert torch.equal(saved["tokens"], case["tokens"])
    assert torch.equal(saved["latent"], golden_vq().latents([case["tokens"]])[0])


def test_both_networks_are_the_published_ones(published):
    assert convert(published, published / "model") == 0
    pipe, gpt, case = load(published / "model", device="cpu"), golden_gpt(), load_case("llamagen-vq").tensors
    assert pipe.backbone.config == gpt.config
    assert all(torch.equal(tensor, gpt.state_dict()[name]) for name, tensor in pipe.backbone.state_dict().items())
    assert torch.equal(pipe.tokenizer.encode(case["image"])[0], case["ids"])
    latent = pipe.tokenizer.latents([case["decode_ids"]])[0]
    torch.testing.assert_close(pipe.tokenizer._decode_latent(latent), case["decoded"], atol=2e-4, rtol=0)
    assert (pipe.sampling.cfg, pipe.sampling.top_k, pipe.sampling.top_p) == (2.0, 0, 0.0)


def test_half_precision_files_become_float32(published):
    torch.save({name: tensor.bfloat16() for name, tensor in golden_gpt().state_dict().items()}, published / "c2i.pt")
    assert convert(published, published / "model", "--half") == 0
    network = load(published / "model", device="cpu").backbone
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    stored = load_file(published / "model" / "backbone" / registry.WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


def test_safetensors_files_are_taken(published):
    save_file(golden_gpt().state_dict(), published / "c2i.safetensors")
    assert convert(published, published / "model", backbone="c2i.safetensors") == 0


@pytest.mark.parametrize(
    ("told", "heads", "side"),
    [
        (CONFIG, 4, 4),
        ({}, 2, 16),
        ({"block_size": 576}, 2, 24),
        ({"n_head": 8, "n_kv_head": 8, "class_dropout_prob": 0.1, "token_dropout_p": 0.1, "multiple_of": 64}, 8, 16),
        ({"n_kv_head": None, "ffn_dim_multiplier": None, "model_type": "c2i", "initializer_range": 0.02}, 2, 16),
    ],
)
def test_what_the_tensors_cannot_tell_is_told_or_usual(told, heads, side):
    config = backbone_from_tensors("llamagen", gpt_tensors(), told, "c2i.pt").config
    assert (config.num_heads, config.side) == (heads, side)
    assert (config.depth, config.embed_dim, config.hidden, config.vocab_size, config.num_classes) == (
        3, 128, 512, 64, 10,
    )  # fmt: skip


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1280, 20), (1536, 24), (3200, 32), (2560, 40)])
def test_published_widths_tell_their_heads(width, heads):
    assert completed({"embed_dim": width, "mlp_hidden": 8}, {}, "a file")["num_heads"] == heads


def test_an_unusual_width_of_the_mlp_is_read_from_the_tensors():
    network = tiny_gpt(mlp_hidden=48)
    told = {"n_head": 2, "block_size": 9}
    assert backbone_from_tensors("llamagen", network.state_dict(), told, "c2i.pt").config == network.config


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"n_layer": 4}, "says depth is 4; the tensors say 3"),
        ({"dim": 64}, "says embed_dim is 64; the tensors say 128"),
        ({"num_classes": 1000}, "says num_classes is 1000; the tensors say 10"),
        ({"n_head": 4, "n_kv_head": 2}, "says n_kv_head is 2, but num_heads is 4; they must be the same"),
        ({"block_size": 500}, "says block_size is 500; it must be a square"),
        ({"block_size": "16"}, "says block_size is '16'; it must be a square"),
        ({"block_size": -4}, "says block_size is -4; it must be a square"),
        ({"model_type": "t2i"}, "says model_type is 't2i'; only 'c2i' is supported"),
        ({"cls_token_num": 120}, "says cls_token_num is 120; only 1 is supported"),
        ({"rope_base": 5e5}, "says rope_base is 500000.0; only 10000 is supported"),
        ({"norm_eps": 1e-6}, "says norm_eps is 1e-06; only 1e-05 is supported"),
        ({"n_head": 3}, r"embed_dim is 128; it must be a multiple of 4 \* num_heads, 3"),
        ({"heads": 4}, "unknown field 'heads'; known are .*n_head.*n_layer"),
    ],
)
def test_a_configuration_that_disagrees_is_refused_by_name(told, words):
    with pytest.raises(ValueError, match=words):
        backbone_from_tensors("llamagen", gpt_tensors(), told, "c2i.pt")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"codebook_size": 65}, "says vocab_size is 65; the tensors say 64"),
        ({"codebook_embed_dim": 4}, "says code_dim is 4; the tensors say 8"),
        ({"decoder_ch_mult": [1, 2]}, r"says ch_mult is \(1, 2\); the tensors say \(1, 1, 2, 2, 4\)"),
        ({"codebook_l2_norm": False}, "says codebook_l2_norm is False; only True is supported"),
        ({"ch": 128}, "says ch is 128; the tensors say 32"),
    ],
)
def test_a_configuration_of_the_tokenizer_that_disagrees_is_refused(told, words):
    with pytest.raises(ValueError, match=words):
        tokenizer_from_tensors(vq_tensors(), told, (4,), "vq.pt")


def test_the_published_arguments_of_the_tokenizer_are_known():
    told = {**load_case("llamagen-vq").facts["config"], "commit_loss_beta": 0.5, "dropout_p": 0.0}
    config = tokenizer_from_tensors(vq_tensors(), told, (4,), "vq.pt").config
    assert (config.beta, config.ch_mult, config.z_channels, config.side) == (0.5, (1, 1, 2, 2, 4), 64, 4)


@pytest.mark.parametrize(
    ("lost", "added", "words"),
    [
        ("encoder.conv_blocks.4.attn.1.k.bias", {}, "lacks 'encoder.down.4.attn.1.qkv.bias'"),
        ("decoder.conv_blocks.0.res.2.conv2.weight", {}, "lacks 'decoder.up.4.block.2.conv2.weight'"),
        ("decoder.mid.1.norm.bias", {}, "lacks 'decoder.mid.attn_1.norm.bias'"),
        ("encoder.conv_blocks.2.res.0.conv1.weight", {}, "missing or misshapen tensors"),
        ("post_quant_conv.weight", {}, "lacks 'post_quant_conv.weight'"),
        ("quantize.embedding.weight", {}, "lacks 'quantize.embedding.weight'"),
        ("", {"decoder.conv_blocks.4.upsample.conv.bias": torch.zeros(32)}, "unexpected tensor 'decoder.up.0.upsample"),
        ("", {"quant_conv.bias": torch.zeros(7)}, r"quant_conv.bias has shape \(7,\)"),
        ("", {"decoder.conv_out.bias": torch.full((3,), torch.nan)}, "decoder.conv_out.bias holds values that are not"),
    ],
)
def test_a_file_that_is_not_this_tokenizer_is_refused(lost, added, words):
    tensors = {name: tensor for name, tensor in {**vq_tensors(), **added}.items() if name != lost}
    with pytest.raises(ValueError, match=words):
        tokenizer_from_tensors(tensors, {}, (4,), "vq.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output.weight": None}, "lacks 'output.weight'"),
        ({"layers.1.feed_forward.w3.weight": None}, "lacks 'layers.1.feed_forward.w3.weight'"),
        ({"layers.0.feed_forward.w1.weight": None}, "missing or misshapen tensors"),
        ({"layers.0.attention.wqkv.weight": torch.zeros(256, 128)}, "wqkv.weight has shape (256, 128)"),
        ({"norm.weight": torch.full((128,), torch.inf)}, "norm.weight holds values that are not finite"),
        ({"output.weight": torch.zeros(64)}, "missing or misshapen tensors"),
        ({"cls_embedding.uncond_embedding": torch.zeros(120, 8)}, "unexpected tensor 'cls_embedding.uncond_embedding'"),
    ],
)
def test_damaged_files_are_refused_in_one_line(change, words, published, capsys):
    tensors = {name: tensor for name, tensor in {**gpt_tensors(), **change}.items() if tensor is not None}
    torch.save({"model": tensors}, published / "c2i.pt")
    assert convert(published, published / "model") == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(published / "c2i.pt") in error
    assert error.count("\n") == 1
    assert not (published / "model").exists()


def test_a_truncated_file_and_one_of_another_kind_are_refused(published, small_var, capsys):
    torch.save(small_var.state_dict(), published / "var.pt")
    assert convert(published, published / "model", backbone="var.pt") == 2
    assert "lacks 'cls_embedding.embedding_table.weight'" in capsys.readouterr().err
    assert convert(published, published / "model", backbone="vq.pt") == 2
    assert "lacks 'cls_embedding.embedding_table.weight'" in capsys.readouterr().err
    (published / "short.pt").write_bytes((published / "c2i.pt").read_bytes()[:9000])
    assert convert(published, published / "model", backbone="short.pt") == 2
    assert "short.pt" in capsys.readouterr().err


@pytest.mark.parametrize("side", [2, 4, 6])
def test_the_tokenizer_takes_the_side_of_the_backbone(side, tmp_path):
    """One file serves maps of any side, whichever it was saved for."""
    Pipeline(tiny_vq(side=3), tiny_gpt(side=3)).save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "backbone" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "side": side}))
    pipe = load(tmp_path / "model", device="cpu")
    assert pipe.tokenizer.image_side == skeleton(tmp_path / "model").tokenizer.image_side == 2 * side
    drawn = pipe(3, seeds=0, output_type="pt")
    assert (drawn.images.shape, drawn.tokens[0].shape) == ((1, 3, 2 * side, 2 * side), (1, side**2))
    pipe.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again" / "tokenizer", device="cpu").config.side == side


def test_tokenizers_and_backbones_of_other_kinds_do_not_mix(small_tokenizer, small_var):
    vq, gpt, flowar, kl = tiny_vq(), tiny_gpt(), tiny_flowar(), tiny_kl().autoencoder
    for tokenizer, backbone, words in (
        (small_tokenizer, gpt, "B draws one map of discrete tokens and needs a RasterVQ; A holds a MultiScaleVQ"),
        (kl, gpt, "B draws one map of discrete tokens and needs a RasterVQ; A holds an AutoencoderKL"),
        (vq, small_var, "B draws discrete tokens and needs a MultiScaleVQ; A holds a RasterVQ"),
        (vq, flowar, "B draws continuous tokens and needs an AutoencoderKL; A holds a RasterVQ"),
        (tiny_vq(vocab_size=8), gpt, "B expects 16 codes, A has 8"),
    ):
        with pytest.raises(ValueError, match=words):
            fitted(tokenizer, backbone, ("A", "B"))


def test_a_model_directory_of_a_mixture_is_refused(tmp_path, small_tokenizer):
    Pipeline(tiny_vq(), tiny_gpt()).save_pretrained(tmp_path / "model")
    save_network(small_tokenizer, tmp_path / "other")
    (tmp_path / "model" / "tokenizer").rename(tmp_path / "own")
    (tmp_path / "other").rename(tmp_path / "model" / "tokenizer")
    with pytest.raises(ValueError, match=r"needs a RasterVQ; .* holds a MultiScaleVQ"):
        load(tmp_path / "model", device="cpu")


FILES = {
    "llamagen-b": "c2i_B_256.pt", "llamagen-l": "c2i_L_256.pt", "llamagen-b-384": "c2i_B_384.pt",
    "llamagen-l-384": "c2i_L_384.pt", "llamagen-xl": "c2i_XL_384.pt", "llamagen-xxl": "c2i_XXL_384.pt",
    "llamagen-3b": "c2i_3B_384.pt",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_published_model_has_its_file_its_figures_and_its_settings(name):
    found, size, file = entry(name), name.split("-")[1].upper(), FILES[name]
    hub = FACTS["checkpoints"]["hub"]
    assert found.source.files == {"backbone": (hub, file), "tokenizer": (hub, "vq_ds16_c2i.pt")}
    kind, grid, fid = re.match(r"GPT-(\w+), (\d+)x\d+, FID ([\d.]+)", FACTS["checkpoints"][file]).groups()
    assert kind == size
    assert found.published["fid"] == float(fid)
    pipe = skeleton(name)
    assert pipe.tokenizer.image_side == found.resolution == 16 * int(grid)
    assert pipe.backbone.config.tokens == int(grid) ** 2
    assert sum(p.numel() for p in pipe.backbone.parameters()) == pytest.approx(found.source.parameters, abs=5e5)
    scales = re.findall(r"([\d.]+) for (\w+)(?: and (\w+))?", FACTS["fid_settings"])
    (published,) = (float(scale) for scale, *sizes in scales if size in sizes)
    (step,) = pipe.plan().steps
    assert 1 + step.guidance == pytest.approx(published)
    assert step.head == Categorical(temperature_first=True)
    assert found.sampling == published_sampling("llamagen", pipe.backbone.config, "other.pt")


def test_the_published_tokenizer_has_its_sizes():
    config, facts = skeleton("llamagen-b").tokenizer.config, FACTS["tokenizers"]["VQ-16"]
    assert (config.vocab_size, config.code_dim) == (facts["codebook_size"], facts["codebook_embed_dim"])
    assert (config.ch, list(config.ch_mult), config.z_channels) == (facts["ch"], facts["ch_mult"], facts["z_channels"])


def test_a_published_model_is_loaded_by_its_name(published, monkeypatch):
    """From files as the hub has them, here the golden networks under the names of the small model."""
    small = registry.Hub(
        {"tokenizer": ("hub", "vq.pt"), "backbone": ("hub", "c2i.pt")},
        {"tokenizer": {}, "backbone": {"num_heads": 4, "side": 4}}, 1, family="llamagen",
    )  # fmt: skip
    ours = registry.Entry("llamagen-b", "", 64, small, "none", Sampling(2.0, top_k=0, top_p=0.0))
    monkeypatch.setitem(registry.ENTRIES, "llamagen-b", ours)
    monkeypatch.setattr("var_toolkit.formats.hub.download", lambda repository, file: published / file)
    case = load_case("llamagen-generate").tensors
    pipe = load("llamagen-b", device="cpu")
    found = pipe(case["label"].tolist(), seeds=[0, 1], top_k=1, output_type="latent")
    assert torch.equal(found.tokens[0], case["tokens"])
