"""D-AR's tokenizer agrees with the published one: tokens, and pixels after every step of the flow."""

from math import isqrt

import pytest
import torch
from golden.cases import load_case
from small_dar import golden_flow, tensors_of, tiny_flow, tiny_flow_config
from torch.testing import assert_close

from var_toolkit.core.noise import Noise
from var_toolkit.formats.directory import load_network, save_network
from var_toolkit.tokenizers.pixel_flow import PixelFlowVQ, PixelFlowVQConfig, tokenizer_from_tensors

CASE = load_case("dar-tokenizer")
TOLERANCE, CONFIG = CASE.facts["tolerance"], CASE.facts["config"]
GROUPS = CONFIG["num_query_groups"]


@pytest.fixture(scope="module")
def golden():
    return golden_flow()


@pytest.fixture(scope="module")
def latent(golden):
    return golden.latents([CASE.tensors["decode_ids"]])[-1]


def test_images_become_the_published_tokens(golden):
    with torch.no_grad():
        found = golden.features(CASE.tensors["image"])
    assert_close(found, CASE.tensors["latent"], atol=TOLERANCE["latent"], rtol=0)
    assert torch.equal(golden.encode(CASE.tensors["image"])[0], CASE.tensors["ids"])


def test_tokens_become_the_published_conditions(golden, latent):
    with torch.no_grad():
        assert_close(golden.conditions(latent), CASE.tensors["cond"], atol=TOLERANCE["cond"], rtol=0)


@pytest.mark.parametrize("groups", range(1, GROUPS + 1))
def test_every_number_of_groups_gives_the_published_pixels(groups, golden, latent):
    """Of the tokens of these groups alone, and of a part of the next one, which has no influence."""
    each, expected = latent.shape[-1] // GROUPS, CASE.tensors.get(f"preview_{groups}", CASE.tensors["decoded"])
    for more in range(2):
        known = latent[..., : groups * each + more]
        with torch.no_grad():
            found = golden._decode_latent(known, CASE.tensors["noise"])
        assert_close(found, expected, atol=TOLERANCE["decoded"], rtol=0)
        assert_close(
            golden.decode(known, CASE.tensors["noise"]), expected.clamp(-1, 1), atol=TOLERANCE["decoded"], rtol=0
        )


def test_less_than_a_group_is_refused():
    with pytest.raises(ValueError, match="latent of 2 tokens"):
        tiny_flow().decode(torch.zeros(1, 4, 1, 2))


def test_the_noise_of_an_image_is_of_its_own_seed():
    tokenizer = tiny_flow()
    both, alone = tokenizer.start(Noise([3, 8])), tokenizer.start(Noise([8]))
    assert both.shape == (2, 3, 6, 6)
    assert torch.equal(both[1:], alone)
    large = tiny_flow(image_side=96).start(Noise([5]))
    assert large.mean().item() == pytest.approx(0, abs=0.02)
    assert large.std().item() == pytest.approx(1, abs=0.02)


def test_without_noise_all_images_begin_with_that_of_seed_0():
    tokenizer = tiny_flow()
    latent = tokenizer.coded(torch.rand(2, 3, 6, 6) * 2 - 1)
    assert_close(tokenizer.decode(latent), tokenizer.decode(latent, tokenizer.start(Noise([0, 0]))))
    assert (tokenizer.decode(latent) - tokenizer.decode(latent, tokenizer.start(Noise([1, 2])))).abs().max() > 0.01


def test_a_token_tells_of_the_image_and_of_the_tokens_before_it():
    tokenizer, image = tiny_flow(), torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = tokenizer.features(image)
        tokenizer.query_embedding.weight[4] += 1
        moved = (tokenizer.features(image) - before).abs().amax((0, 1, 2))
    assert moved[:4].eq(0).all()
    assert moved[4:].gt(1e-6).all()


def test_it_is_saved_and_loaded(tmp_path):
    tokenizer, image = tiny_flow(), torch.rand(1, 3, 6, 6) * 2 - 1
    save_network(tokenizer, tmp_path / "flow")
    found = load_network(tmp_path / "flow").reconstruct(image)
    assert_close(found, tokenizer.reconstruct(image), atol=1e-5, rtol=0)


def test_in_bfloat16_the_codebook_stays_in_float32():
    image, expected = torch.rand(1, 3, 6, 6) * 2 - 1, tiny_flow()
    tokenizer = tiny_flow().place("cpu", torch.bfloat16)
    assert tokenizer.quantize.embedding.weight.dtype == torch.float32
    assert tokenizer.patchify.weight.dtype == torch.bfloat16
    latent = expected.coded(image)
    assert tokenizer.decode(latent).dtype == torch.float32
    assert (tokenizer.decode(latent) - expected.decode(latent)).abs().mean() < 0.03


def test_the_published_sizes_are_the_defaults():
    with torch.device("meta"):
        network = PixelFlowVQ(PixelFlowVQConfig())
    assert sum(p.numel() for p in network.parameters()) == 300_099_776
    assert (network.scales.total, network.image_side, network.downsample) == (256, 256, 16)


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"encoder_dim": 96}, "encoder_dim is 96"),
        ({"image_side": 7}, "side is 3; it must divide image_side, 7"),
        ({"groups": 4}, "groups is 4"),
        ({"positions": 8}, "positions is 8"),
        ({"flow_patch": 4}, "flow_patch is 4"),
    ],
)
def test_impossible_sizes_are_refused_by_name(setting, found):
    with pytest.raises(ValueError, match=found):
        tiny_flow_config(**setting)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"query_low_rank": False}, "query_low_rank is False"),
        ({"diff_decoder": {"mlp_head": True}}, "mlp_head is True"),
        ({"diff_decoder": 3}, "diff_decoder is 3"),
        ({"num_all_queries": 15}, "num_all_queries is 15"),
        ({"queries_per_step": CONFIG["queries_per_step"] + 1}, "queries_per_step is"),
        ({"num_denoising_steps": GROUPS + 1}, "num_denoising_steps is|num_query_groups is"),
        ({"vq_dim": CONFIG["vq_dim"] + 1}, "code_dim is"),
        ({"num_levels": 5}, "unknown field 'num_levels'"),
    ],
)
def test_a_published_configuration_that_does_not_fit_is_refused_by_name(told, found):
    side = isqrt(CONFIG["num_all_queries"])
    with pytest.raises(ValueError, match=found):
        tokenizer_from_tensors(tensors_of(CASE, "vq"), {**CONFIG, **told}, (side,), "tokenizer.pt")
