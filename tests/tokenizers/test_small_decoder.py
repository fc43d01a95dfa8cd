"""Small decoders: their sizes, which tokenizer one belongs to, and that every way of drawing decodes by it."""

import json
from copy import deepcopy

import pytest
import torch
from golden.cases import fill
from small_flexvar import small_flexvar_pipe
from small_flowar import tiny_flowar, tiny_kl
from small_infinity import words_pipeline
from torch.testing import assert_close

from var_toolkit import load
from var_toolkit.cli import main
from var_toolkit.core import forecast
from var_toolkit.core.forecast import decoder_multiply_adds
from var_toolkit.formats.directory import load_network, save_network
from var_toolkit.loading import skeleton
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import ENTRIES
from var_toolkit.still_life.data_set import render
from var_toolkit.tokenizers.small_decoder import SmallDecoder, SmallDecoderConfig, marks_of

EMBEDDED = [name for name, entry in ENTRIES.items() if getattr(entry.source, "decoder", None)]
MODEL, TOKENIZER = "stilllife-var-small", "stilllife-tokenizer"


def decoder_for(tokenizer, **changes) -> SmallDecoder:
    """One with random weights."""
    levels = tokenizer.latent_pixels.bit_length() - 1
    sizes = {"latent_channels": tokenizer.channels, "widths": (8,) * levels, "blocks": (1, 0, 1, 0, 0)[:levels]}
    known = {"tokenizer": "a tokenizer", "marks": marks_of(tokenizer)}
    return fill(SmallDecoder(SmallDecoderConfig(**sizes, **known, **changes))).eval()


@pytest.fixture
def pipes(small_tokenizer, small_var):
    return {
        "codes": lambda: Pipeline(deepcopy(small_tokenizer), deepcopy(small_var)),
        "bits": words_pipeline,
        "latents": lambda: Pipeline(tiny_kl(1, 2, 4), tiny_flowar(patch_nums=(1, 2, 4))),
        "whole maps": small_flexvar_pipe,
    }


@pytest.mark.parametrize("kind", ["codes", "bits", "latents", "whole maps"])
def test_a_saved_decoder_decodes_for_every_kind_of_tokenizer_until_it_is_unloaded(pipes, kind, tmp_path):
    pipe = pipes[kind]()
    asked = {"prompt": ["red cube"]} if kind == "bits" else {"class_labels": [3]}
    asked |= {"seeds": [1], "output_type": "pt"}
    whole, decoder = pipe(**asked), decoder_for(pipe.tokenizer)
    save_network(decoder, tmp_path / "decoder")
    again = load_network(tmp_path / "decoder")
    assert again.config == decoder.config
    previews = []
    pipe.load_decoder(tmp_path / "decoder")
    small = pipe(**asked, callback_on_scale_end=lambda event: previews.append(event.preview()))
    assert all(map(torch.equal, small.tokens, whole.tokens))
    assert small.images.shape == whole.images.shape
    assert torch.equal(small.images, (decoder.decode(small.latents) + 1) / 2)
    assert_close(previews[-1], small.images * 2 - 1)
    assert all(preview.shape == previews[-1].shape for preview in previews)
    assert torch.equal(pipe.unload_decoder()(**asked).images, whole.images)


@pytest.mark.parametrize("changes", [{"latent_channels": 9}, {"widths": (8,) * 5, "blocks": (0,) * 5}])
def test_a_decoder_of_other_sizes_is_refused_without_weights_too(small_tokenizer, small_var, tmp_path, changes):
    known = {
        "latent_channels": small_tokenizer.channels,
        "widths": (8,) * 4,
        "blocks": (0,) * 4,
        "tokenizer": "another",
    }
    save_network(SmallDecoder(SmallDecoderConfig(**known | changes)), tmp_path / "decoder")
    for device in ("cpu", "meta"):
        pipe = Pipeline(deepcopy(small_tokenizer).to(device), deepcopy(small_var).to(device))
        with pytest.raises(ValueError, match=r"^decoder .*decoder is for another, with latents of [^\n]*train one$"):
            pipe.load_decoder(tmp_path / "decoder")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["codes", "bits", "latents", "whole maps"])
