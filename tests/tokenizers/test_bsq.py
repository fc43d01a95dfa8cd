"""The bitwise tokenizer agrees with the published one, also patchified, and learns."""

import pytest
import torch
from golden.cases import load_case
from golden.recipe import tensor_for
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.directory import load_network, save_network
from var_toolkit.tokenizers.bsq import (
    BitPyramid,
    BitQuantizer,
    MultiScaleBSQ,
    MultiScaleBSQConfig,
    entropy_gap,
    tokenizer_from_tensors,
)

TINY = {
    "codebook_dim": 4,
    "ch": 8,
    "ch_mult": (1, 1, 1),
    "num_res_blocks": 1,
    "norm_groups": 1,
    "patch_nums": (1, 2, 4),
}


def tiny(**changes) -> MultiScaleBSQ:
    torch.manual_seed(0)
    return MultiScaleBSQ(MultiScaleBSQConfig(**(TINY | changes))).eval()


def golden(case, patchify: bool) -> tuple[MultiScaleBSQ, Schedule]:
    """The tokenizer of a case, from tensors under their published names, and the schedule of tokens."""
    shapes = case.facts["weights"]["models"]["vae"]["state_dict"]
    tensors = {name: tensor_for(name, tuple(shape)) for name, shape in shapes.items()}
    tensors = {name: torch.zeros(1) if found is None else torch.from_numpy(found) for name, found in tensors.items()}
    patch = 2 if patchify else 1
    schedule = Schedule(tuple((h // patch, w // patch) for _, h, w in case.facts["config"]["schedule_thw"]))
    return tokenizer_from_tensors(tensors, {"patchify": patchify}, (1, 2), "case"), schedule


@pytest.fixture(params=["infinity-tokenizer", "infinity-tokenizer-patchify"], scope="module")
def published(request):
    case = load_case(request.param)
    tokenizer, schedule = golden(case, patchify=request.param.endswith("patchify"))
    return case, tokenizer, schedule


def bits_of(case, patch: int) -> list[torch.Tensor]:
    """The published bits of cells (B, h, w, d) as those of tokens (B, L, D)."""
    maps = [F.pixel_unshuffle(bits.permute(0, 3, 1, 2), patch) for bits in case.maps("bits")]
    return [bits.flatten(2).transpose(1, 2) for bits in maps]


def test_images_become_the_published_features_and_bits(published):
    case, tokenizer, schedule = published
    with torch.no_grad():
        assert_close(tokenizer.features(case.tensors["image"], schedule), case.tensors["features"], atol=2e-5, rtol=0)
    found = tokenizer.token_maps(case.tensors["image"], schedule)
    expected = bits_of(case, tokenizer.quantize.patch)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_bits_become_the_published_inputs_and_images(published):
    case, tokenizer, schedule = published
    bits, pyramid = bits_of(case, tokenizer.quantize.patch), tokenizer.pyramid_of(schedule)
    latent = pyramid.latents(bits)[-1]
    assert_close(latent, case.tensors["quantized"], atol=2e-6, rtol=0)
    assert_close(tokenizer.decode(latent), case.tensors["recon"], atol=4e-5, rtol=0)
    cells = case.tensors["inputs_trilinear"].split([h * w for h, w in pyramid.grids[1:]], dim=1)
    inputs = pyramid.teacher_inputs(bits).split(schedule.lengths[1:], dim=1)
    for k, (ours, theirs) in enumerate(zip(inputs, cells, strict=True), start=1):
        expected = pyramid._tokens(theirs.transpose(1, 2).unflatten(2, pyramid.grids[k]))
        assert_close(ours, expected, atol=2e-6, rtol=0)


def test_flipped_bits_are_corrected_by_those_of_finer_scales():
    case = load_case("infinity-self-correction")
    schedule = Schedule(tuple((h, w) for _, h, w in case.facts["config"]["schedule_thw"]))
    pyramid, features = BitPyramid(schedule, 8, 1), case.tensors["features"]
    flips = [one.flatten(1, 2).bool() for one in case.maps("flip")]
    for found, suffix in ((pyramid.corrected(features, flips), ""), (pyramid.corrected(features, []), "_clean")):
        assert torch.equal(torch.cat(found.bits, dim=1), case.tensors[f"labels{suffix}"])
        assert_close(found.inputs, case.tensors[f"inputs{suffix}"], atol=2e-6, rtol=0)
    assert_close(pyramid.teacher_inputs(found.bits), found.inputs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"patchify": True}, {"unshuffle": 2}], ids=["plain", "patchify", "unshuffle"])
def test_the_training_pass_reconstructs_and_reaches_every_parameter(changes):
    tokenizer = tiny(**changes).train()
    side = tokenizer.image_side
    images = torch.rand(2, 3, side, side) * 2 - 1
    found = tokenizer(images)
    (found.images.square().mean() + found.commitment + found.entropy).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    maps = tokenizer.token_maps(images)
    assert all(torch.equal(one, other) for one, other in zip(found.tokens, maps, strict=True))
    assert [one.shape[1:] for one in maps] == [(n, tokenizer.token_bits) for n in (1, 4, 16)]
    assert_close(found.images.detach().clamp(-1, 1), tokenizer.reconstruct(images), atol=1e-5, rtol=0)


def test_unshuffled_pixels_give_images_of_twice_the_side_from_maps_of_the_same_size():
    plain, blocks = tiny(), tiny(unshuffle=2)
    assert (plain.image_side, blocks.image_side) == (16, 32)
    assert blocks.features(torch.zeros(1, 3, 32, 32)).shape == plain.features(torch.zeros(1, 3, 16, 16)).shape


def test_gradients_pass_straight_through_and_features_are_drawn_to_the_latent():
    features = torch.randn(2, 4, 4, 4, requires_grad=True)
    found = BitQuantizer(Schedule((1, 2, 4)), 4, 1)(features, 100.0)
    weights = torch.randn(2, 4, 4, 4)
    (ours,) = torch.autograd.grad((found.latent * weights).sum(), features, retain_graph=True)
    assert_close(ours, weights)
    latent = BitPyramid(Schedule((1, 2, 4)), 4, 1).latents(found.tokens)[-1]
    assert_close(found.latent.detach(), latent)
    assert_close(found.commitment, F.mse_loss(features, latent))


def test_the_entropy_gap_is_least_for_certain_balanced_bits_and_grows_with_their_number():
    certain = torch.tensor([1.0, -1.0]).repeat(8).view(1, 1, 4, 4)
    assert_close(entropy_gap(certain, 100.0), -torch.tensor(2.0).log(), atol=1e-3, rtol=0)
    assert_close(entropy_gap(torch.zeros(1, 1, 4, 4), 100.0), torch.tensor(0.0), atol=1e-3, rtol=0)
    assert_close(entropy_gap(torch.ones(1, 1, 4, 4), 100.0), torch.tensor(0.0), atol=1e-3, rtol=0)
    eight = entropy_gap(certain.expand(-1, 8, -1, -1), 100.0)
    assert_close(eight, 8 * entropy_gap(certain, 100.0), atol=1e-2, rtol=0)


def test_saving_and_loading_gives_the_same_bits(tmp_path):
    tokenizer, images = tiny(unshuffle=2), torch.rand(1, 3, 32, 32)
    save_network(tokenizer, tmp_path / "bsq")
    again = load_network(tmp_path / "bsq")
    assert again.config == tokenizer.config
    assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"codebook_dim": 0}, "codebook_dim is 0"),
        ({"unshuffle": 0}, "unshuffle is 0"),
        ({"ch_mult": ()}, "norm_groups is 32"),
        ({"ch": 40}, "norm_groups is 32"),
        ({"patch_nums": (1, 4, 2)}, "patch_nums"),
    ],
)
def test_impossible_sizes_are_refused_by_name(setting, found):
    with pytest.raises(ValueError, match=found):
        MultiScaleBSQConfig(**setting)
