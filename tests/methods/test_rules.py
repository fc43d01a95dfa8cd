"""Acceptance rules, by enumeration: what comes out of one step, and how relaxed rules bound it."""

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.methods.speculative.decayed import Decayed
from var_toolkit.methods.speculative.grouped import Grouped
from var_toolkit.methods.speculative.judge import Judged
from var_toolkit.methods.speculative.kseq import KSeq, smallest_rho
from var_toolkit.methods.speculative.lantern import Lantern, neighbours
from var_toolkit.methods.speculative.rules import Drafted, Standard, ratio, residual

CODES = 5


def pairs(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Sharp and flat distributions, some with codes that have no mass, float64."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        logits = torch.randn(2, CODES, generator=generator, dtype=torch.float64) * (1 + i % 4)
        if i % 3 == 0:
            logits[0, i % CODES] = -torch.inf
        if i % 5 == 0:
            logits[1, (i + 2) % CODES] = -torch.inf
        p, q = logits.softmax(-1)
        found.append((p, q))
    return found


def table(count: int = 4, seed: int = 1) -> Tensor:
    return neighbours(torch.randn(CODES, 3, generator=torch.Generator().manual_seed(seed)), count)


def emitted(rule, p: Tensor, q: Tensor | None, tokens_NS: Tensor, kind) -> Tensor:
    """What one step gives for each of N drafts, over all uniform numbers, (N, V): chances are where verdicts turn."""
    count, siblings = tokens_NS.shape
    p_NV, q_NV = p.expand(count, -1), None if q is None else q.expand(count, -1)
    drafted = Drafted(tokens_NS, torch.ones_like(tokens_NS, dtype=torch.bool), q_NV, kind, torch.zeros(count))
    uniform_NS = torch.ones(count, siblings, dtype=torch.float64)
    found, reached = torch.zeros_like(p_NV).clone(), torch.ones(count, dtype=torch.float64)
    for s in range(siblings):
        low, high = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
        for _ in range(50):
            uniform_NS[:, s] = middle = (low + high) / 2
            accepted = rule.judge(p_NV, drafted, uniform_NS).choice == s
            low, high = torch.where(accepted, middle, low), torch.where(accepted, high, middle)
        found.scatter_add_(1, tokens_NS[:, s : s + 1], (reached * low).unsqueeze(1))
        reached, uniform_NS[:, s] = reached * (1 - low), 1.0
    return found + reached.unsqueeze(1) * rule.judge(p_NV, drafted, uniform_NS).residual


def all_drafts(count: int) -> Tensor:
    return torch.tensor(list(product(range(CODES), repeat=count)))


def over_drafts(rule, p: Tensor, q: Tensor, count: int, kind) -> Tensor:
    """The same over all drafts that q may give, (V,)."""
    tokens_NS = all_drafts(count)
    weights_N, rest_NV = torch.ones(len(tokens_NS), dtype=torch.float64), q.expand(len(tokens_NS), -1)
    for token_N1 in tokens_NS.split(1, dim=1):
        weights_N = weights_N * rest_NV.gather(1, token_N1).squeeze(1)
        if kind == "distinct":
            rest_NV = rest_NV.scatter(1, token_N1, 0.0)
            rest_NV = (rest_NV / rest_NV.sum(1, keepdim=True)).nan_to_num(0.0)
    possible = weights_N > 0
    return weights_N[possible] @ emitted(rule, p, q, tokens_NS[possible], kind)


@pytest.mark.parametrize(
    ("rule", "kind", "count"),
    [
        (Standard(), "independent", 1),
        (Standard(), "independent", 2),
        (Standard(), "distinct", 2),
        (Standard(), "distinct", 3),
        (KSeq(), "independent", 1),
        (KSeq(), "independent", 2),
        (KSeq(), "independent", 3),
    ],
)
def test_lossless_rules_give_the_target(rule, kind, count):
    for p, q in pairs(12):
        assert (over_drafts(rule, p, q, count, kind) - p).abs().max() < 1e-9


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_list_of_certain_drafts_gives_the_target(count):
    for p, _ in pairs(12):
        assert (emitted(Standard(), p, None, all_drafts(count), "certain") - p).abs().max() < 1e-9


def test_several_drafts_stand_more_often_and_k_seq_oftener_than_one_after_another():
    p, q = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0]), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.3])
    single = torch.minimum(p, q).sum()
    shares = []
    for count in (1, 2, 4, 8):
        rho = smallest_rho(p, q, torch.tensor(count))
        shares.append(1 - (1 - torch.minimum(q, p / rho).sum()) ** count)
    assert shares[0] == pytest.approx(single)
    assert all(more > less + 0.01 for less, more in pairwise(shares))


