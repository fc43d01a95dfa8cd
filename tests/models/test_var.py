"""VAR agrees with the published network and with itself, packed and cached."""

import pytest
import torch
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition
from var_toolkit.models.var import VAR, VARConfig


def test_teacher_forced_logits_are_the_published_ones(var_case, small_tokenizer):
    case, var = var_case
    inputs = small_tokenizer.teacher_inputs(case.maps("tf_idx"))
    assert_close(inputs, case.tensors["tf_x"], atol=5e-6, rtol=0)
    with torch.no_grad():
        assert_close(var(case.tensors["labels"], inputs), case.tensors["tf_logits"], atol=3e-5, rtol=0)
        null = torch.full_like(case.tensors["labels"], 10)
        assert_close(var(null, inputs), case.tensors["tf_logits_uncond"], atol=3e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[1, 2, 3, 4], [3, 4], [1, 4], [4]], ids=str)
@pytest.mark.parametrize("l2_norm", [True, False])
def test_cached_decoding_equals_the_packed_pass(chunks, l2_norm):
    torch.manual_seed(0)
    var = VAR(
        VARConfig(
            depth=3,
            embed_dim=48,
            num_heads=3,
            num_classes=5,
            patch_nums=(1, 2, 3, 5),
            vocab_size=20,
            latent_channels=4,
            attn_l2_norm=l2_norm,
        )
    ).eval()
    var.init_weights(adaln_gamma=0.5)
    labels, inputs = torch.tensor([1, 5]), torch.randn(2, var.scales.total - 1, 4)
    with torch.no_grad():
        packed = var(labels, inputs)
        condition, cache, logits, first = var.condition(Condition(labels=labels)), var.new_cache(2), [], 0
        for last in chunks:
            span = slice(max(var.scales.offsets[first] - 1, 0), var.scales.offsets[last] - 1)
            hidden = var.hidden(
                condition, inputs[:, span] if last > 1 else None, scales=range(first, last), cache=cache
            )
            logits.append(var.logits(condition, hidden))
            first = last
    assert_close(torch.cat(logits, dim=1), packed, atol=1e-5, rtol=1e-5)
    assert cache.length == var.scales.total


def test_two_runs_share_one_network_without_touching_each_other(small_var):
    labels = torch.tensor([3])
    inputs = torch.randn(2, 29, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = small_var(labels, inputs[:1])
        condition = small_var.condition(Condition(labels=labels))
        caches, outs = [small_var.new_cache(1), small_var.new_cache(1)], [[], []]
        for k in range(4):
            begin, end = small_var.scales.offsets[k] - 1, small_var.scales.offsets[k + 1] - 1
            for run in (0, 1):
                chunk = inputs[run : run + 1, begin:end] if k else None
                outs[run].append(small_var.hidden(condition, chunk, scales=range(k, k + 1), cache=caches[run]))
        assert_close(small_var.logits(condition, torch.cat(outs[0], 1)), alone, atol=1e-5, rtol=1e-5)


def test_a_rewound_cache_equals_a_fresh_prefill(small_var):
    labels, inputs = torch.tensor([3]), torch.randn(1, 29, 8)
    with torch.no_grad():
        condition, cache = small_var.condition(Condition(labels=labels)), small_var.new_cache(1)
        small_var.hidden(condition, inputs[:, :13], scales=range(3), cache=cache)
        cache.rewind(5)
        again = small_var.hidden(condition, inputs[:, 4:13] + 1, scales=range(2, 3), cache=cache)
        fresh = small_var.new_cache(1)
        small_var.hidden(condition, inputs[:, :4], scales=range(2), cache=fresh)
        expected = small_var.hidden(condition, inputs[:, 4:13] + 1, scales=range(2, 3), cache=fresh)
    assert_close(again, expected, atol=1e-6, rtol=1e-6)


def test_some_rows_of_a_cache_continue_without_changing_the_others(small_var):
    labels, inputs = torch.tensor([3, 1, 7]), torch.randn(3, 29, 8)
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        condition, cache = small_var.condition(Condition(labels=labels)), small_var.new_cache(3)
        small_var.hidden(condition, inputs[:, :13], scales=range(3), cache=cache)
        other = small_var.logits(
            condition.of_rows(rows),
            small_var.hidden(
                condition.of_rows(rows), inputs[rows, 4:13] + 1, scales=range(2, 3), cache=cache.of_rows(rows, 5)
            ),
        )
        inputs[rows, 4:13] += 1
        found = small_var.hidden(condition, inputs[:, 13:], scales=range(3, 4), cache=cache)
        expected = small_var.hidden(condition, inputs, scales=range(4))
        assert_close(found, expected[:, 14:], atol=2e-5, rtol=1e-5)
        assert_close(other, small_var.logits(condition, expected)[rows, 5:14], atol=2e-5, rtol=1e-5)
    assert cache.length == 30


def test_a_cache_that_does_not_hold_the_scales_before_is_refused(small_var):
    with pytest.raises(ValueError, match=r"scales .* exactly the 5 tokens"):
        small_var.hidden(
            small_var.condition(Condition(labels=torch.tensor([0]))),
            torch.zeros(1, 9, 8),
            scales=range(2, 3),
            cache=small_var.new_cache(1),
        )


@pytest.mark.parametrize("depth", [16, 30])
def test_cache_memory_is_the_formula_at_two_bytes_each(depth):
    config = VARConfig.published(depth)
    var = VAR(VARConfig(depth=1, embed_dim=config.embed_dim, num_heads=config.num_heads)).to(torch.bfloat16)
    assert var.new_cache(2).nbytes * depth == 2 * 680 * depth * 64 * depth * (2 + 2)


def test_every_parameter_gets_a_finite_gradient():
    var = VAR(
        VARConfig(depth=2, embed_dim=32, num_heads=2, num_classes=4, patch_nums=(1, 2), vocab_size=8, latent_channels=4)
    )
    var.init_weights()
    var.train()
    var(torch.tensor([0, 4]), torch.randn(2, 4, 4)).logsumexp(-1).sum().backward()
    assert [n for n, p in var.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("depth", [16, 20, 24, 30])
def test_published_sizes_have_the_published_number_of_parameters(depth):
    with torch.device("meta"):
        var = VAR(VARConfig.published(depth))
    assert sum(p.numel() for p in var.parameters()) == pytest.approx(73728 * depth**3, rel=0.05)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="embed_dim is 100"):
        VARConfig(embed_dim=100, num_heads=16)
