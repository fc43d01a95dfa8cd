"""What each objective promises besides a falling loss."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from var_toolkit.formats.directory import load_network, save_network
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.still_life.data_set import cached
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig
from var_toolkit.training import code_cache
from var_toolkit.training.batches import to_unit_range
from var_toolkit.training.code_cache import cached_tokens
from var_toolkit.training.codebook_upkeep import initialise_codebook, residual_vectors, revive
from var_toolkit.training.discriminator import PatchDiscriminator
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train
from var_toolkit.training.starting_weights import network_from, start_from
from var_toolkit.training.var_objective import decay_groups, sum_of_factors_

DRAWS = Draws(0, 0, 0, 1, 8, torch.device("cpu"))


@pytest.fixture
def images(cache):
    return torch.from_numpy(np.array(cached(cache, 24, "train", progress=False)[0]))


@pytest.fixture
def tokenizer(parts):
    return load_network(parts / "tokenizer")


def log_lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_decoder_stage_changes_images_but_no_token(tiny, cache, parts, tmp_path, images, tokenizer):
    options = {"train_only": "decoder", "initial": str(parts / "tokenizer")}
    final = train(tiny("tokenizer", objective_options=options), tmp_path, cache_dir=cache, device="cpu")
    after, real = load_network(final), to_unit_range(images)
    for old, new in zip(tokenizer.encode(real), after.encode(real), strict=True):
        assert torch.equal(old, new)
    assert not torch.equal(tokenizer.reconstruct(real), after.reconstruct(real))
    frozen = ("encoder.", "quant_conv.", "quantize.")
    before = tokenizer.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.state_dict().items() if k.startswith(frozen))


def test_what_is_delivered_is_the_moving_average(tiny, cache, tmp_path, weights):
    recipe = tiny("var", ema=0.5)
    final = weights(train(recipe, tmp_path, cache_dir=cache, device="cpu"))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(final[name], saved["average"][name]) for name in final)
    assert not torch.equal(final["head.weight"], saved["networks"]["var"]["head.weight"])


def test_the_log_and_the_sheets_tell_what_happened(tiny, cache, tmp_path):
    train(tiny("tokenizer"), tmp_path, cache_dir=cache, device="cpu")
    header, *lines = log_lines(tmp_path)
    assert "codebook_used" in header["note"]
    keys = set().union(*lines)
    wanted = {"psnr", "l1", "l2", "quantiser", "perceptual", "adversarial", "critic", "lr", "images_per_second"}
    assert wanted <= keys
    assert {"grad_norm_tokenizer", "codebook_used_scale_2", "validation_psnr"} <= keys
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == ["0000003.png", "0000006.png"]


def test_the_var_log_has_loss_and_accuracy_by_scale(tiny, cache, tmp_path):
    train(tiny("var"), tmp_path, cache_dir=cache, device="cpu")
    header, first, *_ = log_lines(tmp_path)
    assert "normal" in header["note"]
    assert first["loss_scale_0"] == pytest.approx(np.log(32), rel=0.1)
    assert 0 <= first["accuracy_scale_2"] <= 1


def test_classes_that_share_a_part_start_close():
    torch.manual_seed(0)
    table = nn.init.normal_(torch.empty(1001, 64), std=0.1)
    null = table[1000].clone()
    sum_of_factors_(table)
    assert torch.equal(table[1000], null)
    assert table.std().item() == pytest.approx(0.1, rel=0.15)
    torch.testing.assert_close(table[234] - table[239], table[674] - table[679])
    near = nn.functional.cosine_similarity(table[234], table[235], dim=0)
    far = nn.functional.cosine_similarity(table[234], table[905], dim=0)
    assert near > far + 0.3


def test_weight_decay_spares_what_the_release_spares():
    network = VAR(VARConfig(depth=1, embed_dim=16, num_heads=2, patch_nums=(1, 2), vocab_size=8, latent_channels=4,
                            shared_aln=True))  # fmt: skip
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, exempt = ({names[id(p)] for p in group["params"]} for group in decay_groups(network))
    assert {"pos_1LC", "pos_start", "lvl_embed.weight", "blocks.0.ada_gss", "head.bias"} <= exempt
    assert {"head.weight", "word_embed.weight", "class_emb.weight"} <= decayed
    assert any("scale_mul" in name for name in exempt)
    assert decayed | exempt == set(names.values())


def test_an_initial_codebook_is_used_and_dead_codes_come_back(images):
    torch.manual_seed(0)
    config = MultiScaleVQConfig(vocab_size=32, z_channels=4, ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1,
                                norm_groups=1, patch_nums=(1, 2, 8))  # fmt: skip
    network, real = MultiScaleVQ(config), to_unit_range(images)
    before = residual_vectors(network, real)[1].mean()
    initialise_codebook(network, real, DRAWS)
    assert residual_vectors(network, real)[1].mean() < before
    assert torch.cat(network.encode(real), dim=1).unique().numel() > 16
    network.quantize.embedding.weight.data[:24] = 1e3
    dead = torch.arange(32) < 24
    revive(network, dead, real, DRAWS)
    assert torch.cat(network.encode(real), dim=1).unique().numel() > 16


def test_tokens_are_computed_once_and_a_killed_encoding_goes_on(tokenizer, images, tmp_path, monkeypatch):
    monkeypatch.setattr(code_cache, "CHUNK", 8)
    whole = cached_tokens(tokenizer, images.numpy(), tmp_path / "a", "train", progress=False)
    expected = torch.cat(tokenizer.encode(to_unit_range(images)), dim=1)
    assert torch.equal(torch.from_numpy(whole.astype(np.int64)), expected)
    assert whole.dtype == np.int16

    calls = []
    encode = code_cache.encoded

    def fail_on_the_second(encoding, part, device):
        calls.append(len(part))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(encoding, part, device)

    monkeypatch.setattr(code_cache, "encoded", fail_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        cached_tokens(tokenizer, images.numpy(), tmp_path / "b", "train", progress=False)
    again = cached_tokens(tokenizer, images.numpy(), tmp_path / "b", "train", progress=False)
    assert calls == [8, 8, 8, 8]
    assert np.array_equal(again, whole)
    cached_tokens(tokenizer, images.numpy(), tmp_path / "b", "train", progress=False)
    assert len(calls) == 4


def test_another_tokenizer_has_other_tokens_on_disk(tokenizer):
    before = code_cache.weights_hash(tokenizer)
    with torch.no_grad():
        tokenizer.decoder.conv_in.weight.add_(1)
    assert code_cache.weights_hash(tokenizer) == before
    with torch.no_grad():
        tokenizer.quant_conv.weight.add_(1)
    assert code_cache.weights_hash(tokenizer) != before


def test_a_tokenizer_that_does_not_fit_is_refused(tiny, settings, cache, tmp_path):
    recipe = tiny("var", model=settings("var")["model"] | {"vocab_size": 64})
    with pytest.raises(ValueError, match="vocab_size is 64, but the tokenizer has 32"):
        train(recipe, tmp_path, cache_dir=cache, device="cpu")


def test_initial_weights_of_another_size_are_refused(tiny, settings, parts, cache, tmp_path):
    model = settings("tokenizer")["model"] | {"vocab_size": 64}
    recipe = tiny("tokenizer", model=model, objective_options={"initial": str(parts / "tokenizer")})
    with pytest.raises(ValueError, match=r"initial: .* but the recipe asks for"):
        train(recipe, tmp_path, cache_dir=cache, device="cpu")


def test_the_wrong_kind_of_network_is_refused(tiny, parts, cache, tmp_path):
    recipe = tiny("var", tokenizer=str(parts / "classifier"))
    with pytest.raises(ValueError, match="holds a StillLifeClassifier; expected a MultiScaleVQ"):
        train(recipe, tmp_path, cache_dir=cache, device="cpu")


def test_a_verdict_does_not_depend_on_the_other_images():
    torch.manual_seed(0)
    network, images = PatchDiscriminator(8), torch.rand(4, 3, 64, 64)
    assert network(images).shape == (4, 1, 8, 8)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_tokens_of_a_training_pass_are_those_of_float32(tokenizer, images):
    real, seen = to_unit_range(images), []
    quantise = tokenizer.quantize.forward

    def watched(features):
        seen.append(features)
        return quantise(features)

    tokenizer.quantize.forward = watched
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = tokenizer(real)
        encoded = tokenizer.encode(real)
    assert seen[0].dtype == torch.bfloat16
    expected = quantise(seen[0].float())
    for got, again, wanted in zip(result.tokens, encoded, expected.tokens, strict=True):
        assert torch.equal(got, wanted)
        assert torch.equal(again, wanted)
    assert result.quantizer_loss.dtype == torch.float32
    assert torch.equal(result.quantizer_loss, expected.loss)


@pytest.mark.parametrize("name", ["initial", "perceptual_network"])
def test_missing_networks_are_refused_before_an_image_is_drawn(tiny, tmp_path, name):
    recipe = tiny("tokenizer", objective_options={"perceptual": 1.0, "perceptual_network": "nowhere", name: "nowhere"})
    with pytest.raises(ValueError, match=rf"^{name}: .*'nowhere'"):
        train(recipe, tmp_path / "out", cache_dir=tmp_path / "cache", device="cpu")
    assert not (tmp_path / "cache").exists()


def test_images_of_another_size_are_refused_before_one_is_drawn(tiny, settings, tmp_path):
    model = settings("tokenizer")["model"] | {"ch_mult": [1, 1]}
    recipe = tiny("tokenizer", model=model, objective_options={})
    with pytest.raises(ValueError, match="images have 64 x 64 pixels, but the tokenizer reads 16 x 16"):
        train(recipe, tmp_path / "out", cache_dir=tmp_path / "cache", device="cpu")
    assert not (tmp_path / "cache").exists()


def test_networks_are_found_in_a_model_directory(tiny, cache, tmp_path, weights):
    final = train(tiny("var", steps=1), tmp_path / "a", cache_dir=cache, device="cpu")
    assert isinstance(network_from(str(final), VAR, what="initial"), VAR)
    assert isinstance(network_from(str(final), MultiScaleVQ, what="tokenizer"), MultiScaleVQ)
    recipe = tiny("var", steps=1, tokenizer=str(final), objective_options={"initial": str(final)}, ema=None)
    again = train(recipe, tmp_path / "b", cache_dir=cache, device="cpu")
    torch.testing.assert_close(weights(again)["pos_1LC"], weights(final)["pos_1LC"], rtol=0, atol=0.01)


def test_a_backbone_may_go_on_with_other_classes(parts, tmp_path):
    learned = network_from(str(parts / "var"), VAR, what="initial")
    with torch.no_grad():
        learned.class_emb.weight[-1] = 7.0
    save_network(learned, tmp_path / "learned")
    network = VAR(replace(learned.config, num_classes=3))
    start_from(network, str(tmp_path / "learned"))
    assert network.class_emb.weight.tolist() == [[7.0] * learned.config.embed_dim] * 4  # the null class is the last
    for name, value in network.state_dict().items():
        assert name == "class_emb.weight" or torch.equal(value, learned.state_dict()[name])
