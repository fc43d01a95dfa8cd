"""HMAR draws as published, with and without masked passes, and refinement keeps its promises."""

from itertools import pairwise

import pytest
import torch
from golden.cases import load_case
from runs import code_of, rebound, run_with, variant_of
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition
from var_toolkit.core import masked as masking
from var_toolkit.core.bind import Run
from var_toolkit.core.engine import decode
from var_toolkit.core.masked import least_confident
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.schedule import SCHEDULES, Schedule
from var_toolkit.heads import categorical
from var_toolkit.heads.head import Drawn, Setting
from var_toolkit.methods.masked_passes import masked_passes

SMALL = Schedule((1, 2, 3, 4))
SETTINGS = {"guidance": 1.5, "top_k": 40, "top_p": 0.95}
LABELS = torch.tensor([3, 7])


def plan_of(tokenizer, backbone, refine=None, **settings) -> Run:
    return run_with(tokenizer, backbone, refine=refine, **(settings or SETTINGS))


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours.tokens, theirs.tokens, strict=True))


class Watched:
    """A backbone that keeps what its masked passes were asked and answered."""

    def __init__(self, backbone) -> None:
        self.backbone, self.masked, self.answers = backbone, [], []

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def refined(self, condition, inputs, current, masked, *, scales):
        self.masked.append(masked)
        self.answers.append(self.backbone.refined(condition, inputs, current, masked, scales=scales))
        return self.answers[-1]


@pytest.mark.parametrize("name", ["hmar-generate", "hmar-generate-mask", "hmar-generate-seeded"])
def test_tokens_masks_and_images_are_the_published_ones(name, small_tokenizer, small_hmar, monkeypatch):
    case = load_case(name)
    facts = case.facts["sampling"]
    if facts["draw"] == "seeded":
        _draw_with(case.maps("noise"), monkeypatch)
    watched = Watched(small_hmar)
    settings = {"guidance": facts["cfg"], "top_k": facts["top_k"], "top_p": facts["top_p"]}
    plan = plan_of(small_tokenizer, watched, facts["mask_schedule"] if facts["mask"] else None, **settings)
    decoded = decode(plan, case.tensors["label"], Noise([0, 1]))
    for ours, theirs in zip(decoded.tokens, case.maps("tokens"), strict=True):
        assert torch.equal(ours, theirs)
    assert_close(decoded.latent, case.tensors["f_hat"], atol=5e-6, rtol=0)
    assert_close((small_tokenizer.decode(decoded.latent) + 1) / 2, case.tensors["image"], atol=2e-5, rtol=0)
    steps = [(1, 1), (2, 1), (2, 2), (2, 3)] if facts["mask"] else []
    assert len(watched.masked) == len(steps)
    for (scale, step), masked, logits in zip(steps, watched.masked, watched.answers, strict=True):
        expected = case.tensors[f"mask_idx_{scale}_{step}"]
        assert torch.equal(masked.nonzero()[:, 1].view_as(expected), expected)
        assert_close(logits, case.tensors[f"mask_logits_{scale}_{step}"][:2], atol=1e-4, rtol=0)


def _draw_with(noise, monkeypatch) -> None:
    """Draw as torch.multinomial does, from the stored exponential noise of each call."""
    left = iter(noise)

    def pick(mass, uniform):
        return (mass.flatten(0, 1) / next(left)).argmax(-1).view(mass.shape[:2])

    monkeypatch.setattr(categorical, "pick", pick)
    monkeypatch.setattr(masking, "pick", pick)


def test_one_pass_a_scale_is_plain_next_scale_sampling(small_tokenizer, small_hmar):
    plain = decode(plan_of(small_tokenizer, small_hmar), LABELS, Noise([0, 1]))
    single = decode(plan_of(small_tokenizer, small_hmar, "1;4;9;16"), LABELS, Noise([0, 1]))
    assert same(single, plain)
    assert single.forward_passes == 4


@pytest.mark.parametrize(("wanted", "passes"), [("published", 8), ("1;1,3;9;4,4,8", 7), ("off", 4)])
def test_passes_are_scales_plus_further_entries_and_nothing_is_cached(wanted, passes, small_tokenizer, small_hmar):
    plan = plan_of(small_tokenizer, small_hmar, wanted)
    decoded = decode(plan, LABELS, Noise([0, 1]))
    assert (decoded.forward_passes, plan.cost().forward_passes) == (passes, passes)
    assert (decoded.cache_bytes, plan.cost().cache_values) == (0, 0)