def test_too_small_a_rho_would_leave_less_than_nothing():
    """Why the root is searched from above."""
    p, q = torch.tensor([0.6, 0.4]), torch.tensor([0.5, 0.5])
    beta = torch.minimum(q, p).sum()
    assert bool((p - torch.minimum(q, p) * (1 - (1 - beta) ** 4) / beta).lt(0).any())
    rho = smallest_rho(p, q, torch.tensor(4))
    taken = torch.minimum(q, p / rho)
    assert bool((p - taken * (1 - (1 - taken.sum()) ** 4) / taken.sum()).ge(-1e-6).all())


@pytest.mark.parametrize(
    "rule",
    [
        Lantern(delta=0.0).over(table()),
        Lantern(factor=1.0).over(table()),
        Grouped(1),
        Decayed(1.0),
        Judged((1.0,), 0.0, 1.0),
    ],
    ids=["delta", "lambda", "group", "boost", "judge"],
)
@pytest.mark.parametrize("kind", ["independent", "distinct", "certain"])
def test_relaxed_rules_at_their_strictest_are_the_standard_one_bit_for_bit(rule, kind):
    generator = torch.Generator().manual_seed(2)
    for p, q in pairs(30):
        p, q = p.float(), q.float()
        tokens = torch.multinomial(q, 2, generator=generator)
        known = None if kind == "certain" else q
        drafted = Drafted(tokens, torch.tensor([True, True]), known, kind, torch.tensor(1), torch.ones(2))
        uniform = torch.rand(2, generator=generator)
        ours, plain = rule.judge(p, drafted, uniform), Standard().judge(p, drafted, uniform)
        assert torch.equal(ours.choice, plain.choice)
        assert torch.equal(ours.residual, plain.residual)


@pytest.mark.parametrize("delta", [0.05, 0.2, 0.6, 1.0])
def test_lantern_moves_at_most_delta_whatever_is_drafted(delta):
    moved, tokens = [], torch.arange(CODES)
    for seed, (p, _) in enumerate(pairs(40)):
        rule = Lantern(delta=delta).over(table(seed=seed))
        relaxed = rule.relaxed(p.expand(CODES, -1), tokens)
        assert relaxed.sum(1).tolist() == pytest.approx([1] * CODES)
        out = emitted(rule, p, None, tokens.unsqueeze(1), "certain")
        assert (out - relaxed).abs().max() < 1e-9  # with a certain draft the relaxed target is what comes out
        moved += ((out - p).abs().sum(1) / 2).tolist()
    assert max(moved) <= delta + 1e-9
    assert max(moved) > delta / 2  # and not because nothing moves


def test_lantern_gathers_whole_neighbours_in_order_up_to_the_bound():
    p = torch.tensor([0.1, 0.3, 0.25, 0.2, 0.15])
    near = torch.tensor([[1, 2, 3, 4]] + [[0, 2, 3, 4]] * 4)
    assert Lantern(delta=0.6).over(near).relaxed(p, torch.tensor(0)).tolist() == pytest.approx([0.65, 0, 0, 0.2, 0.15])
    # Four times its own mass in all; a farther neighbour that would fit is not taken over a nearer one that does not.
    assert Lantern(factor=4.0).over(near).relaxed(p, torch.tensor(0)).tolist() == pytest.approx(
        [0.4, 0, 0.25, 0.2, 0.15]
    )
    assert Lantern(factor=3.9).over(near).relaxed(p, torch.tensor(0)).tolist() == pytest.approx(p.tolist())


