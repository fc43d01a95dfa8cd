"""Pruned tokens, evicted keys and scales that are left out: as published, and the same whatever the batch."""

import re
from zlib import crc32

import numpy as np
import pytest
import torch
from golden.cases import Case, load_case
from golden.recipe import tensor_for
from runs import code_of, rebound, run_with, variant_of
from small_flexvar import small_flexvar_pipe
from small_flowar import tiny_flowar, tiny_kl
from small_infinity import words_pipeline
from small_llamagen import tiny_gpt, tiny_vq
from torch.testing import assert_close

from var_toolkit.core.cache import SparseCache
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Pruned
from var_toolkit.core.pruning import PrunedPass, gathered, kept_tokens, restored
from var_toolkit.core.schedule import Schedule
from var_toolkit.loading import code
from var_toolkit.methods.fewer_tokens import fastvar, scalekv, without_last
from var_toolkit.models.layers.attention import constants_of, to_all
from var_toolkit.models.layers.next_scale import Block, NextScaleConfig
from var_toolkit.pipeline import Pipeline

CASE = load_case("fastvar")
CLEAR = 1e-4  # gap between the scores of tokens from which on rounding does not decide which are kept
LABELS = torch.tensor([3, 7])


def close(name: str, found: torch.Tensor, case: Case = CASE) -> None:
    """A tensor of the case, within its tolerance."""
    allowed = case.facts["tolerance"]
    assert_close(found, case.tensors[name], atol=allowed.get(name, allowed["out_*"]), rtol=0)


def stride(name: str) -> int:
    """Of which tokens a tensor of the case holds the values: every n-th."""
    found = re.search(r"every (\d+)\. token", CASE.facts["tensors"][name]["what"])
    return int(found[1]) if found else 1


def test_the_rule_is_the_published_one():
    x, cache = CASE.tensors["rule_x"], CASE.tensors["rule_cache"]
    rule = CASE.facts["config"]["rule"]
    kept = CASE.tensors["rule_kept"]
    assert torch.equal(kept_tokens(x, rule["keep"]).sort(dim=1).values, kept.sort(dim=1).values)
    close("rule_merged", gathered(x, kept))
    outputs = restored(CASE.tensors["rule_y"], kept, cache, tuple(rule["cache"]), (rule["h"], rule["w"]))
    close("rule_restored", outputs)