def test_a_tokenizer_of_the_same_sizes_but_other_weights_is_refused(pipes, kind, dtype, tmp_path):
    pipe = pipes[kind]()
    save_network(decoder_for(pipe.tokenizer), tmp_path / "decoder")
    pipe.to(dtype).load_decoder(tmp_path / "decoder")
    for tensor in pipe.tokenizer.meaning().values():
        if tensor.ndim > 1:
            tensor.data.mul_(1.1)
    with pytest.raises(ValueError, match=r"another tokenizer of the same sizes[^\n]*$"):
        pipe.load_decoder(tmp_path / "decoder")


@pytest.mark.parametrize("name", ["no-such-decoder", "stilllife-classifier", "", "small"])
def test_an_unknown_decoder_is_named_in_one_line_before_weights_are_read(name, capsys):
    assert main(["sample", "--class", "3", "--model", "stilllife-flowar", "--decoder", name, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "decoder" in told
    assert told.count("\n") == 1


def test_a_folder_of_another_network_is_refused(small_var, small_tokenizer, tmp_path):
    save_network(small_var, tmp_path / "var")
    with pytest.raises(ValueError, match="holds a VAR"):
        Pipeline(small_tokenizer, small_var).load_decoder(tmp_path / "var")


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_it_combines_with_other_precisions(small_tokenizer, small_var, tmp_path, precision):
    pipe = Pipeline(deepcopy(small_tokenizer), deepcopy(small_var))
    save_network(decoder_for(small_tokenizer), tmp_path / "decoder")
    pipe.load_decoder(tmp_path / "decoder")
    pipe = pipe.quantize().pack() if precision == "int8" else pipe.to(torch.bfloat16)
    images = pipe([3], seeds=[0], output_type="pt").images
    assert_close(images, (decoder_for(small_tokenizer).decode(pipe([3], seeds=[0]).latents) + 1) / 2, atol=0.05, rtol=0)
    assert pipe.decoder.conv_in.weight.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_decoder_is_small_and_near_that_of_its_tokenizer(name):
    pipe = load(MODEL, device="cpu")
    latent = pipe.tokenizer.coded(render(range(16), range(2**42, 2**42 + 16)) / 127.5 - 1)
    whole, small = pipe.decode(latent), pipe.load_decoder(name).decode(latent)
    assert pipe.decoder.config.tokenizer == TOKENIZER
    assert sum(p.numel() for p in pipe.decoder.parameters()) <= 45_000
    errors = (whole - small).square().mean((1, 2, 3)) / 4
    assert (-10 * errors.log10()).mean() > 26


def test_the_command_decodes_by_the_small_decoder_of_the_package_and_a_dry_run_prices_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forecast, "_speed", lambda dtype: 1e9)
    asked = ["sample", "--class", "3", "--model", MODEL, "--device", "cpu", "--json"]
    told = []
    for more in ([], ["--decoder", "small"]):
        assert main([*asked, *more, "--dry-run"]) == 0
        told.append(json.loads(capsys.readouterr().out)["decoder_giga_multiply_adds"])
    assert 0 < told[1] < told[0] / 10
    assert main([*asked, "--decoder", "small", "--out", str(tmp_path / "small.png")]) == 0
    assert json.loads(capsys.readouterr().out)["decoder"] == "small"
    assert (tmp_path / "small.png").is_file()


def test_work_is_counted_at_the_size_of_the_latents():
    pipe = skeleton(MODEL).load_decoder("small")
    side = pipe.tokenizer.scales.finest
    decoder, work = pipe.decoder, 0
    for level, width in enumerate(decoder.config.widths):
        last = level == len(decoder.config.widths) - 1
        here = (side * 2**level) ** 2
        after = 4 * 3 * 9 if last else 4 * decoder.config.widths[level + 1]
        work += here * width * (2 * 9 * width * decoder.config.blocks[level] + after)
    work += side**2 * 9 * pipe.tokenizer.channels * decoder.config.widths[0]
    assert decoder_multiply_adds(pipe.bind(pipe.plan())) == work
