"""Every lossless proposer, rule and length policy draws what plain decoding draws, alone and in batches."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from methods.toy import SIDE, distance, drawn, request, toy, toy_head, toy_heads, truth
from runs import run_with
from small_llamagen import golden_gpt
from torch.testing import assert_close

from var_toolkit.conditions.condition import of_labels
from var_toolkit.core.bind import bind
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Plan, Tokens, plan_of
from var_toolkit.core.preserved import Preserved
from var_toolkit.heads.categorical import Categorical
from var_toolkit.methods.speculative.drafts import Draft, PerImage, topology
from var_toolkit.methods.speculative.eagle import Eagle
from var_toolkit.methods.speculative.grouped import Grouped
from var_toolkit.methods.speculative.growing import Shape
from var_toolkit.methods.speculative.jacobi import Jacobi
from var_toolkit.methods.speculative.judge import Judged
from var_toolkit.methods.speculative.kseq import KSeq
from var_toolkit.methods.speculative.lengths import Adaptive, Fixed
from var_toolkit.methods.speculative.medusa import Medusa
from var_toolkit.methods.speculative.ngram import NGram
from var_toolkit.methods.speculative.rules import Standard
from var_toolkit.methods.speculative.small_model import EarlyExit, SmallModel
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.verify import Rounds, Speculation, Target, speculate
from var_toolkit.models.medusa_heads import MedusaHeads

HEAD_SETTINGS = Categorical(temperature_first=True)
SAMPLES, MANY = 2000, 100_000
TARGET, SMALL, HEAD = toy(1), toy(2, depth=1), toy_head(3)
MEDUSA, HYDRA = toy_heads(6, MedusaHeads), toy_heads(5)
CHAIN, TREE, CHAINS = Shape((1, 1, 1)), Shape((2, 2, 1)), Shape((3, 1, 1), chains=True)
SAMPLINGS = {
    "guided": TokenSampling(TARGET, HEAD_SETTINGS, 0.7),
    "filtered": TokenSampling(TARGET, replace(HEAD_SETTINGS, top_p=0.8, temperature=1.3), 0.7, 4),
    "plain": TokenSampling(TARGET, HEAD_SETTINGS),
}
PROPOSERS = {
    "jacobi-random": Jacobi(4, "random"),
    "jacobi-repeat": Jacobi(4, "repeat"),
    "jacobi-likeliest": Jacobi(5, "likeliest"),
    "jacobi-keep": Jacobi(6, "repeat", keep=True),
    "jacobi-keep-random": Jacobi(4, "random", keep=True),
    "small": SmallModel(CHAIN),
    "small-unguided": SmallModel(CHAIN, guided=False),
    "small-tree": SmallModel(TREE),
    "exit": EarlyExit(CHAIN, layers=1),
    "ngram": NGram(CHAIN),
    "ngram-tree": NGram(TREE),
    "eagle": Eagle(CHAIN),
    "eagle-tree": Eagle(TREE),
    "medusa": Medusa(CHAIN),
    "medusa-tree": Medusa(TREE),
    "hydra": Medusa(CHAIN, sequential=True),
    "hydra-tree": Medusa(TREE, sequential=True),
    "small-codes": SmallModel(CHAIN, codes=(1,)),
    "eagle-codes-tree": Eagle(TREE, codes=(0,)),
    "hydra-codes": Medusa(CHAIN, sequential=True, codes=(1,)),
}
# What draws level by level with others, each with one length.
WITH_ONE_LENGTH = {
    "medusa": "adaptive",
    "medusa-tree": "fixed",
    "hydra": "fixed",
    "hydra-tree": "confidence",
    "small-codes": "adaptive",
    "eagle-codes-tree": "confidence",
    "hydra-codes": "fixed",
}
CHAINED = {
    "small-chains": SmallModel(CHAINS),
    "eagle-chains": Eagle(CHAINS),
    "hydra-chains": Medusa(CHAINS, sequential=True),
}
LENGTHS = {"fixed": Fixed(4), "confidence": Fixed(4, 0.65), "adaptive": Adaptive(4)}
COMBINATIONS = [
    *(
        (name, "standard", policy)
        for name in PROPOSERS
        for policy in LENGTHS
        if name.startswith(("small", "eagle")) and name not in WITH_ONE_LENGTH
    ),
    *((name, "standard", policy) for name, policy in WITH_ONE_LENGTH.items()),
    *(
        (name, "standard", policy)
        for name in PROPOSERS
        for policy in ("fixed", "adaptive")
        if name.startswith(("j", "n"))
    ),
    ("exit", "standard", "fixed"),
    *((name, "kseq", policy) for name in ("small-chains", "eagle-chains") for policy in LENGTHS),
    ("hydra-chains", "kseq", "fixed"),
]
BY_PROPOSER = [[each for each in COMBINATIONS if each[0] == name] for name in dict.fromkeys(c[0] for c in COMBINATIONS)]
QUICK = [each[number % len(each)] for number, each in enumerate(BY_PROPOSER)]  # the policies in turn
RULES = {"standard": Standard(), "kseq": KSeq()}


def draft_of(proposer):
    """The network that drafts."""
    if isinstance(proposer, Medusa):
        return HYDRA if proposer.sequential else MEDUSA
    return HEAD if isinstance(proposer, Eagle) else SMALL


def plain_tokens(sampling, seeds):
    """What plain decoding draws."""
    guided = None if sampling.guided is None else range(sampling.guided)
    plan = plan_of(sampling.network, guidance=sampling.guidance, head=sampling.head, guided=guided)
    tokenizer = SimpleNamespace(pyramid_of=lambda schedule: NoImages())
    return decode(bind(plan, {"backbone": sampling.network}, tokenizer), request(len(seeds)), Noise(seeds)).tokens[0]


class NoImages:
    """A pyramid of codes that are never looked at."""

    def embed(self, tokens):
        return tokens

    def grow(self, latent, codes, scale):
        return codes


def plainly(stage, samples):
    """Chances of all sequences, and how far plain decoding is from them with as many samples: the mean of a few."""
    chances = truth(stage)
    found = [
        distance(plain_tokens(stage, range(start, start + samples)), chances)
        for start in range(0, 4 * samples, samples)
    ]
    return chances, sum(found) / len(found)


@pytest.fixture(scope="module")
def plain():
    return {name: plainly(stage, SAMPLES) for name, stage in SAMPLINGS.items()}


@pytest.fixture(scope="module")
def plain_many():
    return plainly(SAMPLINGS["guided"], MANY)


def require_same(speculation, stage, plain, samples=SAMPLES):
    draft = draft_of(speculation.proposer)
    chances, noise = plain
    tokens, tally = drawn(speculation, stage, range(samples), draft)
    assert distance(tokens, chances) < 1.5 * noise
    assert tally.decided == 9 * samples
    alone = torch.cat([drawn(speculation, stage, range(seed, seed + 1), draft)[0] for seed in range(3)])
    assert torch.equal(alone, tokens[:3])
    assert torch.equal(drawn(speculation, stage, range(3), draft)[0], tokens[:3])


@pytest.mark.parametrize(
    ("proposer", "rule", "policy"),
    [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow) for each in COMBINATIONS],
)
def test_a_lossless_combination_draws_what_the_target_draws(proposer, rule, policy, plain):
    speculation = Speculation({**PROPOSERS, **CHAINED}[proposer], RULES[rule], LENGTHS[policy])
    require_same(speculation, SAMPLINGS["guided"], plain["guided"])


@pytest.mark.slow
@pytest.mark.parametrize(("proposer", "rule", "policy"), COMBINATIONS)
def test_so_it_does_with_many_samples(proposer, rule, policy, plain_many):
    speculation = Speculation({**PROPOSERS, **CHAINED}[proposer], RULES[rule], LENGTHS[policy])
    require_same(speculation, SAMPLINGS["guided"], plain_many, MANY)


@pytest.mark.parametrize(
    ("proposer", "stage"),
    [
        ("jacobi-keep", "filtered"),
        ("small-tree", "filtered"),
        ("eagle", "filtered"),
        ("medusa", "filtered"),
        ("hydra", "filtered"),
        ("hydra-codes", "filtered"),
        ("jacobi-repeat", "plain"),
        ("ngram", "plain"),
        ("eagle", "plain"),
        ("hydra-tree", "plain"),
    ],
)
def test_so_it_does_with_filters_and_without_guidance(proposer, stage, plain):
    require_same(Speculation(PROPOSERS[proposer], Standard(), Fixed(4)), SAMPLINGS[stage], plain[stage])


def test_the_measure_sees_a_rule_that_is_not_exact(plain):
    class Gullible(Standard):
        def probability(self, p, q, token, depth):
            return super().probability(p, q, token, depth).clamp(min=0.7)

    chances, noise = plain["guided"]
    speculation = Speculation(PROPOSERS["small"], Gullible(), Fixed(4))
    tokens, _ = drawn(speculation, SAMPLINGS["guided"], range(SAMPLES), SMALL)
    assert distance(tokens, chances) > 2 * noise


@pytest.mark.parametrize(
    "proposer", [Jacobi(1), SmallModel(Shape(())), NGram(Shape(())), Eagle(Shape(())), Medusa(Shape(()))]
)
def test_window_1_is_plain_decoding(proposer):
    stage = SAMPLINGS["filtered"]
    tokens, tally = drawn(Speculation(proposer, Standard(), Fixed(1)), stage, range(50), draft_of(proposer))
    assert torch.equal(tokens, plain_tokens(stage, range(50)))
    assert tally.as_json()["tokens_per_pass"] == 1


def test_all_drafts_of_an_equal_model_stand():
    speculation = Speculation(SmallModel(CHAIN), Standard(), Fixed(4))
    _, tally = drawn(speculation, SAMPLINGS["guided"], range(200), TARGET)
    assert tally.accepted == tally.drafted == 6 * 200  # windows of 4 and 4 tokens behind the first
    assert tally.target_passes == 3 * 200


def test_sure_drafts_save_passes_and_the_numbers_agree():
    _, tally = drawn(Speculation(Jacobi(6, keep=True), Standard(), Fixed(6)), SAMPLINGS["guided"], range(200))
    told = tally.as_json()
    assert tally.target_passes == sum(tally.accepted_counts.values()) + 200  # and the first pass of each
    assert tally.decided == tally.target_passes + tally.accepted
    assert 1 < told["tokens_per_pass"] < 6
    assert told["passes_per_image"] == pytest.approx(9 / told["tokens_per_pass"], rel=1e-2)
    assert [sum(pace) for pace in tally.paces] == [9] * 200
    assert sum(map(len, tally.paces)) == tally.target_passes


def test_drafts_that_do_not_pay_are_given_up():
    """A proposer as large as the target that guesses badly."""
    speculation = Speculation(SmallModel(Shape((1,))), Standard(), Fixed(2))
    _, tally = drawn(speculation, SAMPLINGS["guided"], range(50), toy(9, depth=2))
    assert tally.fall_backs == 0  # too few rounds to tell
    target, other = golden_gpt(), golden_gpt()
    with torch.no_grad():
        other.output.weight.copy_(other.output.weight.roll(7, 0))
    found = []
    for proposer in (SmallModel(CHAIN), NGram(CHAIN)):
        asked = of_labels(torch.arange(6) % 10, 10)
        rounds = Rounds(TokenSampling(target, HEAD_SETTINGS), asked, Noise(range(6)), networks={"draft": other})
        found.append(speculate(rounds, Speculation(proposer, Standard(), Fixed(4)), Standard()).fall_backs)
    assert found[0] > 0
    assert found[1] == 0


@pytest.mark.parametrize("shape", [Shape((1,) * 7), Shape((1, 2, 4)), Shape((3, 1, 1), chains=True)])
@pytest.mark.parametrize("confidence", [0.0, 0.55])
def test_neighbours_in_a_batch_change_nothing_where_images_draft_differently_far(shape, confidence, monkeypatch):
    """Some give up drafting and others do not, in a map long enough to tell."""
    target, small = toy(1, side=8), toy(2, depth=1, side=8)
    monkeypatch.setattr(SmallModel, "cost", lambda self, target, networks: 0.22)
    rule = KSeq() if shape.chains else Standard()
    speculation = Speculation(SmallModel(shape), rule, Adaptive(1 + len(shape.widths), confidence))
    stage = TokenSampling(target, HEAD_SETTINGS, 0.7)
    together, tally = drawn(speculation, stage, range(6, 12), small)
    alone = [drawn(speculation, stage, range(seed, seed + 1), small) for seed in range(6, 12)]
    assert torch.equal(torch.cat([tokens for tokens, _ in alone]), together)
    assert sum(one.fall_backs for _, one in alone) == tally.fall_backs
    assert sum(one.draft_passes for _, one in alone) == tally.draft_passes
    assert 0 < tally.fall_backs < 6 or confidence or max(shape.widths) > 1


def test_a_rule_refuses_drafts_that_it_cannot_judge():
    with pytest.raises(ValueError, match="K-SEQ acceptance judges independent drafts; these are certain"):
        drawn(Speculation(NGram(CHAIN), KSeq(), Fixed(4)), SAMPLINGS["plain"], range(2))


@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 2, 1)])
def test_the_cache_after_a_rollback_is_a_fresh_prefill(widths):
    """Rows that have decided different numbers of tokens, through several rounds of drafts, some of them accepted."""
    network = golden_gpt()
    asked = of_labels(torch.tensor([1, 2, 3]), 10)
    tree = topology(widths)
    run = Rounds(TokenSampling(network, HEAD_SETTINGS, 1.0), asked, Noise(range(3)))
    target = Target(run, tree.nodes - 1)
    with torch.inference_mode():
        drafts = [None]
        for number in range(1, 4):
            tokens = torch.randint(0, 64, (3, tree.nodes - 1), generator=torch.Generator().manual_seed(number))
            drafts.append(Draft(tokens, tree, PerImage.of([3, 2, 3]), None, "certain"))
        for run.round, draft in enumerate(drafts):
            run.read(target.check(draft, Hopeful()), torch.zeros(3, 0, dtype=torch.int64))
            target.rewind()
        assert len(set(run.counts)) > 1
        fresh, prefix = network.new_ragged_cache(6, 40), network.condition(asked.rows(network, 2)).tokens
        network.next_hidden(prefix, run.tokens_BL[:, : max(run.counts) - 1].repeat(2, 1), cache=fresh)
        assert target.cache.lengths_R.tolist() == run.counts * 2
        for row, length in enumerate(run.counts * 2):
            for kept, expected in zip(
                target.cache._keys + target.cache._values, fresh._keys + fresh._values, strict=True
            ):
                assert_close(kept[row, :, :length], expected[row, :, :length], atol=2e-5, rtol=0)


JUDGE = Judged(tuple(torch.randn(16, generator=torch.Generator().manual_seed(7)).tolist()), 0.1)


@pytest.mark.parametrize("proposer", ["jacobi-keep", "small-tree", "hydra", "ngram"])
def test_a_judge_that_accepts_nothing_or_all_is_the_standard_rule_or_none(proposer):
    def found(rule):
        speculation = Speculation(PROPOSERS[proposer], rule, Fixed(4))
        return drawn(speculation, SAMPLINGS["guided"], range(40), draft_of(PROPOSERS[proposer]))

    standard = found(Standard())
    assert torch.equal(found(replace(JUDGE, threshold=1.0))[0], standard[0])
    some, every = (found(replace(JUDGE, threshold=threshold))[1] for threshold in (0.5, 0.0))
    assert standard[1].target_passes > some.target_passes > every.target_passes
    if proposer != "small-tree" and proposer != "ngram":  # chains whose drafts all count
        assert every.accepted == every.drafted


@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 2, 1)], ids=str)
def test_a_judge_reads_the_conditional_features_at_the_draft_itself(widths):
    """After what was decided, and the drafts that lead to it."""
    tree, seen = topology(widths), []

    class Watching(Standard):
        def opinion(self, features):
            seen.append(features)

    run = Rounds(SAMPLINGS["guided"], request(3), Noise(range(3)))
    target = Target(run, tree.nodes - 1)
    tokens = torch.randint(0, 2, (3, tree.nodes - 1), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for run.round, draft in enumerate([None, Draft(tokens, tree, PerImage.of([3] * 3), None, "certain")]):
            first = run.tokens_BL[:, :1].clone()
            run.read(target.check(draft, Watching()), torch.zeros(3, 0, dtype=torch.int64))
            target.rewind()
        prefix = TARGET.condition(request(3).rows(TARGET, 1)).tokens
        for node in range(1, tree.nodes):
            path = [node]
            while tree.parents[path[0] - 1]:
                path.insert(0, tree.parents[path[0] - 1])
            read = torch.cat((first, tokens[:, [one - 1 for one in path]]), dim=1)
            assert_close(seen[0][:, node - 1], TARGET.next_hidden(prefix, read)[:, -1], atol=1e-5, rtol=0)


def test_a_judge_of_another_width_is_refused():
    whole = plan_of(TARGET, verify=Speculation(Jacobi(4), Judged((1.0, 2.0), 0.0), Fixed(4)))
    with pytest.raises(ValueError, match="the judge reads 2 features, but the target has 16"):
        bind(whole, {"backbone": TARGET}, SimpleNamespace(pyramid_of=lambda schedule: None))


class Hopeful(Standard):
    """Half of the drafts are accepted."""

    def probability(self, p, q, token, depth):
        return torch.full_like(p[..., 0], 0.5)


def test_a_tree_lists_nodes_level_by_level():
    tree = topology((2, 1, 3))
    assert tree.levels == [range(1), range(1, 3), range(3, 5), range(5, 11)]
    assert tree.parents == [0, 0, 1, 2, 3, 3, 3, 4, 4, 4]
    tables = tree.on(torch.device("cpu"))
    assert tables.depths.tolist() == [0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3]
    assert tables.children.tolist() == [[0, 1, -1], [2, -1, -1], [3, -1, -1], [4, 5, 6], [7, 8, 9]]
    assert tables.sees[8].nonzero().flatten().tolist() == [0, 2, 4, 8]


def test_the_tables_of_a_chain_are_those_of_a_tree():
    chain, tree = topology((1, 1, 1)).on(torch.device("cpu")), topology((1, 1, 1, 2)).on(torch.device("cpu"))
    assert torch.equal(chain.depths, tree.depths[:4])
    assert torch.equal(chain.children, tree.children[:3, :1])
    assert torch.equal(chain.sees, tree.sees[:4, :4])


def test_chains_that_agree_so_far_count_for_each_other():
    tokens = torch.tensor([[5, 5, 7, 1, 2, 3]])  # three chains of two: 5 1, 5 2, 7 3
    drafted = Draft(tokens, topology((3, 1), True), PerImage.of([2]), None, "independent").drafted()
    assert drafted.tokens.tolist() == [[[5, 5, 7], [1, 2, 3], [1, 2, 3], [1, 2, 3]]]
    assert drafted.valid.int().tolist() == [[[1, 1, 1], [1, 1, 0], [1, 1, 0], [0, 0, 1]]]


@pytest.mark.parametrize(
    ("widths", "chains", "words"), [((0,), False, r"widths \[0\]"), ((2, 2), True, r"widths are \[2, 2\]")]
)
def test_trees_that_cannot_be_are_refused(widths, chains, words):
    with pytest.raises(ValueError, match=words):
        topology(widths, chains)


def test_a_network_of_whole_maps_cannot_speculate_token_by_token(small_var, small_tokenizer):
    with pytest.raises(ValueError, match="VAR draws whole maps at once; this speculation is for next-token models"):
        run_with(small_tokenizer, small_var, verify=Speculation(Jacobi(8), Standard(), Fixed(8)))


@pytest.mark.parametrize("proposer", ["jacobi-keep", "small-tree", "ngram", "exit", "hydra"])
def test_verification_starts_behind_and_ends_before_plain_steps(proposer):
    """Tokens 0 and 1 plain, 2 to 6 verified, 7 and 8 plain; with window 1 the tokens are those of plain decoding."""
    network, tokenizer = TARGET, SimpleNamespace(pyramid_of=lambda schedule: NoImages())
    whole = plan_of(network, guidance=0.7)
    step = whole.steps[0]

    def drawn_by(verify, count):
        parts = (Tokens(0, 2), None), (Tokens(2, 5), verify), (Tokens(7, 2), None)
        plan = Plan(whole.schedule, [replace(step, places=places, verify=one) for places, one in parts])
        run = bind(plan, {"backbone": network, "draft": draft_of(chosen)}, tokenizer)
        return decode(run, request(count), Noise(range(count)))

    chosen = PROPOSERS[proposer]
    first = replace(chosen, window=1) if isinstance(chosen, Jacobi) else replace(chosen, shape=Shape(()))
    plain = plain_tokens(SAMPLINGS["guided"], range(20))
    assert torch.equal(drawn_by(Speculation(first, Standard(), Fixed(1)), 20).tokens[0], plain)
    found = drawn_by(Speculation(chosen, Standard(), Fixed(4)), SAMPLES)
    assert found.speculation.decided == 5 * SAMPLES
    assert torch.equal(found.tokens[0][:20, :2], plain[:, :2])
    chances, noise = plainly(SAMPLINGS["guided"], SAMPLES)
    assert distance(found.tokens[0], chances) < 1.5 * noise


def test_eagle_cannot_start_behind_other_steps():
    whole = plan_of(TARGET)
    verify = Speculation(Eagle(CHAIN), Standard(), Fixed(4))
    steps = [replace(whole.steps[0], places=Tokens(0, 2)), replace(whole.steps[0], places=Tokens(2, 7), verify=verify)]
    tokenizer = SimpleNamespace(pyramid_of=lambda schedule: None)
    with pytest.raises(ValueError, match="Eagle drafts from the first token on"):
        bind(Plan(whole.schedule, steps), {"backbone": TARGET, "draft": HEAD}, tokenizer)


@pytest.mark.parametrize("rule", [Standard(), Grouped(2)], ids=["standard", "grouped"])
@pytest.mark.parametrize("proposer", ["jacobi-keep", "small-tree", "ngram", "eagle", "hydra"])
def test_preserved_tokens_survive_any_rule_and_the_others_follow_them(proposer, rule):
    mask = torch.zeros(1, SIDE**2, dtype=torch.bool)
    mask[0, [1, 4]] = True
    given = torch.ones(1, SIDE**2, dtype=torch.int64)
    preserved, count = Preserved([given], [mask], []), 500
    chosen = PROPOSERS[proposer]
    rounds = Rounds(
        SAMPLINGS["guided"],
        request(count),
        Noise(range(count)),
        networks={"draft": draft_of(chosen)},
        preserved=preserved,
    )
    speculate(rounds, Speculation(chosen, rule, Fixed(4)), rule)
    assert (rounds.tokens_BL[:, [1, 4]] == 1).all()
    assert set(rounds.tokens_BL[:, 0].tolist()) == {0, 1}
    # Token 0 is drawn before anything is preserved, so it is that of plain decoding.
    assert torch.equal(rounds.tokens_BL[:, 0], plain_tokens(SAMPLINGS["guided"], range(count))[:, 0])