def test_lanterns_bound_is_given_the_draft_and_not_over_all_drafts():
    """Each of ten drafts borrows from a code that the target likes: together they never give these."""
    tenth, none = torch.full((10,), 0.1, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
    p, q = torch.cat((none, tenth)), torch.cat((tenth, none))
    rule = Lantern(delta=0.1).over((torch.arange(20).unsqueeze(1) + 10) % 20)
    out = emitted(rule, p, q, torch.arange(10).unsqueeze(1), "independent").mean(0)
    assert float((out - p).abs().sum() / 2) == pytest.approx(1.0)


def standing(rule, p: Tensor, q: Tensor) -> Tensor:
    """The probability of every draft, (V,)."""
    tokens = torch.arange(CODES)
    return rule.probability(p.expand(CODES, -1), q.expand(CODES, -1), tokens, torch.zeros(CODES))


@pytest.mark.parametrize("rule", [Decayed(1.5), Lantern(delta=0.3).over(table()), Lantern(factor=3.0).over(table())])
def test_relaxed_rules_never_let_fewer_drafts_stand(rule):
    more = torch.cat([standing(rule, p, q) - standing(Standard(), p, q) for p, q in pairs(30)])
    assert bool((more > -1e-9).all())
    assert more.max() > 0.1


def test_larger_groups_let_more_drafts_stand_on_the_whole():
    shares = [sum(float(q @ standing(Grouped(size), p, q)) for p, q in pairs(200)) / 200 for size in (1, 2, 3, 5)]
    assert all(more > less + 0.01 for less, more in pairwise(shares))
    assert shares[-1] == pytest.approx(1)


def test_a_judge_accepts_what_it_finds_right_and_leaves_the_rest_to_the_standard_rule():
    p, q = torch.tensor([0.9, 0.1, 0.0]).expand(4, -1), torch.tensor([0.1, 0.6, 0.3]).expand(4, -1)
    tokens, opinion = torch.tensor([[2], [2], [0], [1]]), torch.tensor([[0.7], [0.5], [0.1], [0.4]])
    drafted = Drafted(tokens, torch.ones(4, 1, dtype=torch.bool), q, "independent", torch.zeros(4), opinion)
    found = Judged((1.0,), 0.0, 0.5).judge(p, drafted, torch.full((4, 1), 0.9))
    assert found.choice.tolist() == [0, 1, 0, 1]  # right; not right enough; likely enough; neither
    assert torch.equal(found.residual[1], residual(p[1], q[1], tokens[1, 0]))
    none = drafted._replace(valid=torch.zeros(4, 1, dtype=torch.bool))
    assert Judged((1.0,), 0.0, 0.0).judge(p, none, torch.full((4, 1), 0.9)).choice.tolist() == [1] * 4


def test_a_judge_reads_features_at_unit_scale():
    rule, features = Judged((1.0, -2.0), 0.5), torch.tensor([[3.0, 4.0], [0.03, 0.04]])
    expected = torch.tensor((3 - 8) / 12.5**0.5 + 0.5).sigmoid()
    assert rule.opinion(features).tolist() == pytest.approx([float(expected)] * 2, abs=1e-3)


def test_decay_is_down_to_the_standard_rule_for_late_drafts():
    p, q = pairs(1)[0]
    token = (q - p).argmax()
    early, late = (Decayed(2.0).probability(p, q, token, torch.tensor(depth)) for depth in (0, 9))
    assert early == pytest.approx(min(1, 2 * float(p[token] / q[token])))
    assert late == Standard().probability(p, q, token, torch.tensor(9))


def test_rounding_that_leaves_nothing_falls_back_to_the_target():
    p = torch.tensor([0.5, 0.5, 0.0])
    assert torch.equal(residual(p, p, torch.tensor(0)), p)
    assert ratio(torch.tensor(0.0), torch.tensor(0.0)) == 0


def test_neighbours_are_the_nearest_other_codes_by_direction_or_as_stored():
    codes = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.9, 0.9], [-1.0, 0.0]])
    assert neighbours(codes, 2)[0].tolist() == [2, 3]
    assert neighbours(F.normalize(codes, dim=-1), 2)[0].tolist() == [1, 2]
    with pytest.raises(ValueError, match="neighbours is 4"):
        neighbours(codes, 4)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Lantern(delta=1.5).over(table()), "delta is 1.5"),
        (lambda: Lantern(factor=0.5).over(table()), "lambda is 0.5"),
        (lambda: Lantern(), "give one of them"),
        (lambda: Lantern(5, 0.1, 2.0), "give one of them"),
        (lambda: Grouped(0), "group is 0"),
        (lambda: Decayed(0.9), "boost is 0.9"),
        (lambda: Decayed(2.0, -1.0), "decay is -1.0"),
        (lambda: Judged((1.0,), 0.0, 1.5), "judge_threshold is 1.5"),
    ],
)
def test_parameters_out_of_range_are_refused(made, words):
    with pytest.raises(ValueError, match=words):
        made()
