"""The engine runs a plan as the published sampler does, and keeps images apart."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import small_var_network
from golden.cases import load_case
from runs import rebound, run_with
from small_flowar import tiny_flowar
from torch.testing import assert_close

from var_toolkit.core.bind import bind, run_of
from var_toolkit.core.engine import ScaleEvent, decode
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.plan import Plan, Scale, Step, Tokens, plan_of
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.categorical import Categorical
from var_toolkit.models.var import VAR, VARConfig


@pytest.mark.parametrize(("run", "cfg"), [("cfg4", 4.0), ("cfg1p5", 1.5)])
def test_greedy_tokens_latents_and_images_are_the_published_ones(var_case, small_tokenizer, run, cfg):
    case, var = var_case
    latents = []
    decoded = decode(
        run_with(small_tokenizer, var, guidance=cfg, top_k=1),
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

    plan = run_with(small_tokenizer, small_var, guidance=1.5, top_k=20, top_p=0.9, smooth=True)
    decoded = decode(plan, case.tensors["labels"], StoredNoise([0, 1]))
    assert_close(decoded.latent, case.tensors["smooth_f_hat"], atol=5e-4, rtol=0)


def test_an_image_drawn_alone_equals_the_same_seed_in_a_batch_of_eight(small_tokenizer, small_var):
    plan = run_with(small_tokenizer, small_var, guidance=2.0, top_k=30, top_p=0.95)
    labels = torch.arange(8)
    together = decode(plan, labels, Noise(range(8)))
    for i in (0, 7):
        alone = decode(plan, labels[i : i + 1], Noise([i]))
        for one, many in zip(alone.tokens, together.tokens, strict=True):
            assert torch.equal(one[0], many[i])


def test_two_networks_with_the_same_weights_draw_what_one_draws(small_tokenizer, small_var):
    one, labels = run_with(small_tokenizer, small_var, guidance=1.5, top_k=40), torch.tensor([3, 7])
    expected = decode(one, labels, Noise([0, 1]))
    for n in (1, 2, 3):
        steps = (*one.plan.within(range(n)), *(replace(step, network="other") for step in one.plan.within(range(n, 4))))
        two = bind(
            replace(one.plan, steps=steps), {"backbone": small_var, "other": small_var_network()}, small_tokenizer
        )
        assert [bound.fresh for bound in two.steps] == [k in (0, n) for k in range(4)]
        for ours, theirs in zip(decode(two, labels, Noise([0, 1])).tokens, expected.tokens, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("guided", [range(4), range(1, 3), range(2), range(3, 4), range(0)], ids=str)
def test_guidance_that_ends_early_drops_the_null_half_of_condition_and_cache(
    small_tokenizer, small_var, small_hmar, guided
):
    """The tokens are those of guidance with no weight at the other scales, at less work."""
    labels = torch.tensor([3, 7])
    for network in (small_var, small_hmar):
        whole = run_with(small_tokenizer, network, guidance=3.0)
        some = rebound(whole, plan_of(network, guidance=3.0, guided=guided))
        steps = [
            replace(step, guidance=step.guidance if k in guided else 1e-12) for k, step in enumerate(whole.plan.steps)
        ]
        all_rows = rebound(whole, replace(whole.plan, steps=steps))
        ours, theirs = (decode(run, labels, Noise([0, 1])) for run in (some, all_rows))
        assert all(torch.equal(a, b) for a, b in zip(ours.tokens, theirs.tokens, strict=True))
        stop = max((k + 1 for k in guided if k > 0), default=0)
        needed = [k in guided and k > 0 if network.markov else k < stop for k in range(4)]
        assert [bound.rows for bound in some.steps] == [1 + one for one in needed]
        assert some.cost().multiply_adds <= all_rows.cost().multiply_adds
        assert decode(some, labels, Noise([0, 1])).cache_bytes == 2 * some.cost().cache_bytes(torch.float32)


def test_var_without_guidance_at_the_last_scale_does_four_fifths_of_the_work():
    with torch.device("meta"):
        network = VAR(VARConfig.published(16))
    tokenizer = SimpleNamespace(scales=network.scales, pyramid_of=lambda schedule: None)
    whole, some = (run_of(tokenizer, network, guidance=4.0, guided=guided).cost() for guided in (None, range(9)))
    assert some.multiply_adds / whole.multiply_adds == pytest.approx(0.80, abs=0.005)


def test_no_guidance_gives_the_tokens_of_the_conditional_branch_with_half_the_cache(small_tokenizer, small_var):
    labels = torch.tensor([3, 7])
    off = decode(run_with(small_tokenizer, small_var, guidance=0.0), labels, Noise([0, 1]))
    barely = decode(run_with(small_tokenizer, small_var, guidance=1e-12), labels, Noise([0, 1]))
    assert all(torch.equal(a, b) for a, b in zip(off.tokens, barely.tokens, strict=True))
    assert off.cache_bytes * 2 == barely.cache_bytes


def test_the_callback_sees_every_scale_and_previews_the_image(small_tokenizer, small_var):
    events: list[ScaleEvent] = []
    decoded = decode(run_with(small_tokenizer, small_var), torch.tensor([1]), Noise([0]), on_scale=events.append)
    assert [event.scale for event in events] == [0, 1, 2, 3]
    assert torch.equal(events[-1].latent, decoded.latent)
    assert events[0].preview().shape == (1, 3, 64, 64)
    expected = small_tokenizer.latents(decoded.tokens)
    for event, latent in zip(events, expected, strict=True):
        assert_close(event.latent, latent, atol=1e-6, rtol=0)


def test_bfloat16_runs_and_its_cache_is_half_as_large(small_tokenizer):
    var = small_var_network()
    full = decode(run_with(small_tokenizer, var, guidance=1.0), torch.tensor([1]), Noise([0]))
    half = decode(run_with(small_tokenizer, var.to(torch.bfloat16), guidance=1.0), torch.tensor([1]), Noise([0]))
    assert full.cache_bytes == 2 * half.cache_bytes


@pytest.mark.parametrize("scales", [[0, 1, 2], [0, 1, 3], [], [0, 1, 1, 2, 3], [1, 0, 2, 3], [0, 1, 2, 3, 4]], ids=str)
def test_steps_that_do_not_cover_the_tokens_once_in_order_are_refused(scales):
    with pytest.raises(ValueError, match=r"token \d+ is to be drawn next|draw \d+ tokens|draws scale 4"):
        Plan(Schedule((1, 2, 3, 4)), tuple(Step(Scale(k)) for k in scales))


@pytest.mark.parametrize("places", [Scale, Tokens])
@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_places_are_whole_numbers(places, value):
    with pytest.raises(ValueError, match="a step draws"):
        Scale(value) if places is Scale else Tokens(value, 1)


@pytest.mark.parametrize("scales", [range(2, 5), range(-1, 2), range(0, 4, 2)])
def test_a_plan_is_cut_to_scales_that_it_has(small_tokenizer, small_var, scales):
    plan = run_with(small_tokenizer, small_var).plan
    assert plan.within(range(4, 4)) == ()
    assert [step.scale for step in plan.within(range(1, 4))] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"a plan has no range.*; it must be a range of consecutive scales out of 0"):
        plan.within(scales)


def test_steps_may_come_as_a_list(small_var):
    plan = plan_of(small_var)
    listed = Plan(plan.schedule, list(plan.steps))
    assert listed == plan
    assert hash(listed) == hash(plan)


def test_guidance_grows_with_the_scale(small_var):
    for network, top in ((small_var, 3), (tiny_flowar(), 2)):
        steps = plan_of(network, guidance=6.0).steps
        assert [step.guidance for step in steps] == pytest.approx([6.0 * k / top for k in range(top + 1)])
    assert [step.guidance for step in plan_of(small_var, guidance=6.0, guided=range(1, 3)).steps] == [0, 2.0, 4.0, 0]


@pytest.mark.parametrize(
    "setting",
    [
        {"guidance": -1}, {"guidance": "2"}, {"guidance": [1.0, 2.0]}, {"guidance": float("nan")},
        {"top_k": -1}, {"top_k": 2.5}, {"top_p": 1.5}, {"top_p": None}, {"temperature": 0}, {"temperature": (1, 1)},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} is .*; it must be [^\n]*$"):
        Step(Scale(0), **setting) if "guidance" in setting else Categorical(**setting)
