"""Next-scale speculation draws what the large VAR draws, in fewer passes, whatever the small one thinks."""

from dataclasses import dataclass, field, replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from conftest import small_var_network
from golden.cases import fill
from runs import rebound, run_with
from small_flowar import tiny_flowar
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition
from var_toolkit.core.bind import Run, bind
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Subnet
from var_toolkit.core.preserved import preserved_outside
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.categorical import Categorical, guided_logits
from var_toolkit.methods.speculative.lantern import Lantern
from var_toolkit.methods.speculative.next_scale import NextScale, ScaleTally
from var_toolkit.methods.speculative.rules import Standard
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.tokenizers.residual_quantizer import ResidualQuantizer

TOY = {"patch_nums": (1, 2, 3), "vocab_size": 3, "latent_channels": 4}
PLAIN, GUIDED = {}, {"guidance": 1.5, "top_k": 2, "top_p": 0.95, "temperature": 1.3}


def speculative(run: Run, proposer, verify: NextScale) -> Run:
    networks = {"backbone": run.networks["backbone"], "draft": proposer}
    return bind(run.plan.changed(verify=verify), networks, run.tokenizer)


def same_tokens(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def toy_var(seed: int, **changes) -> VAR:
    """Two classes; every token has a say in the finer ones."""
    torch.manual_seed(seed)
    network = VAR(VARConfig(depth=1, embed_dim=16, num_heads=2, num_classes=2, **{**TOY, **changes}))
    network.init_weights(adaln_gamma=1.0, head=1.0)
    for parameter in network.parameters():
        parameter.data.mul_(1.5)
    return network.eval()


@pytest.fixture(scope="module")
def toy_tokenizer():
    """A pyramid of 3 codes in maps of 1, 4 and 9 tokens."""
    scales = Schedule(TOY["patch_nums"])
    quantizer = ResidualQuantizer(
        scales, vocab_size=3, channels=4, share_quant_resi=4, quant_resi=0.5, beta=0.25, using_znorm=False
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(fill(quantizer).embedding.weight)
    return SimpleNamespace(scales=scales, pyramid=quantizer, pyramid_of=lambda schedule: quantizer)


@torch.no_grad()
def truth(run: Run, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact chances of the two coarse maps (243,), and of each token of the third behind them, (243, 9, 3)."""
    network, pyramid, copies = run.networks["backbone"], run.pyramid, run.steps[0].rows
    coarse = torch.tensor(list(product(range(3), repeat=5)))
    unseen = torch.zeros(243, 9, dtype=torch.int64)
    rows = torch.tensor([label, 2][:copies]).repeat_interleave(243)
    inputs = pyramid.teacher_inputs([coarse[:, :1], coarse[:, 1:], unseen]).repeat(copies, 1, 1)
    logits = network(rows, inputs)
    p = []
    for step, part in zip(run.plan.steps, run.schedule.split(logits), strict=True):
        guided = guided_logits(part, step.guidance) if copies == 2 else part
        p.append(step.head.probabilities(step.head.filtered(guided)).double())
    chances = torch.cat(p[:2], dim=1).gather(-1, coarse.unsqueeze(-1)).squeeze(-1)
    return chances.prod(1), p[2]


def apart(tokens, chance_N: torch.Tensor, fine_NLV: torch.Tensor) -> torch.Tensor:
    """How far samples are from the truth: total variation of the coarse maps, and of fine tokens behind one of them."""
    base = 3 ** torch.arange(4, -1, -1)
    index = (torch.cat(tokens[:2], dim=1) * base).sum(1)
    seen = torch.bincount(index, minlength=243).double() / len(index)
    found = [(seen - chance_N).abs().sum() / 2]
    behind = index % 27  # the last three coarse tokens
    for place in (0, 4, 8):
        cells = torch.bincount(behind * 3 + tokens[2][:, place], minlength=81).double() / len(index)
        exact = (chance_N.unsqueeze(1) * fine_NLV[:, place]).view(9, 27, 3).sum(0).flatten()
        found.append((cells - exact).abs().sum() / 2)
    return torch.stack(found)


@pytest.mark.parametrize(("window", "settings"), [(2, PLAIN), (3, PLAIN), (3, GUIDED)], ids=["2", "3", "3-guided"])
def test_tokens_come_as_the_target_draws_them_in_every_batch(toy_tokenizer, window, settings):
    plan = run_with(toy_tokenizer, toy_var(0), **settings)
    whole, count = speculative(plan, toy_var(1), NextScale(window=window)), 10_000
    exact, labels = truth(plan, 1), torch.ones(count, dtype=torch.int64)
    found = decode(whole, labels, Noise(range(count)))
    noise = apart(decode(plan, labels, Noise(range(count, 2 * count))).tokens, *exact)
    far = apart(found.tokens, *exact)
    assert (far < 1.5 * noise).all(), f"{far} away, plain decoding {noise}"
    assert set(found.speculation.accepted_counts) == set(range(window)), "some rounds must stand and some fall"
    for batch in (1, 3):
        for at in range(0, 12, batch):
            rows = slice(at, at + batch)
            alone = decode(whole, labels[rows], Noise(range(count)[rows]))
            assert same_tokens(alone.tokens, [tokens[rows] for tokens in found.tokens])


def test_a_drafter_with_settings_of_its_own_changes_nothing_but_speed(toy_tokenizer):
    plan, count = run_with(toy_tokenizer, toy_var(0)), 10_000
    verify = NextScale(window=3, guided=False, head=Categorical(top_k=2, temperature=0.8))
    exact, labels = truth(plan, 0), torch.zeros(count, dtype=torch.int64)
    found = decode(speculative(plan, toy_var(1), verify), labels, Noise(range(count)))
    noise = apart(decode(plan, labels, Noise(range(count, 2 * count))).tokens, *exact)
    assert (apart(found.tokens, *exact) < 1.5 * noise).all()


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0, "top_k": 30, "top_p": 0.95, "temperature": 1.1}])
def test_a_window_of_one_is_plain_decoding_bit_for_bit(small_tokenizer, small_var, settings):
    plan, labels = run_with(small_tokenizer, small_var, **settings), torch.tensor([3, 7])
    events = [], []
    run = speculative(plan, small_var_network(depth=2), NextScale(window=1))
    ours = decode(run, labels, Noise([0, 1]), on_scale=events[0].append)
    expected = decode(plan, labels, Noise([0, 1]), on_scale=events[1].append)
    assert same_tokens(ours.tokens, expected.tokens)
    assert torch.equal(ours.latent, expected.latent)
    tally = ours.speculation
    assert (ours.forward_passes, tally.target_passes, tally.draft_passes) == (4, 8, 0)
    for mine, theirs in zip(*events, strict=True):
        assert mine.scale == theirs.scale
        assert torch.equal(mine.tokens, theirs.tokens)
        assert torch.equal(mine.latent, theirs.latent)


@pytest.mark.parametrize(("window", "rounds"), [(2, {1: 6}), (3, {2: 3}), (4, {3: 3}), (9, {3: 3})])
def test_equal_models_never_fall(small_tokenizer, small_var, window, rounds):
    """With windows of two the proposer takes in what the target drew; the last scale is never drafted."""
    plan, labels = run_with(small_tokenizer, small_var, guidance=1.5, top_k=40), torch.tensor([3, 7, 1])
    decoded = decode(speculative(plan, small_var_network(), NextScale(window=window)), labels, Noise([0, 1, 2]))
    tally = decoded.speculation
    passes = -(-4 // window)
    assert tally.accepted_counts == rounds
    assert tally.judged == tally.accepted_tokens
    assert (decoded.forward_passes, tally.target_passes, tally.decided) == (passes, 3 * passes, 90)
    assert tally.draft_passes == tally.drafted == sum(stood * count for stood, count in rounds.items())


@dataclass(frozen=True)
class Fickle(Standard):
    """Lets every fourth code fall, whatever the target says, and notes how far it is from the draft."""

    differences: list[float] = field(default_factory=list, compare=False)

    def probability(self, p, q, token, depth):
        self.differences.append(float((p - q).abs().max()))
        return (token % 4 > 0).float()

    def left(self, p, q, token):
        return p


@pytest.mark.parametrize("window", [2, 3, 4])
def test_what_was_made_for_fallen_drafts_is_forgotten_by_both_networks(small_tokenizer, small_var, window, monkeypatch):
    caches, make = [], small_var.new_cache
    monkeypatch.setattr(small_var, "new_cache", lambda *args: caches.append(make(*args)) or caches[-1])
    rule, labels = Fickle(), torch.tensor([3, 7, 1, 9, 2])
    plan = run_with(small_tokenizer, small_var, guidance=1.5)
    decoded = decode(speculative(plan, small_var_network(), NextScale(rule, window)), labels, Noise(range(5)))
    assert max(rule.differences) < 1e-5, "equal networks that know the same draw alike"
    assert len(decoded.speculation.accepted_counts) > 1
    inputs = small_tokenizer.teacher_inputs(decoded.tokens).repeat(2, 1, 1)
    fresh, rows = make(10), torch.cat((labels, torch.full_like(labels, 10)))
    with torch.no_grad():
        small_var.hidden(small_var.condition(Condition(labels=rows)), inputs, scales=range(4), cache=fresh)
    for ours, theirs in zip(caches[0]._keys + caches[0]._values, fresh._keys + fresh._values, strict=True):
        assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_lantern_with_nothing_to_gather_is_the_standard_rule(small_tokenizer, small_var):
    plan, labels = run_with(small_tokenizer, small_var, top_k=40), torch.arange(8)
    proposer = small_var_network(depth=2)
    found = [
        decode(speculative(plan, proposer, NextScale(rule, window=3)), labels, Noise(range(8)))
        for rule in (Standard(), Lantern(20, delta=0.0, raw=True), Lantern(20, delta=0.5, raw=True))
    ]
    assert same_tokens(found[0].tokens, found[1].tokens)
    strict, _, loose = (one.speculation for one in found)
    assert loose.accepted_tokens[0] / loose.judged[0] >= strict.accepted_tokens[0] / strict.judged[0]
    assert not same_tokens(found[0].tokens, found[2].tokens)


@pytest.mark.parametrize(("verified", "drafted"), [(range(4), 2), (range(1, 4), 2), (range(1, 3), None)], ids=str)
def test_some_scales_are_drafted_and_others_drawn_plainly(small_tokenizer, small_var, verified, drafted):
    plain, labels = run_with(small_tokenizer, small_var, guidance=1.0), torch.tensor([3, 7])
    verify = NextScale(window=3, drafted=drafted)
    steps = [replace(step, verify=verify if step.scale in verified else None) for step in plain.plan.steps]
    networks = {"backbone": small_var, "draft": small_var_network()}
    decoded = decode(bind(replace(plain.plan, steps=steps), networks, small_tokenizer), labels, Noise([0, 1]))
    first = verified.start
    assert set(decoded.speculation.judged) == set(range(first, first + (drafted or len(verified) - 1)))
    assert [len(one) for one in decoded.tokens] == [2] * 4
    expected = decode(plain, labels, Noise([0, 1]))
    assert same_tokens(decoded.tokens[:first], expected.tokens[:first])


def test_preserved_tokens_survive_speculation(small_tokenizer, small_var):
    given = decode(run_with(small_tokenizer, small_var), torch.tensor([5]), Noise([9]))
    mask = torch.zeros(16, 16, dtype=torch.bool)[:4, :4]
    mask[:, 2:] = True
    preserved = preserved_outside(mask, given.tokens, small_tokenizer, small_tokenizer.scales)
    run = speculative(run_with(small_tokenizer, small_var), small_var_network(depth=2), NextScale(window=3))
    decoded = decode(run, torch.tensor([3, 7]), Noise([0, 1]), preserved=preserved)
    for found, tokens, kept in zip(decoded.tokens, given.tokens, preserved.mask, strict=True):
        assert torch.equal(found[:, kept[0]], tokens[:, kept[0]].expand(2, -1))
    assert not torch.equal(decoded.tokens[-1], given.tokens[-1].expand(2, -1))


def test_counts_of_batches_add_up(small_tokenizer, small_var):
    plan, labels = run_with(small_tokenizer, small_var), torch.arange(6)
    run = speculative(plan, small_var_network(depth=2), NextScale(window=3))
    whole = decode(run, labels, Noise(range(6))).speculation.as_json()
    parts = [decode(run, labels[at : at + 3], Noise(range(at, at + 3))).speculation for at in (0, 3)]
    assert ScaleTally.total(parts).as_json() == whole
    assert set(whole["token_acceptance_by_scale"]) == {"0", "1", "2"}


def test_the_drafter_has_room_for_the_scales_that_it_reads(small_tokenizer, small_var):
    plan, labels = run_with(small_tokenizer, small_var), torch.tensor([3])
    decoded = decode(speculative(plan, small_var_network(depth=2), NextScale()), labels, Noise([0]))
    assert decoded.cache_bytes == 2 * 4 * (4 * 256 * 30 + 2 * 128 * 14)


def test_a_plan_line_says_who_drafts_how_far_and_by_which_rule(small_tokenizer, small_var):
    plain = run_with(small_tokenizer, small_var)
    run = speculative(plain, small_var_network(depth=2), NextScale(window=3))
    assert str(run).endswith("temperature 1, drafts by VAR 2 x 128, standard acceptance, window 3")
    assert run.unique_networks[1].config.depth == 2


def test_a_window_without_scales_is_refused():
    with pytest.raises(ValueError, match="draft_length is 0"):
        NextScale(window=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_nums": (1, 2)}, "draws the schedule 1,2,"),
        ({"patch_nums": (1, 2, 4)}, "draws the schedule 1,2,4,"),
        ({"vocab_size": 5}, "the proposer has vocab_size 5 and the target 3"),
        ({"num_classes": 7}, "the proposer has num_classes 7 and the target 2"),
        ({"latent_channels": 8}, "the proposer has latent_channels 8 and the target 4"),
    ],
)
def test_a_drafter_for_other_images_is_refused(toy_tokenizer, changes, words):
    sizes = {"num_classes": 2, **TOY, **changes}
    proposer = VAR(VARConfig(depth=2, embed_dim=16, num_heads=2, **sizes))
    with pytest.raises(ValueError, match=words):
        speculative(run_with(toy_tokenizer, toy_var(0)), proposer, NextScale())


def test_what_is_not_one_plain_var_is_refused(small_tokenizer, small_var, small_hmar):
    plan = run_with(small_tokenizer, small_var)
    shorter = rebound(plan, plan.plan.changed(layers=Subnet(2, 2)))
    cases = [
        (plan, small_hmar, "HMAR cannot be its proposer"),
        (plan, tiny_flowar(patch_nums=(1, 2, 3, 4)), "FlowAR cannot be its proposer"),
        (run_with(small_tokenizer, small_hmar), small_var, "HMAR cannot be its target"),
        (run_with(small_tokenizer, small_var, smooth=True), small_var, "smooth"),
        (shorter, small_var, "subnet"),
    ]
    for refused, proposer, words in cases:
        with pytest.raises(ValueError, match=words):
            speculative(refused, proposer, NextScale())
