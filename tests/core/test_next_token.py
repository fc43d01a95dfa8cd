"""Next-token decoding draws what the published sampler draws, and does the work that its plan says."""

import pytest
import torch
from golden.cases import load_case
from runs import code_of, run_with, variant_of
from small_flowar import tiny_flowar, tiny_kl
from small_llamagen import golden_gpt, golden_vq, plan_of, tiny_gpt, tiny_vq
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Subnet
from var_toolkit.heads import categorical
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.flow import Flow
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.models.layers import linear
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling

LABELS = torch.tensor([1, 4])


@pytest.fixture(scope="module")
def golden():
    return golden_vq(), golden_gpt()


@pytest.fixture
def tempered(monkeypatch) -> list[torch.Tensor]:
    """What the filters see, token by token."""
    seen, filtered = [], categorical.filter_top_k_top_p
    monkeypatch.setattr(
        categorical, "filter_top_k_top_p", lambda logits, **how: (seen.append(logits), filtered(logits, **how))[1]
    )
    return seen


def test_greedy_tokens_and_guided_logits_are_the_published_ones(golden, tempered):
    case = load_case("llamagen-generate").tensors
    decoded = decode(plan_of(*golden, guidance=1.0, top_k=1), case["label"], Noise([0, 1]))
    assert torch.equal(decoded.tokens[0], case["tokens"])
    assert_close(torch.cat(tempered, dim=1), case["guided_logits"], atol=2e-4, rtol=0)


def test_seeded_tokens_are_the_published_ones_with_guidance_that_ends(golden, tempered, monkeypatch):
    """The published interval of 7 steps leaves guidance to the prefill and steps 0 to 7, which are 9 tokens."""
    case = load_case("llamagen-generate-seeded")
    facts, tensors = case.facts["sampling"], case.tensors
    noise = iter(tensors["noise"].unbind(1))
    monkeypatch.setattr(categorical, "pick", lambda mass, uniform: (mass[:, 0] / next(noise)).argmax(-1, keepdim=True))
    settings = {name: facts[name] for name in ("temperature", "top_k", "top_p")}
    guided = facts["cfg_interval"] + 2
    plan = plan_of(*golden, guidance=facts["cfg_scale"] - 1, guided_tokens=guided, **settings)
    decoded = decode(plan, tensors["label"], Noise([0, 1]))
    assert torch.equal(decoded.tokens[0], tensors["tokens"])
    found = torch.cat(tempered, dim=1) * facts["temperature"]
    assert_close(found, tensors["guided_logits"], atol=2e-4, rtol=0)


def test_the_latent_is_made_of_the_tokens_and_told_once(golden):
    events = []
    decoded = decode(plan_of(*golden, guidance=1.0), torch.tensor([3, 7]), Noise([0, 1]), on_scale=events.append)
    tokenizer, (tokens,) = golden[0], decoded.tokens
    assert (tokens.shape, tokens.dtype) == ((2, 16), torch.int64)
    assert torch.equal(decoded.latent, tokenizer.latents([tokens])[0])
    assert [event.scale for event in events] == [0]
    assert torch.equal(events[0].tokens, tokens)
    assert torch.equal(events[0].preview(), tokenizer.decode(decoded.latent))


def test_guidance_is_the_usual_one_less_one():
    logits = torch.randn(4, 1, 16)
    conditional, null = logits.chunk(2)
    sampling = TokenSampling(tiny_gpt(), Categorical(temperature_first=True), 0.75)
    positions = torch.zeros(2, 1, dtype=torch.int64)
    assert_close(sampling.choices(logits, positions), null + 1.75 * (conditional - null))


def test_without_guidance_there_is_one_row_an_image(monkeypatch):
    rows, network = [], tiny_gpt()
    monkeypatch.setattr(
        network, "next_logits", lambda hidden: (rows.append(len(hidden)), type(network).next_logits(network, hidden))[1]
    )
    for guidance in (0.0, 1.0):
        decode(plan_of(tiny_vq(), network, guidance=guidance), LABELS, Noise([0, 1]))
    assert rows == [2] * 9 + [4] * 9