def test_the_work_of_a_plan_is_that_of_its_matrix_products(small_tokenizer, small_hmar):
    plan = plan_of(small_tokenizer, small_hmar, "1;1,3;1,1,2,5;16")
    lengths = [(1, 1), (4, 2), (9, 2), (16, 2), (4, 1), (9, 3)]  # tokens, and rows or masked passes without guidance
    expected = sum(times * (4 * small_hmar.layer_work(n, n) + small_hmar.head_work(n)) for n, times in lengths)
    assert plan.cost().multiply_adds == expected


def test_tokens_that_are_settled_never_change(small_tokenizer, small_hmar, monkeypatch):
    watched, seen = Watched(small_hmar), []

    def see(quantize, scale, tokens, hidden=None):
        seen.append(tokens)
        return shown(quantize, scale, tokens, hidden)

    shown = masking.current_input
    monkeypatch.setattr(masking, "current_input", see)
    last: list[torch.Tensor] = []
    step = plan_of(small_tokenizer, watched, "1;4;9;1,3,4,8").plan.steps[3]
    found, logits = torch.randint(64, (2, 16)), torch.randn(2, 16, 64)
    condition = small_hmar.condition(Condition(labels=torch.tensor([3, 7, 10, 10])))
    inputs = torch.randn(2, 16, 8)
    with torch.inference_mode():
        quantize, noise = small_tokenizer.quantize, Noise([0, 1])
        at = Setting(watched, condition, 3, 14, 16, 1.0, 1.5, True, quantize, noise, lambda *noted: None)
        after = masking.redrawn(step, Drawn(found, None, logits), at, inputs)
    assert [int(masked.sum(1)[0]) for masked in watched.masked] == [15, 12, 8]
    for masked in watched.masked:
        assert all(not (masked & ~before).any() for before in last)  # what is settled is never masked again
        last.append(masked)
    assert torch.equal(after[~watched.masked[0]], found[~watched.masked[0]])
    assert len(seen) == 3
    for tokens, masked in zip(seen, watched.masked, strict=True):  # what is visible in a pass is what comes out
        assert torch.equal(tokens[~masked], after[~masked])
    confidence = logits.softmax(-1).gather(-1, found[..., None])[..., 0]
    kept = ~watched.masked[0]
    assert torch.equal(confidence.argmax(1), kept.nonzero()[:, 1])


def test_an_image_drawn_alone_equals_the_same_seed_in_a_batch(small_tokenizer, small_hmar):
    plan, labels = plan_of(small_tokenizer, small_hmar, "1;1,3;3,3,3;4,12"), torch.arange(8)
    together = decode(plan, labels, Noise(range(8)))
    for i in (0, 7):
        alone = decode(plan, labels[i : i + 1], Noise([i]))
        assert all(torch.equal(one[0], many[i]) for one, many in zip(alone.tokens, together.tokens, strict=True))


def test_each_masked_pass_has_noise_of_its_own():
    noise = Noise([5])
    draws = [noise.uniform(Stream.REFINE, 1, 4, attempt=i) for i in range(3)] + [noise.uniform(Stream.TOKEN, 1, 4)]
    assert len({float(draw[0, 0]) for draw in draws}) == 4


def test_clean_shows_visible_tokens_without_their_masked_neighbours(small_tokenizer, small_hmar):
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 5] = True
    tokens = torch.arange(16)[None]
    other = tokens.clone()
    other[0, 5] = 60
    see, quantize = masking.current_input, small_tokenizer.quantize
    with torch.no_grad():
        assert torch.equal(see(quantize, 3, tokens, hidden), see(quantize, 3, other, hidden))
        assert not torch.equal(see(quantize, 3, tokens)[0, 6], see(quantize, 3, other)[0, 6])  # as published: leaks
    runs = [run_with(small_tokenizer, small_hmar, refine="published", clean=clean) for clean in (False, True)]
    ours, theirs = (decode(run, LABELS, Noise([0, 1])) for run in runs)
    assert not same(ours, theirs)


