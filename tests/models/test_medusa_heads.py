"""Heads that draft several tokens from one position: what each reads, and where they begin."""

import pytest
import torch
from golden.cases import fill
from small_llamagen import golden_gpt
from torch.testing import assert_close

from var_toolkit.models.medusa_heads import HydraHeads, MedusaHeads, MedusaHeadsConfig

WIDTH = 128  # of the golden target
KNOWN = torch.randn(2, 5, 4 * WIDTH, generator=torch.Generator().manual_seed(1))  # features and three tokens
KINDS = [MedusaHeads, HydraHeads]


def heads(kind, **changes):
    return fill(kind(MedusaHeadsConfig(**{"embed_dim": WIDTH, "vocab_size": 64, "heads": 3, "hidden": 24, **changes})))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_begin_with_the_features_of_the_target(kind):
    made = heads(kind)
    assert (made(KNOWN) - KNOWN[..., :WIDTH]).abs().max() > 0.01
    made.init_weights()
    assert torch.equal(made(KNOWN), KNOWN[..., :WIDTH])


@pytest.mark.parametrize("kind", KINDS)
def test_each_number_of_tokens_has_a_head_of_its_own(kind):
    made = heads(kind)
    with torch.no_grad():
        found = [made(KNOWN[..., : (2 + head) * WIDTH]) for head in range(3)]
        made.heads[1].outward.weight.zero_()
        again = [made(KNOWN[..., : (2 + head) * WIDTH]) for head in range(3)]
    assert [torch.equal(*pair) for pair in zip(found, again, strict=True)] == [True, False, True]


@pytest.mark.parametrize(("kind", "reads"), [(MedusaHeads, []), (HydraHeads, [1, 2, 3])])
def test_only_sequential_heads_read_the_tokens(kind, reads):
    made, changing = heads(kind), []
    for token in (1, 2, 3):
        other = KNOWN.clone()
        other[..., token * WIDTH : (token + 1) * WIDTH] += torch.randn(WIDTH)
        with torch.no_grad():
            changing += [token] if (made(other) - made(KNOWN)).abs().max() > 1e-4 else []
    assert changing == reads


def test_the_scale_of_what_is_read_does_not_matter_but_for_the_features_themselves():
    made = heads(HydraHeads)
    scales = torch.tensor([1.0, 7.0, 0.5, 3.0]).repeat_interleave(WIDTH)
    with torch.no_grad():
        assert_close(made(KNOWN * scales), made(KNOWN), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_is_that_of_the_layers(kind):
    made = heads(kind)
    layers = sum(p.numel() for name, p in made.named_parameters() if name.endswith("weight"))
    assert made.work() == layers // 3


@pytest.mark.parametrize("changes", [{"embed_dim": 64}, {"vocab_size": 32}], ids=str)
def test_heads_for_another_target_are_refused(changes):
    (name, value), *_ = changes.items()
    with pytest.raises(ValueError, match=f"{name} is {value} in the heads"):
        heads(MedusaHeads, **changes).require_fit(golden_gpt())


@pytest.mark.parametrize("name", ["embed_dim", "vocab_size", "heads", "hidden"])
def test_impossible_sizes_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        MedusaHeadsConfig(**{name: 0})