class Published:
    """The block of the case, and a cache that it fills."""

    def __init__(self) -> None:
        self.facts, how = CASE.facts["config"]["block"], CASE.facts["config"]["published"]["infinity"]
        width, heads = self.facts["C"], self.facts["heads"]
        self.schedule = Schedule(tuple(self.facts["scales"]))
        self.source = self.facts["scales"].index(how["cache_side"])
        self.shares = {int(side): share for side, share in how["prune"].items()}
        config = NextScaleConfig(
            embed_dim=width, num_heads=heads, mlp_ratio=self.facts["mlp_hidden"] / width, shared_aln=True
        )
        self.block = Block(config, 0.0).eval()
        weights = CASE.facts["weights"]
        shapes = {
            name: shape for name, shape in weights["models"]["block"]["state_dict"].items() if "zero_k" not in name
        }
        state = {
            name.replace("sa.", "attn."): torch.from_numpy(tensor_for(name, tuple(shape), weights["salt"]))
            for name, shape in shapes.items()
        }
        self.block.load_state_dict(state)
        shape = {"rows": self.facts["B"], "heads": heads, "head_dim": width // heads}
        self.cache = SparseCache(self.facts["layer_idx"] + 1, **shape, dtype=torch.float32, device="cpu")
        self.kept: dict[str, torch.Tensor] = {}

    def input(self, side: int) -> torch.Tensor:
        name = f"input:fv-block-{side}{CASE.facts['weights']['salt']}"
        random = np.random.RandomState(crc32(name.encode()) & 0x7FFFFFFF)
        shape = (self.facts["B"], side * side, self.facts["C"])
        return torch.from_numpy(random.standard_normal(shape).astype(np.float32))

    def output(self, side: int, layer: int) -> torch.Tensor:
        """The block at a scale of `side`, whose sub-layers are pruned as the published ones are."""
        scale = self.facts["scales"].index(side)
        size = self.schedule.lengths[scale]
        pruned = Pruned(self.shares.get(side, 0), 0, first=self.facts["layer_idx"])
        kept = [pruned.kept(k, size) for k in range(layer + 1)]
        sources = {self.source: [layer]} if scale == self.source else {}
        passed = PrunedPass(self.cache, self.schedule, range(scale, scale + 1), tuple(kept), self.source, sources)

        def run(x, name, compute):
            def seen(x, kept_RK):
                self.kept[name] = kept_RK
                return compute(x, kept_RK)

            return passed.layer(layer)(x, name, seen)

        self.cache.begin([10**9] * (layer + 1), self.schedule.maps[scale], [self.source])
        with torch.no_grad():
            found = self.block(
                self.input(side),
                self.block.modulation(CASE.tensors["cond"], constants_of([self.block.attn])[0]),
                to_all,
                self.cache,
                layer,
                run,
            )
        self.cache.advance(size)
        return found


def test_a_block_over_several_scales_is_the_published_one():
    published, layer = Published(), CASE.facts["config"]["block"]["layer_idx"]
    for side in CASE.facts["config"]["block"]["scales"]:
        found, told = published.output(side, layer), CASE.facts["block_info"][str(side)]
        close(f"out_{side}_mean", found.mean(1))
        close(f"out_{side}", found[:, :: stride(f"out_{side}")])
        assert published.cache.contents(layer)[0].shape[2] == told["kv_length_after"]
        for ours, theirs in (("attn", f"kept_sa_{side}"), ("ffn", f"kept_ffn_{side}")):
            kept = published.kept[ours]
            assert (None if kept is None else kept.shape[1]) == told["kept"]
            if kept is not None and CASE.facts["margins"]["values"][theirs.removeprefix("kept_")] >= CLEAR:
                assert torch.equal(kept.sort(dim=1).values, CASE.tensors[theirs])


def test_a_layer_that_is_not_pruned_is_the_published_one():
    names = [name for name in CASE.tensors if name.startswith("unpruned_")]
    for name in names:
        found = Published().output(int(name.removeprefix("unpruned_")), layer=2)
        close(name, found[:, :: stride(name)])
    assert names


def plain(tokenizer, network, **settings):
    """The run of one network with guidance."""
    return run_with(tokenizer, network, **{"guidance": 1.5, "top_k": 40, **settings})


def changed(run, *methods):
    """A run by a plan that methods change."""
    plan = run.plan
    for method, *values in methods:
        plan = method(plan, *values)
    return rebound(run, plan)


def same(one, other) -> bool:
    return len(one.tokens) == len(other.tokens) and all(map(torch.equal, one.tokens, other.tokens))


WAYS = {
    "pruned": [(fastvar, (0.4, 0.5))],
    "pruned in some layers": [(fastvar, (0.5,), (1, 3))],
    "evicting": [(scalekv, 0.3, (1,))],
    "pruned, evicting and ending early": [(without_last, 1), (fastvar, (0.5,)), (scalekv, 0.2)],
}


@pytest.mark.parametrize("name", WAYS)
def test_an_image_does_not_depend_on_its_batch_and_the_cost_is_what_is_held(small_tokenizer, small_var, name):
    run = changed(plain(small_tokenizer, small_var), *WAYS[name])
    both, alone = decode(run, LABELS, Noise([0, 1])), decode(run, LABELS[1:], Noise([1]))
    assert same(alone, decode(run, LABELS[1:], Noise([1])))
    assert all(torch.equal(many[1:], one) for many, one in zip(both.tokens, alone.tokens, strict=True))
    assert alone.cache_bytes == run.cost().cache_bytes(torch.float32)
    assert run.cost().multiply_adds <= plain(small_tokenizer, small_var).cost().multiply_adds


@pytest.mark.parametrize("methods", [[(fastvar, (0.0, 0.0))], [(scalekv, 1.0)]], ids=["no share", "all keys"])
def test_nothing_pruned_or_evicted_draws_the_plain_images(small_tokenizer, small_var, methods):
    run = plain(small_tokenizer, small_var)
    ours, expected = (decode(one, LABELS, Noise([0, 1])) for one in (changed(run, *methods), run))
    assert same(ours, expected)


def test_scales_that_are_drawn_are_those_of_the_whole_plan(small_tokenizer, small_var):
    run = plain(small_tokenizer, small_var)
    short, whole = (decode(one, LABELS, Noise([0, 1])) for one in (changed(run, (without_last, 2)), run))
    assert len(short.tokens) == len(whole.tokens) - 2
    assert all(map(torch.equal, short.tokens, whole.tokens))
    assert short.latent.shape == whole.latent.shape


def test_guidance_that_ends_drops_the_null_rows_of_what_tokens_are_restored_from(small_tokenizer, small_var):
    run = changed(plain(small_tokenizer, small_var, guided_tokens=3), (fastvar, (0.5,)), (scalekv, 0.5))
    assert [one.rows for one in run.steps] == [2, 2, 2, 1]
    assert decode(run, LABELS, Noise([0, 1])).cache_bytes == 2 * run.cost().cache_bytes(torch.float32)


def test_work_counts_kept_tokens_and_held_keys_alone(small_tokenizer, small_var):
    run = changed(run_with(small_tokenizer, small_var), (fastvar, (0.5,), (1, None)), (scalekv, 10 / 30, (0,)))
    *before, last = run.steps
    assert last.sparse.kept == (16, 8, 8, 8)
    assert last.sparse.held == (14, 10, 10, 10)
    assert last.capacities == (30, 10, 10, 10)
    lengths, kept, network = run.schedule.lengths, zip(last.sparse.kept, last.sparse.held, strict=True), small_var
    coarse = [(lengths[k], min(sum(lengths[:k]), 10) + lengths[k]) for k in range(3)]
    assert all(one.sparse.kept == (lengths[one.step.scale],) * 4 for one in before)
    work = sum(4 * network.layer_work(*one) for one in coarse) + sum(network.layer_work(n, n + h) for n, h in kept)
    assert run.cost().multiply_adds == work + sum(map(network.head_work, lengths))


def test_of_evicted_keys_the_observed_ones_and_the_best_stay():
    cache = SparseCache(1, rows=1, heads=1, head_dim=2, dtype=torch.float32, device="cpu")
    cache.begin([4], (1, 2), [])
    keys = torch.zeros(1, 1, 9, 2)
    keys[0, 0, 3, 0] = 5.0  # the best, whose neighbours within two share its score
    cache.append(0, keys, torch.arange(9.0).view(1, 1, 9, 1).expand(-1, -1, -1, 2))
    observed = cache.observed(2)
    assert observed.tolist() == [0, 1]
    cache.evict(0, torch.ones(1, 1, 2, 2), observed, 2)
    cache.advance(9)
    left = cache.contents(0)[1][0, 0, :, 0].tolist()
    assert left[-2:] == [7, 8]
    assert len(left) == 4
    assert set(left[:2]) <= {1, 2, 3, 4, 5}


@pytest.mark.parametrize("draft_scales", [1, 3])
def test_methods_combine_with_code_and_variant(small_tokenizer, small_var, draft_scales):
    run = variant_of(plain(small_tokenizer, small_var), subnet=2, full_scales=3)
    both = code_of(run, plain(small_tokenizer, small_var), draft_scales=draft_scales)
    run = changed(both, (fastvar, (0.4, 0.5)), (scalekv, 0.5))
    found = decode(run, LABELS, Noise([0, 1]))
    assert found.cache_bytes <= 2 * run.cost().cache_bytes(torch.float32)
    assert len(found.tokens) == 4


def test_hmar_prunes_and_holds_nothing_but_outputs(small_tokenizer, small_hmar):
    run = changed(plain(small_tokenizer, small_hmar, refine="published"), (fastvar, (0.5,)))
    found = decode(run, LABELS, Noise([0, 1]))
    assert found.cache_bytes == 2 * run.cost().cache_bytes(torch.float32) == 2 * 2 * 4 * 2 * 9 * 256 * 4


def test_infinity_prunes_and_evicts_at_its_rotary_positions():
    pipe, how = words_pipeline(), {"cfg": 3.0, "output_type": "latent"}
    fewer = {**how, "prune_tokens": (0.5,), "key_share": 0.5}
    plain, pruned = (pipe(prompt=["red cube", "cube"], seeds=[0, 1], **each) for each in (how, fewer))
    assert all(map(torch.equal, plain.tokens[:-1], pruned.tokens[:-1]))
    alone = pipe(prompt="cube", seeds=1, **fewer)
    assert all(torch.equal(many[1:], one) for many, one in zip(pruned.tokens, alone.tokens, strict=True))


def test_flexvar_prunes_maps_of_any_shape():
    pipe = small_flexvar_pipe()
    drawn = pipe(1, seeds=0, schedule="1,2x3,4x5", prune_tokens=(0.5,), output_type="latent")
    assert [found.shape[1] for found in drawn.tokens] == [1, 6, 20]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prune_tokens": (0.1,) * 4}, "prune_tokens has 4 shares"),
        ({"prune_tokens": (1.5,)}, "prune_tokens is 1.5"),
        ({"prune_layers": (0, 2)}, "prune_layers are layers of prune_tokens"),
        ({"key_layers": (0,)}, "key_layers are layers of key_share"),
        ({"key_share": 0.0}, "key_share is 0"),
        ({"key_share": 0.5, "key_layers": (4,)}, "key_layers is \\[4\\]"),
        ({"skip_scales": 4}, "skip_scales is 4"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(small_tokenizer, small_var, settings, words):
    with pytest.raises(ValueError, match=rf"^{words}[^\n]*$"):
        Pipeline(small_tokenizer, small_var).plan(**settings)


def test_models_that_cannot_are_named(small_tokenizer, small_hmar, small_var):
    for pipe, settings, words in (
        (Pipeline(tiny_kl(), tiny_flowar()), {"prune_tokens": (0.5,)}, "not FlowAR"),
        (Pipeline(tiny_vq(), tiny_gpt()), {"prune_tokens": (0.5,)}, "prune_tokens"),
        (Pipeline(tiny_vq(), tiny_gpt()), {"key_share": 0.5}, "whole scales"),
        (Pipeline(small_tokenizer, small_hmar), {"key_share": 0.5}, "HMAR caches none"),
        (small_flexvar_pipe(), {"skip_scales": 1}, "skip_scales"),
        (
            code(Pipeline(small_tokenizer, small_var), Pipeline(small_tokenizer, small_hmar), 3),
            {"prune_tokens": (0.5,)},
            "scale 3 restores tokens from scale 2, which HMAR has not computed",
        ),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{words}[^\n]*$"):
            pipe.plan(**settings)