@pytest.mark.parametrize("count", [1, 4, 8])
def test_tokens_are_guided_up_to_a_count(count, tempered):
    """Up to it the logits are those of guidance throughout; from it on those of the condition alone."""
    network, noise = tiny_gpt(), Noise([0, 1])
    found = decode(plan_of(tiny_vq(), network, guidance=3.0, guided_tokens=count), LABELS, noise).tokens[0]
    ours = torch.cat(tempered, dim=1)
    with torch.no_grad():
        conditional = network(LABELS, found[:, :-1])
        null = network(torch.full_like(LABELS, 5), found[:, :-1])
    assert_close(ours[:, :count], (null + 4 * (conditional - null))[:, :count], atol=1e-4, rtol=1e-4)
    assert_close(ours[:, count:], conditional[:, count:], atol=1e-4, rtol=1e-4)


def test_no_guided_token_is_no_guidance_and_all_are_the_default():
    def tokens(**settings):
        return decode(plan_of(tiny_vq(), tiny_gpt(), **settings), LABELS, Noise([3, 4])).tokens[0]

    strong, plain = tokens(guidance=6.0), tokens()
    assert torch.equal(tokens(guidance=6.0, guided_tokens=0), plain)
    assert torch.equal(tokens(guidance=6.0, guided_tokens=9), strong)
    assert not torch.equal(strong, plain)


def test_temperature_acts_before_the_filters():
    logits = torch.tensor([[[2.0, 1.0, 0.0, -9.0]]])
    for temperature, kept in ((1.0, 2), (5.0, 3)):  # 0.9 of the mass is in so many tokens
        found = Categorical(temperature=temperature, top_p=0.9, temperature_first=True).filtered(logits)
        assert found.isfinite().sum() == kept
        assert_close(found[found.isfinite()], logits[..., :kept].flatten() / temperature)


def test_an_image_drawn_alone_equals_the_same_seed_in_a_batch(golden):
    plan, labels = plan_of(*golden, guidance=0.75, top_p=0.95), torch.arange(5)
    together = decode(plan, labels, Noise(range(5))).tokens[0]
    for i in (0, 4):
        assert torch.equal(decode(plan, labels[i : i + 1], Noise([i])).tokens[0][0], together[i])
    assert len(together.unique(dim=0)) == 5


def test_tokens_follow_their_distribution_each_by_noise_of_its_own():
    """The first two tokens of many images of one class, beside the probabilities of all pairs."""
    network, count = tiny_gpt(side=2, vocab_size=4), 4000
    drawn = decode(plan_of(tiny_vq(side=2, vocab_size=4), network), torch.full((count,), 2), Noise(range(count)))
    with torch.no_grad():
        first, second = network(torch.full((4,), 2), torch.arange(4).unsqueeze(1)).softmax(-1).unbind(1)
    expected = (first[0].unsqueeze(1) * second).flatten()
    found = (4 * drawn.tokens[0][:, 0] + drawn.tokens[0][:, 1]).bincount(minlength=16) / count
    assert (found - expected).abs().max() < 4 * (expected.max() / count) ** 0.5
    assert expected.max() - expected.min() > 0.05


