"""The engine runs a plan as the published sampler does, and keeps images apart."""

from dataclasses import replace

import pytest
import torch
from conftest import small_var_network
from golden.cases import load_case
from small_flowar import plan_of as flow_plan_of
from small_flowar import tiny_flowar, tiny_kl
from torch.testing import assert_close

from var_toolkit.core import engine
from var_toolkit.core.engine import ScaleEvent, decode
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.plan import Plan, Stage


def plan_of(tokenizer, backbone, **settings) -> Plan:
    return Plan(tokenizer, (Stage(backbone, range(4), **settings),))


@pytest.mark.parametrize(("run", "cfg"), [("cfg4", 4.0), ("cfg1p5", 1.5)])
def test_greedy_tokens_latents_and_images_are_the_published_ones(var_case, small_tokenizer, run, cfg):
    case, var = var_case
    latents = []
    decoded = decode(
        plan_of(small_tokenizer, var, guidance=cfg, top_k=1),
        case.tensors["labels"],
        Noise([0, 1]),
        on_scale=lambda event: latents.append(event.latent),
    )
    for ours, theirs in zip(decoded.tokens, case.maps(f"{run}_idx"), strict=True):
        assert torch.equal(ours, theirs)
    assert_close(torch.stack(latents), case.tensors[f"{run}_f_hat"], atol=5e-6, rtol=0)
    image = (small_tokenizer.decode(decoded.latent) + 1) / 2
    assert_close(image, case.tensors[f"{run}_image"], atol=2e-5, rtol=0)


def test_smooth_mode_is_the_published_one(small_tokenizer, small_var):
    case = load_case("var-small")

    class StoredNoise(Noise):
        def gumbel(self, stream, position, tokens, width):
            assert stream is Stream.SMOOTH
            return case.tensors["smooth_noise"][:, position : position + tokens]

    plan = plan_of(small_tokenizer, small_var, guidance=1.5, top_k=20, top_p=0.9, smooth=True)
    decoded = decode(plan, case.tensors["labels"], StoredNoise([0, 1]))
    assert_close(decoded.latent, case.tensors["smooth_f_hat"], atol=5e-4, rtol=0)


def test_an_image_drawn_alone_equals_the_same_seed_in_a_batch_of_eight(small_tokenizer, small_var):
    plan = plan_of(small_tokenizer, small_var, guidance=2.0, top_k=30, top_p=0.95)
    labels = torch.arange(8)
    together = decode(plan, labels, Noise(range(8)))
    for i in (0, 7):
        alone = decode(plan, labels[i : i + 1], Noise([i]))
        for one, many in zip(alone.tokens, together.tokens, strict=True):
            assert torch.equal(one[0], many[i])


def test_two_stages_of_one_backbone_equal_one_stage(small_tokenizer, small_var):
    one = plan_of(small_tokenizer, small_var, guidance=1.5, top_k=40)
    stage = one.stages[0]
    labels = torch.tensor([3, 7])
    expected = decode(one, labels, Noise([0, 1]))
    for n in (1, 2, 3):
        two = Plan(small_tokenizer, (replace(stage, scales=range(n)), replace(stage, scales=range(n, 4))))
        for ours, theirs in zip(decode(two, labels, Noise([0, 1])).tokens, expected.tokens, strict=True):
            assert torch.equal(ours, theirs)


def test_no_guidance_gives_the_tokens_of_the_conditional_branch_with_half_the_cache(small_tokenizer, small_var):
    labels = torch.tensor([3, 7])
    off = decode(plan_of(small_tokenizer, small_var, guidance=0.0), labels, Noise([0, 1]))
    barely = decode(plan_of(small_tokenizer, small_var, guidance=1e-12), labels, Noise([0, 1]))
    assert all(torch.equal(a, b) for a, b in zip(off.tokens, barely.tokens, strict=True))
    assert off.cache_bytes * 2 == barely.cache_bytes


