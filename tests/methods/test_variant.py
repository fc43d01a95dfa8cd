"""VARiant keeps the layers of the paper, equals plain VAR at full depth, and frees what it no longer needs."""

import pytest
import torch
from conftest import small_var_network
from runs import code_of, run_with, variant_of
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition
from var_toolkit.core.bind import Run
from var_toolkit.core.engine import decode
from var_toolkit.core.layers import Layers
from var_toolkit.core.noise import Noise

LABELS = torch.tensor([3, 7])


def plan_of(tokenizer, backbone, **settings) -> Run:
    return run_with(tokenizer, backbone, **{"guidance": 1.5, "top_k": 40, **settings})


@pytest.mark.parametrize(
    ("subnet", "layers"),
    [
        (16, (0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29)),
        (8, (0, 4, 8, 12, 16, 20, 24, 29)),
        (4, (0, 9, 19, 29)),
        (2, (0, 29)),
        (30, tuple(range(30))),
    ],
)
def test_the_layers_of_a_subnet_are_those_of_the_paper(subnet, layers):
    assert Layers.spread(30, subnet, 1).active == layers


@pytest.mark.parametrize(("subnet", "full_scales"), [(4, 1), (4, 3), (2, 4)])
def test_full_depth_and_full_scales_draw_var_bit_for_bit(small_tokenizer, small_var, subnet, full_scales):
    plan = plan_of(small_tokenizer, small_var)
    ours = decode(variant_of(plan, subnet=subnet, full_scales=full_scales), LABELS, Noise([0, 1]))
    expected = decode(plan, LABELS, Noise([0, 1]))
    assert torch.equal(ours.latent, expected.latent)


@pytest.mark.parametrize("full_scales", [1, 2, 3])
@pytest.mark.parametrize("chunks", [(1, 2, 3, 4), (2, 3, 4), (3, 4), (4,)])
def test_packed_logits_are_those_of_cached_decoding(small_var, full_scales, chunks):
    """Also where one pass takes in scales on both sides of the switch, as a refiner's first pass does."""
    layers = Layers((0, 3), full_scales)
    inputs = torch.randn(2, 29, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed = small_var(LABELS, inputs, layers)
        assert not torch.allclose(packed, small_var(LABELS, inputs), atol=1e-3)
        condition, cache, logits, first = small_var.condition(Condition(labels=LABELS)), small_var.new_cache(2), [], 0
        for last in chunks:
            span = slice(max(small_var.scales.offsets[first] - 1, 0), small_var.scales.offsets[last] - 1)
            part = inputs[:, span] if last > 1 else None
            hidden = small_var.hidden(condition, part, scales=range(first, last), cache=cache, layers=layers)
            logits.append(small_var.logits(condition, hidden))
            first = last
    assert_close(torch.cat(logits, dim=1), packed, atol=2e-5, rtol=1e-5)


def test_skipped_layers_free_their_keys_and_values_at_the_switch(small_tokenizer, small_var):
    plan = variant_of(plan_of(small_tokenizer, small_var), subnet=2, full_scales=2)
    capacities = [one.capacities for one in plan.steps]
    assert capacities == [(5, 5, 5, 5)] * 2 + [(30, 0, 0, 30)] * 2
    cache = small_var.new_cache(1, capacities[0])
    before = cache.nbytes
    cache.resize(capacities[2])
    assert (before, cache.nbytes) == (4 * 5 * 2 * 256 * 4, 2 * 30 * 2 * 256 * 4)
    assert decode(plan, LABELS, Noise([0, 1])).cache_bytes == 2 * plan.cost().cache_bytes(torch.float32)
    assert plan.cost().cache_values == 2 * 2 * 30 * 2 * 256


def test_the_kept_layers_go_on_with_what_they_hold(small_var):
    cache = small_var.new_cache(1, [5] * 4)
    with torch.no_grad():
        small_var.hidden(
            small_var.condition(Condition(labels=LABELS[:1])), torch.randn(1, 4, 8), scales=range(2), cache=cache
        )
    keys = [tensor.clone() for tensor in cache._keys]
    cache.resize([30, 0, 0, 30])
    for layer in (0, 3):
        assert torch.equal(cache._keys[layer][:, :, :5], keys[layer])


@pytest.mark.parametrize("full_scales", [1, 2, 3])
def test_it_works_in_either_half_of_code(small_tokenizer, small_var, full_scales):
    """A subnet in both halves of two equal networks is the subnet of one network."""
    plan = plan_of(small_tokenizer, small_var)
    expected = variant_of(plan, subnet=2, full_scales=full_scales)
    both = code_of(expected, plan_of(small_tokenizer, small_var_network()), draft_scales=2)
    both = variant_of(both, subnet=2, full_scales=full_scales)
    ours, theirs = decode(both, LABELS, Noise([0, 1])), decode(expected, LABELS, Noise([0, 1]))
    assert all(torch.equal(a, b) for a, b in zip(ours.tokens, theirs.tokens, strict=True))
    assert ours.cache_bytes == 2 * both.cost().cache_bytes(torch.float32)


def test_a_subnet_costs_what_its_layers_cost(small_tokenizer, small_var):
    plan = plan_of(small_tokenizer, small_var, guidance=0.0)
    saved = plan.cost().multiply_adds - variant_of(plan, subnet=2, full_scales=3).cost().multiply_adds
    assert saved == 2 * small_var.layer_work(16, 30)


def test_the_plan_says_what_it_does(small_tokenizer, small_var):
    plan = variant_of(plan_of(small_tokenizer, small_var), subnet=2, full_scales=3)
    assert str(plan) == (
        "scales 0-3: VAR 4 x 256, 2 layers from scale 3 on, guidance 0 to 1.5, top-k 40, top-p 0, temperature 1"
    )


@pytest.mark.parametrize(
    ("subnet", "full_scales", "words"),
    [
        (1, 2, "subnet is 1"),
        (5, 2, "subnet is 5"),
        (2, 0, "full_scales is 0"),
        (2, 5, "full_scales is 5"),
    ],
)
def test_what_no_network_can_do_is_refused(small_tokenizer, small_var, subnet, full_scales, words):
    with pytest.raises(ValueError, match=words):
        variant_of(plan_of(small_tokenizer, small_var), subnet=subnet, full_scales=full_scales)