@pytest.mark.parametrize("draft_scales", [1, 2, 3])
def test_hmar_and_var_draft_for_one_another(draft_scales, small_tokenizer, small_hmar, small_var):
    hmar, var = plan_of(small_tokenizer, small_hmar, "1;1,3;9;8,8"), plan_of(small_tokenizer, small_var)
    alone = {"hmar": decode(hmar, LABELS, Noise([0, 1])), "var": decode(var, LABELS, Noise([0, 1]))}
    for drafter, refiner, name in ((hmar, var, "hmar"), (var, hmar, "var")):
        plan = code_of(drafter, refiner, draft_scales=draft_scales)
        decoded = decode(plan, LABELS, Noise([0, 1]))
        for k in range(draft_scales):
            assert torch.equal(decoded.tokens[k], alone[name].tokens[k])
        assert decoded.forward_passes == plan.cost().forward_passes
        assert decoded.cache_bytes == 2 * plan.cost().cache_bytes(torch.float32)


def test_the_least_confident_are_masked_and_the_first_win_ties():
    confidence = torch.tensor([[0.5, 0.1, 0.5, 0.1, 0.9]])
    among = torch.tensor([[True, True, True, False, True]])
    assert least_confident(confidence, among, 2).tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize(
    ("name", "side"), [("benchmark-256", "256"), ("benchmark-512", "512"), ("benchmark-1024", "1024")]
)
def test_named_schedules_are_the_published_ones(name, side):
    facts = load_settings()["benchmark_schedules"][side]
    assert decided(name, SCHEDULES[side]) == facts["mask_schedule"]


def decided(wanted, sides) -> list[list[int]]:
    """How many tokens of each scale are decided in each pass."""
    scales = Schedule(sides)
    passes = masked_passes(wanted, scales)
    ends = [(tokens, *masked, 0) for tokens, masked in zip(scales.lengths, passes, strict=True)]
    return [[before - after for before, after in pairwise(each)] for each in ends]


def load_settings() -> dict:
    import json

    from golden.cases import FOLDER

    return json.loads((FOLDER / "hmar-published-settings" / "case.json").read_text())


def test_the_default_schedule_is_the_published_one():
    expected = load_settings()["sampling"]["argument_defaults"]["mask_schedule"]
    assert decided("published", SCHEDULES["256"]) == expected


def test_dots_leave_the_rest_in_one_pass():
    assert decided("1;1,3;...", (1, 2, 3, 4)) == [[1], [1, 3], [9], [16]]


@pytest.mark.parametrize(("sides", "expected"), [((2, 4, 8), [[4], [16], [64]]), ((3, 5), [[9], [25]]), ((1,), [[1]])])
def test_the_first_scale_is_drawn_at_once_whatever_its_side(sides, expected):
    assert decided("published", sides) == expected


def test_a_stage_shows_the_masked_passes_of_its_own_scales_alone(small_tokenizer, small_hmar, small_var):
    whole = plan_of(small_tokenizer, small_hmar, "1;1,3;1,1,2,5;16")
    assert "4 masked passes (1: 1,3; 2: 1,1,2,5)" in str(whole)
    var = plan_of(small_tokenizer, small_var)
    assert "1 masked passes (1: 1,3)" in str(code_of(whole, var, draft_scales=2))
    assert "masked" not in str(code_of(var, whole, draft_scales=3))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ([1, 3], r"refine is \[1, 3\]"),
        ([[1], [1.5, 2.5], [9], [16]], "refine is .*it must be off, published"),
        (5, "refine is 5"),
        ("1;1,3;9", "refine has 3 lists for 4 scales"),
        ("1;1,2;9;16", "refine: scale 1 has 1,2"),
        ("1;0,4;9;16", "refine: scale 1 has 0,4"),
        ("1;1,x;9;16", "refine is '1;1,x;9;16'; it must be off, published"),
        ("sometimes", "refine is 'sometimes'"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(wanted, words):
    with pytest.raises(ValueError, match=words):
        masked_passes(wanted, SMALL)


def test_what_cannot_be_combined_is_refused(small_tokenizer, small_hmar, small_var):
    with pytest.raises(ValueError, match=r"refine needs a backbone with masked passes \(HMAR\), not VAR"):
        plan_of(small_tokenizer, small_var, "published")
    with pytest.raises(ValueError, match="smooth"):
        plan_of(small_tokenizer, small_hmar, "published", smooth=True)
    run = plan_of(small_tokenizer, small_hmar)
    with pytest.raises(ValueError, match=r"refine: scale 0 redraws \[4\]"):
        rebound(run, run.plan.changed(masked=(4,)))
    with pytest.raises(ValueError, match=r"HMAR has no subnets"):
        variant_of(plan_of(small_tokenizer, small_hmar), subnet=2, full_scales=2)
