"""The multi-scale VQ tokenizer agrees with the published one and with itself."""

import pytest
import torch
from golden.cases import Case, load_case
from torch.testing import assert_close

from var_toolkit.core.schedule import Schedule
from var_toolkit.tokenizers.cnn import doubled_then_convolved
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig
from var_toolkit.tokenizers.residual_quantizer import phi_choice


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case("tokenizer-small")


def test_features_and_tokens_are_the_published_ones(case, small_tokenizer):
    assert_close(small_tokenizer.features(case.tensors["image"]), case.tensors["f"], atol=2e-5, rtol=0)
    for ours, theirs in zip(small_tokenizer.encode(case.tensors["image"]), case.maps("idx"), strict=True):
        assert torch.equal(ours, theirs)


def test_latents_and_previews_after_every_scale_are_the_published_ones(case, small_tokenizer):
    latents = small_tokenizer.latents(case.maps("idx"))
    for k, latent in enumerate(latents):
        assert_close(latent, case.tensors[f"f_hat_{k}"], atol=5e-6, rtol=0)
        assert_close(small_tokenizer.decode(latent), case.tensors[f"img_{k}"], atol=4e-5, rtol=0)


def test_teacher_inputs_are_the_published_ones(case, small_tokenizer):
    assert_close(small_tokenizer.teacher_inputs(case.maps("idx")), case.tensors["var_input"], atol=5e-6, rtol=0)


def test_reconstruction_is_the_published_one(case, small_tokenizer):
    assert_close(small_tokenizer.reconstruct(case.tensors["image"]), case.tensors["recon"], atol=4e-5, rtol=0)


def test_phi_choice_reproduces_the_published_ties(case):
    for rule, expected in case.facts["phi_index_rule"].items():
        if " x " in rule:
            shared, count = map(int, rule.split(" x "))
            scales = Schedule.named("256") if count == 10 else Schedule(tuple(range(1, count + 1)))
            assert phi_choice(scales, shared or count) == expected


@pytest.mark.parametrize("share", [0, 1, 2])
def test_every_way_to_share_phis_encodes_and_decodes(share):
    config = MultiScaleVQConfig(
        vocab_size=16,
        z_channels=4,
        ch=8,
        norm_groups=4,
        ch_mult=(1, 2),
        num_res_blocks=1,
        patch_nums=(1, 2, 4),
        share_quant_resi=share,
    )
    tokenizer = MultiScaleVQ(config).eval()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    tokens = tokenizer.encode(images)
    assert [t.shape for t in tokens] == [(2, 1), (2, 4), (2, 16)]
    assert tokenizer.decode(tokenizer.latents(tokens)[-1]).shape == images.shape


def test_the_training_pass_finds_the_same_tokens_and_reaches_every_parameter(case, small_tokenizer):
    reconstruction = small_tokenizer(case.tensors["image"])
    for ours, theirs in zip(reconstruction.tokens, case.maps("idx"), strict=True):
        assert torch.equal(ours, theirs)
    (reconstruction.images.square().mean() + reconstruction.quantizer_loss).backward()
    missing = [name for name, p in small_tokenizer.named_parameters() if p.grad is None]
    small_tokenizer.zero_grad(set_to_none=True)
    assert missing == []


def test_znorm_finds_the_code_of_largest_cosine():
    config = MultiScaleVQConfig(
        vocab_size=32,
        z_channels=4,
        ch=8,
        norm_groups=4,
        ch_mult=(1, 2),
        num_res_blocks=1,
        patch_nums=(1, 2),
        using_znorm=True,
    )
    quantize = MultiScaleVQ(config).quantize
    torch.nn.init.normal_(quantize.embedding.weight)
    codes = torch.randn(2, 3, 4)
    cosine = torch.nn.functional.cosine_similarity(codes[:, :, None], quantize.embedding.weight[None, None], dim=-1)
    assert torch.equal(quantize.nearest(codes), cosine.argmax(-1))


def test_teacher_inputs_of_a_scale_do_not_depend_on_finer_tokens(case, small_tokenizer):
    tokens = case.maps("idx")
    changed = [*tokens[:2], (tokens[2] + 1) % 64, (tokens[3] + 5) % 64]
    before, after = small_tokenizer.teacher_inputs(tokens), small_tokenizer.teacher_inputs(changed)
    known = small_tokenizer.scales.offsets[3] - 1
    assert torch.equal(before[:, :known], after[:, :known])
    assert not torch.equal(before[:, known:], after[:, known:])


def test_images_of_another_size_are_refused(small_tokenizer):
    with pytest.raises(ValueError, match=r"images .*\(B, 3, 64, 64\)"):
        small_tokenizer.encode(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("change", [{"vocab_size": 0}, {"patch_nums": (1, 1)}, {"share_quant_resi": -1}])
def test_impossible_sizes_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        MultiScaleVQConfig(**change)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (1, 3)])
def test_fused_upsampling_and_convolution_equals_the_two_steps(height, width):
    conv = torch.nn.Conv2d(5, 7, 3, padding=1)
    x = torch.randn(2, 5, height, width, requires_grad=True)
    slow = conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    fast = doubled_then_convolved(x, conv.weight, conv.bias)
    assert_close(fast, slow)
    seed = torch.randn_like(slow)
    for ours, theirs in zip(
        torch.autograd.grad(fast, (x, conv.weight), seed),
        torch.autograd.grad(slow, (x, conv.weight), seed),
        strict=True,
    ):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
