"""Fixed-point iteration draws the tokens of plain decoding, whatever lengths a clock makes it choose."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from methods.test_speculative_engine import SAMPLINGS, NoImages, plain_tokens
from methods.toy import SIDE, request, toy

from var_toolkit.core.bind import bind
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Plan, Tokens, plan_of
from var_toolkit.core.preserved import Preserved
from var_toolkit.methods.speculative import as_plain
from var_toolkit.methods.speculative.as_plain import PROBES, RECENT, AsPlain, Pace, iterate
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.verify import Rounds

IMAGES = 40
# Seconds of a pass by its tokens.
CLOCKS = {
    "passes cost the same": lambda length: 1.0,
    "tokens cost most": lambda length: float(length) ** 2,
    "four are best": lambda length: 1.0 if length <= 4 else 100.0,
}


class Clock:
    """Advances by what the passes cost."""

    def __init__(self, cost):
        self.now, self.cost = 0.0, cost

    def __call__(self):
        return self.now


@pytest.fixture
def timed(monkeypatch):
    """Makes the passes of a run cost what a clock says."""

    def time(cost):
        clock, computed = Clock(cost), as_plain._computed
        monkeypatch.setattr(as_plain, "_clock", lambda device: clock)

        def passing(run, target, draft):
            clock.now += cost(1 if draft is None else 1 + draft.tokens.shape[1])
            return computed(run, target, draft)

        monkeypatch.setattr(as_plain, "_computed", passing)

    return time


def iterated(sampling, images, pace, **given):
    rounds = Rounds(sampling, request(images), Noise(range(images)), **given)
    return rounds.tokens_BL, iterate(rounds, pace)


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_tokens_are_those_of_plain_decoding_whatever_the_clock_says(sampling, clock, timed):
    expected, pace = plain_tokens(SAMPLINGS[sampling], range(IMAGES)), Pace(8, 1000)
    timed(CLOCKS[clock])
    for _ in range(3):  # what is measured in one batch serves the next
        found, tally = iterated(SAMPLINGS[sampling], IMAGES, pace)
        assert torch.equal(found, expected)
        assert tally.decided == 9 * IMAGES
        assert [sum(one) for one in tally.paces] == [9] * IMAGES
        assert tally.forward_passes <= 9


def test_a_length_that_costs_too_much_ends_in_plain_decoding_of_the_same_tokens(timed):
    """In a map long enough to lose something, whose images have come differently far."""
    sampling = TokenSampling(toy(1, side=8), SAMPLINGS["guided"].head, 0.7)
    expected = plain_tokens(sampling, range(6))
    timed(lambda length: float(length))
    pace = Pace(8, 64)
    found, tally = iterated(sampling, 6, pace)
    assert torch.equal(found, expected)
    assert pace.given_up
    assert tally.fall_backs == 6
    assert [sum(one) for one in tally.paces] == [64] * 6


def test_the_length_of_most_tokens_a_second_is_chosen():
    pace = Pace(8, 1000)
    assert pace.lengths == [1, 2, 4, 8]
    for length, (seconds, gain) in {1: (1.0, 1), 2: (1.1, 2), 4: (1.2, 3), 8: (2.0, 4)}.items():
        for _ in range(PROBES):
            assert pace.next() == length
            pace.enter(length, seconds, [gain], gain)
    for _ in range(RECENT):
        pace.enter(4, 1.2, [3], 3)
    assert pace.next() == 4
    for _ in range(RECENT):
        pace.enter(4, 1.2, [1], 1)
    assert pace.next() != 4
    assert not pace.given_up


def test_what_is_lost_is_limited_and_a_gain_before_makes_up_for_some_of_it():
    pace = Pace(2, 100)
    for seconds, length, gain in [(1.0, 1, 1)] * PROBES + [(1.5, 2, 2)] * 50:
        pace.enter(length, seconds, [gain], gain)
    assert pace.lost == -10
    passes = 0
    while not pace.given_up:
        pace.enter(2, 1.5, [1, 2], 1)  # of which the slower image counts
        passes += 1
    assert passes == 25  # of half a pass each, from a tenth to more than 2 % of 100
    pace.begin()
    assert not pace.given_up
    assert pace.allowed == 1
    assert Pace(1, 100).given_up


def test_preserved_tokens_are_given():
    mask = torch.zeros(1, SIDE**2, dtype=torch.bool)
    mask[0, [1, 4]] = True
    preserved = Preserved([torch.ones(1, SIDE**2, dtype=torch.int64)], [mask], [])
    expected, _ = iterated(SAMPLINGS["guided"], IMAGES, Pace(1, 9), preserved=preserved)
    found, tally = iterated(SAMPLINGS["guided"], IMAGES, Pace(4, 1000), preserved=preserved)
    assert (found[:, [1, 4]] == 1).all()
    assert torch.equal(found, expected)
    assert tally.accepted > 0


def test_plain_steps_may_precede_and_follow():
    whole = plan_of(toy(1), guidance=0.7)
    tokenizer = SimpleNamespace(pyramid_of=lambda schedule: NoImages())

    def drawn_by(*parts):
        steps = [replace(whole.steps[0], places=places, verify=verify) for places, verify in parts]
        run = bind(Plan(whole.schedule, steps), {"backbone": toy(1)}, tokenizer)
        return decode(run, request(20), Noise(range(20))).tokens[0]

    expected = drawn_by((Tokens(0, 9), None))
    assert torch.equal(drawn_by((Tokens(0, 2), None), (Tokens(2, 5), AsPlain(4)), (Tokens(7, 2), None)), expected)
    assert torch.equal(drawn_by((Tokens(0, 9), AsPlain(1))), expected)
