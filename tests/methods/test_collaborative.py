"""CoDe draws as published, equals plain VAR when both halves are one network, and costs what it says."""

import pytest
import torch
from conftest import small_var_network
from golden.cases import load_case
from runs import code_of, run_with
from small_flowar import plan_of as flow_plan_of
from small_flowar import tiny_flowar, tiny_kl
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.heads.flow import Flow
from var_toolkit.heads.head import Setting


def same_tokens(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_greedy_tokens_latents_and_images_are_the_published_ones(small_tokenizer, small_var):
    case, latents = load_case("code-small"), []
    greedy = {"guidance": 1.5, "top_k": 1, "temperature": 1.1}
    drafter, refiner = (run_with(small_tokenizer, var, **greedy) for var in (small_var, small_var_network(depth=2)))
    decoded = decode(
        code_of(drafter, refiner, draft_scales=2),
        case.tensors["labels"],
        Noise([0, 1]),
        on_scale=lambda event: latents.append(event.latent),
    )
    assert same_tokens(decoded.tokens, [*case.maps("draft_idx"), *case.maps("refine_idx")])
    assert_close(latents[1], case.tensors["draft_f_hat"], atol=5e-6, rtol=0)
    assert_close(decoded.latent, case.tensors["f_hat"], atol=5e-6, rtol=0)
    assert_close((small_tokenizer.decode(decoded.latent) + 1) / 2, case.tensors["image"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("draft_scales", [1, 2, 3])
def test_equal_drafter_and_refiner_draw_what_one_var_draws(small_tokenizer, small_var, draft_scales):
    labels = torch.tensor([3, 7])
    one = run_with(small_tokenizer, small_var, guidance=1.5, top_k=40, top_p=0.95)
    twin = run_with(small_tokenizer, small_var_network(), guidance=1.5, top_k=40, top_p=0.95)
    ours = decode(code_of(one, twin, draft_scales=draft_scales), labels, Noise([0, 1]))
    expected = decode(one, labels, Noise([0, 1]))
    assert same_tokens(ours.tokens, expected.tokens)
    assert_close(ours.latent, expected.latent, atol=1e-5, rtol=0)


def test_the_cache_is_the_larger_half_not_the_sum(small_tokenizer, small_var):
    small = small_var_network(depth=2)
    halves = [run_with(small_tokenizer, var, guidance=1.0) for var in (small_var, small)]
    rows, both = 2, 2 * 4  # guidance; keys and values in float32
    for draft_scales, tokens in ((2, 5), (3, 14)):
        plan = code_of(*halves, draft_scales=draft_scales)
        expected = rows * both * max(4 * 256 * tokens, 2 * 128 * 30)
        assert decode(plan, torch.tensor([1]), Noise([0])).cache_bytes == expected
        assert plan.cost().cache_bytes(torch.float32) == expected


def test_the_work_is_that_of_both_halves_and_only_drawn_tokens_pass_a_head(small_tokenizer, small_var):
    small = small_var_network(depth=2)
    told = code_of(run_with(small_tokenizer, small_var), run_with(small_tokenizer, small), draft_scales=3).cost()
    scales = [(1, 1), (4, 5), (9, 14), (16, 30)]  # tokens, and tokens they look at
    drafted = sum(4 * small_var.layer_work(n, m) + small_var.head_work(n) for n, m in scales[:3])
    refined = sum(2 * small.layer_work(n, m) for n, m in scales) + small.head_work(16)
    assert (told.forward_passes, told.multiply_adds) == (4, drafted + refined)


@pytest.mark.parametrize("draft_scales", [0, 4])
def test_a_number_of_drafted_scales_that_leaves_one_half_empty_is_refused(small_tokenizer, small_var, draft_scales):
    plan = run_with(small_tokenizer, small_var)
    with pytest.raises(ValueError, match=f"draft_scales is {draft_scales}"):
        code_of(plan, plan, draft_scales=draft_scales)


def test_the_drafter_may_leave_the_device_at_the_hand_over(small_tokenizer, small_var):
    drafter, refiner = small_var_network(), run_with(small_tokenizer, small_var_network(depth=2))
    labels = torch.tensor([3])
    expected = decode(code_of(run_with(small_tokenizer, small_var), refiner, draft_scales=2), labels, Noise([0]))
    plan = code_of(run_with(small_tokenizer, drafter), refiner, draft_scales=2)
    ours = decode(plan, labels, Noise([0]), on_scale=lambda e: drafter.to("meta") if e.scale == 1 else None)
    assert drafter.head.weight.is_meta
    assert torch.equal(ours.latent, expected.latent)


def test_two_networks_of_continuous_tokens_draw_one_image_with_and_without_a_cache():
    """The refiner reads what the drafter drew; here each pass begins at the start and uses no cache."""
    tokenizer, labels, noise = tiny_kl(1, 2, 3, 4), torch.tensor([1, 4]), Noise([0, 1])
    networks = tiny_flowar(patch_nums=(1, 2, 3, 4)), tiny_flowar(patch_nums=(1, 2, 3, 4), encoder_depth=2, embed_dim=64)
    halves = [
        flow_plan_of(tokenizer, network, flow, guidance=1.5)
        for network, flow in zip(networks, (Flow(steps=4), Flow("heun", 3)), strict=True)
    ]
    plan = code_of(*halves, draft_scales=2)
    decoded = decode(plan, labels, noise)
    rows, inputs, pyramid = torch.cat((labels, torch.full_like(labels, 5))), [], tokenizer.pyramid
    with torch.no_grad():
        for k, length in enumerate(tokenizer.scales.lengths):
            network, step = networks[k >= 2], plan.plan.steps[k]
            before = torch.cat(inputs, dim=1).repeat(2, 1, 1) if inputs else None
            condition = network.condition(Condition(labels=rows))
            hidden = network.hidden(condition, before, scales=range(k + 1))[:, -length:]
            first = tokenizer.scales.offsets[k]
            at = Setting(
                network, condition, k, first, length, k / 3, 1.5 * k / 3, True, pyramid, noise, lambda *_: None
            )
            tokens = step.head.draw(hidden, at).tokens
            assert_close(decoded.tokens[k], tokens, atol=5e-5, rtol=1e-4)
            if k < 3:
                inputs.append(pyramid.shrink(pyramid.grow(None, tokens, k), k + 1))
    assert (decoded.forward_passes, decoded.evaluations) == (4, 2 * 4 + 2 * 5)
    assert not torch.allclose(decoded.latent, decode(halves[0], labels, noise).latent, atol=1e-2)


def test_equal_networks_of_continuous_tokens_draw_what_one_draws():
    tokenizer, labels = tiny_kl(), torch.tensor([1, 4])
    one, twin = (flow_plan_of(tokenizer, tiny_flowar(), guidance=1.5) for _ in range(2))
    ours = decode(code_of(one, twin, draft_scales=1), labels, Noise([0, 1]))
    assert_close(ours.latent, decode(one, labels, Noise([0, 1])).latent, atol=5e-5, rtol=1e-4)


def test_a_drafter_of_continuous_tokens_and_a_refiner_of_discrete_ones_are_refused(small_tokenizer, small_var):
    continuous = flow_plan_of(tiny_kl(1, 2, 3, 4), tiny_flowar(patch_nums=(1, 2, 3, 4)))
    discrete = run_with(small_tokenizer, small_var)
    with pytest.raises(ValueError, match="the drafter has a KLTokenizer and the refiner a MultiScaleVQ for tokenizer"):
        code_of(continuous, discrete, draft_scales=2)
    with pytest.raises(ValueError, match="the drafter has a MultiScaleVQ and the refiner a KLTokenizer"):
        code_of(discrete, continuous, draft_scales=2)


def test_two_autoencoders_that_scale_their_latents_differently_are_refused():
    one, other = tiny_kl(), tiny_kl()
    plans = [flow_plan_of(tokenizer, tiny_flowar()) for tokenizer in (one, other)]
    assert decode(code_of(*plans, draft_scales=1), torch.tensor([1]), Noise([0])).latent.shape == (1, 4, 3, 3)
    other.autoencoder.register_to_config(scaling_factor=0.6)
    with pytest.raises(ValueError, match="drafter and refiner have different tokenizers"):
        code_of(*plans, draft_scales=1)