def test_the_callback_sees_every_scale_and_previews_the_image(small_tokenizer, small_var):
    events: list[ScaleEvent] = []
    decoded = decode(plan_of(small_tokenizer, small_var), torch.tensor([1]), Noise([0]), on_scale=events.append)
    assert [event.scale for event in events] == [0, 1, 2, 3]
    assert torch.equal(events[-1].latent, decoded.latent)
    assert events[0].preview().shape == (1, 3, 64, 64)
    expected = small_tokenizer.latents(decoded.tokens)
    for event, latent in zip(events, expected, strict=True):
        assert_close(event.latent, latent, atol=1e-6, rtol=0)


def test_bfloat16_runs_and_its_cache_is_half_as_large(small_tokenizer):
    var = small_var_network()
    full = decode(plan_of(small_tokenizer, var, guidance=1.0), torch.tensor([1]), Noise([0]))
    half = decode(plan_of(small_tokenizer, var.to(torch.bfloat16), guidance=1.0), torch.tensor([1]), Noise([0]))
    assert full.cache_bytes == 2 * half.cache_bytes


@pytest.mark.parametrize(
    ("ranges", "words"),
    [([range(3)], "they must cover 0 to 3"), ([range(2), range(3, 4)], "they must cover"), ([], "nothing")],
)
def test_stages_that_do_not_cover_the_scales_once_are_refused(small_tokenizer, small_var, ranges, words):
    with pytest.raises(ValueError, match=words):
        Plan(small_tokenizer, tuple(Stage(small_var, r) for r in ranges))


@pytest.mark.parametrize("scales", [range(5), range(0, 4, 2), range(2, 2), [0, 1, 2, 3]])
def test_a_stage_has_a_range_of_scales_that_there_are(small_tokenizer, small_var, scales):
    with pytest.raises(ValueError, match=r"a stage has .* 0 to 3"):
        Stage(small_var, scales)


@pytest.mark.parametrize("scales", [range(2, 5), range(-1, 2), range(0, 4, 2)])
def test_a_plan_is_cut_to_scales_that_it_has(small_tokenizer, small_var, scales):
    plan = plan_of(small_tokenizer, small_var)
    assert plan.within(range(4, 4)) == ()
    assert [stage.scales for stage in plan.within(range(1, 4))] == [range(1, 4)]
    with pytest.raises(ValueError, match=r"a plan has no range.*; it must be a range of consecutive scales out of 0"):
        plan.within(scales)


def test_stages_may_come_as_a_list(small_tokenizer, small_var):
    listed, plan = Plan(small_tokenizer, [Stage(small_var, range(4))]), plan_of(small_tokenizer, small_var)
    assert listed == plan
    assert hash(listed) == hash(plan)


def test_guidance_grows_with_the_place_in_the_image_in_a_stage_of_its_own_too(small_tokenizer, small_var, monkeypatch):
    seen = []
    guide, draw_map = engine.guide, engine.draw_map
    monkeypatch.setattr(engine, "guide", lambda logits, strength: seen.append(strength) or guide(logits, strength))
    monkeypatch.setattr(
        engine,
        "draw_map",
        lambda *given, strength, **named: seen.append(strength - 1) or draw_map(*given, strength=strength, **named),
    )
    discrete, continuous = plan_of(small_tokenizer, small_var), flow_plan_of(tiny_kl(), tiny_flowar())
    for plan, guided, strengths in ((discrete, 2, [4.0]), (continuous, 1, [0.0, 3.0, 0.0])):
        count = len(plan.tokenizer.scales)
        stages = (replace(plan.stages[0], scales=range(k, k + 1), guidance=6.0 * (k == guided)) for k in range(count))
        decode(replace(plan, stages=stages), torch.tensor([3]), Noise([0]))
        assert seen == pytest.approx(strengths)
        seen.clear()


@pytest.mark.parametrize(
    "setting",
    [
        {"guidance": -1}, {"guidance": "2"}, {"guidance": [1.0, 2.0]}, {"guidance": float("nan")},
        {"top_k": -1}, {"top_k": 2.5}, {"top_p": 1.5}, {"top_p": None}, {"temperature": 0}, {"temperature": (1, 1)},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(small_var, setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} is .*; it must be [^\n]*$"):
        Stage(small_var, range(4), **setting)