@pytest.mark.parametrize(("side", "guidance"), [(3, 1.0), (4, 0.0), (2, 0.5)])
def test_the_work_told_in_advance_is_the_work_done(side, guidance, monkeypatch):
    plan = plan_of(tiny_vq(side=side), tiny_gpt(side=side), guidance=guidance)
    told = plan.cost()
    # The counter sees neither oneDNN's products nor those of fused attention.
    monkeypatch.setattr(linear, "_has_onednn", lambda: False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decoded = decode(plan, LABELS[:1], Noise([0]))
    assert counter.get_total_flops() / 2 == pytest.approx(told.multiply_adds, rel=0.03)
    assert (told.forward_passes, told.evaluations) == (decoded.forward_passes, decoded.evaluations) == (side**2, 0)
    assert told.cache_bytes(torch.float32) == decoded.cache_bytes


def test_packed_weights_draw_the_same(golden):
    case = load_case("llamagen-generate").tensors
    tokenizer, network = golden[0], golden_gpt()
    linear.pack_linears(network)
    decoded = decode(plan_of(tokenizer, network, guidance=1.0, top_k=1), case["label"], Noise([0, 1]))
    assert torch.equal(decoded.tokens[0], case["tokens"])


def test_the_plan_says_what_it_does():
    plan = plan_of(tiny_vq(), tiny_gpt(), guidance=0.75, top_k=20, guided_tokens=4)
    assert str(plan) == ("scale 0: RasterGPT 2 x 32, guidance 0.75, top-k 20, top-p 0, temperature 1, 4 tokens guided")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smooth": True}, "RasterGPT draws .*smooth"),
        ({"guided_tokens": -1}, "guided_tokens is -1"),
        ({"guided_tokens": 2.5}, "guided_tokens is 2.5"),
        ({"steps": 5}, "steps is for continuous tokens"),
        ({"refine": "published"}, "refine needs"),
        ({"refine_clean": True}, "refine_clean"),
        ({"subnet": 2, "full_scales": 1}, "RasterGPT has no subnets"),
        ({"temperature": (1.0, 2.0)}, "temperature has 2 values"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_what_next_token_models_do_not_have_is_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        Pipeline(tiny_vq(), tiny_gpt(), Sampling(2.0, 0, 0.0)).plan(**settings)


def test_other_kinds_of_models_have_no_guided_tokens(small_tokenizer, small_var):
    with pytest.raises(ValueError, match="guided_tokens is for next-token models, not VAR"):
        Pipeline(small_tokenizer, small_var).plan(guided_tokens=3)
    with pytest.raises(ValueError, match="guided_tokens is for discrete tokens; this model's are continuous"):
        Pipeline(tiny_kl(), tiny_flowar()).plan(guided_tokens=3)


def test_methods_for_several_scales_are_refused_in_words(small_tokenizer, small_var):
    run = plan_of(tiny_vq(), tiny_gpt())
    with pytest.raises(ValueError, match="an image of one map has one model"):
        code_of(run, run, draft_scales=1)
    with pytest.raises(ValueError, match="RasterGPT has no subnets"):
        variant_of(run, subnet=2, full_scales=1)
    with pytest.raises(ValueError, match="the drafter has a MultiScaleVQ and the refiner a RasterVQ"):
        code_of(run_with(small_tokenizer, small_var), run, draft_scales=1)
    with pytest.raises(ValueError, match="RasterGPT has a Categorical head; a step of the plan has Flow"):
        run_of(tiny_vq(), tiny_gpt(), head=Flow())
    with pytest.raises(ValueError, match="RasterGPT has no subnets"):
        run_of(tiny_vq(), tiny_gpt(), layers=Subnet(2, 1))


def test_one_temperature_may_be_given_as_that_of_the_only_scale():
    pipe = Pipeline(tiny_vq(), tiny_gpt(), Sampling(2.0, 0, 0.0))
    assert pipe.plan(temperature=(0.7,)).steps[0].head.temperature == 0.7
    drawn = [pipe([1, 4], seeds=[0, 1], temperature=t, output_type="pt").tokens[0] for t in (0.7, (0.7,), 2.0)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_null_half_is_dropped_where_guidance_has_ended():
    rows, network = [], tiny_gpt()
    hook = network.layers[0].register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    run = plan_of(tiny_vq(), network, guidance=1.0, guided_tokens=4)
    decoded = decode(run, LABELS, Noise([0, 1]))
    hook.remove()
    assert rows == [4] * 4 + [2] * 5
    assert run.cost().multiply_adds < plan_of(tiny_vq(), network, guidance=1.0).cost().multiply_adds
    assert decoded.cache_bytes == 2 * run.cost().cache_bytes(torch.float32)
