"""The bits head: independent bits from noise of their own, the top-p rule, and the published loss."""

import pytest
import torch
from golden.cases import load_case
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Plan, Scale, Step
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.bits import Bits, bit_losses
from var_toolkit.heads.head import Setting


class Given:
    """A network whose features are its logits."""

    def logits(self, condition, hidden):
        return hidden


def setting(rows=1, guidance=0.0, first=0, count=1, seeds=(0,)) -> Setting:
    note = lambda *told: None  # noqa: E731
    return Setting(Given(), None, 0, first, count, 0.0, guidance, rows == 2, None, Noise(seeds), note)


def logits_of(odds) -> torch.Tensor:
    """Two logits a bit whose difference is given."""
    odds = torch.as_tensor(odds, dtype=torch.float32)
    return torch.stack((-odds / 2, odds / 2), dim=-1).flatten(-2)


def test_bits_are_drawn_as_often_as_their_probability_says_and_independently():
    odds = torch.tensor([-2.0, 0.0, 1.0])
    count = 20_000
    drawn = Bits().draw(logits_of(odds).expand(1, count, -1), setting(count=count)).tokens[0].float()
    assert drawn.shape == (count, 3)
    assert_close(drawn.mean(0), odds.sigmoid(), atol=0.015, rtol=0)
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.03


def test_bits_of_an_image_depend_on_its_seed_and_place_alone():
    logits = logits_of(torch.zeros(2, 6, 4))
    both = Bits().draw(logits, setting(count=6, seeds=(5, 9))).tokens
    alone = Bits().draw(logits[1:, 2:], setting(first=2, count=4, seeds=(9,))).tokens
    assert torch.equal(both[1:, 2:], alone)
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    ("head", "odds", "expected"),
    [
        (Bits(top_k=1), [-0.1, 0.1, 0.0], [0.0, 1.0, 0.0]),
        (Bits(top_p=0.9), [-2.0, -2.3, 2.3, 40.0], [0.1192, 0.0, 1.0, 1.0]),
        (Bits(top_p=1.0), [-200.0, 200.0, 1.0], [0.0, 1.0, 0.7311]),
        (Bits(), [-30.0, 0.0], [9.4e-14, 0.5]),
    ],
    ids=["greedy", "top-p", "top-p-1", "plain"],
)
def test_probabilities_are_filtered_per_bit(head, odds, expected):
    found = head.probabilities(logits_of([[odds]]))
    assert_close(found, torch.tensor([[expected]]), atol=1e-4, rtol=0)


def test_guidance_acts_on_logits_that_the_temperature_divided():
    rows = logits_of(torch.tensor([[[1.0, -1.0]], [[0.5, 2.0]]]))
    found = Bits(temperature=0.5).choices(rows, setting(rows=2, guidance=3.0))
    assert_close(found, 2 * (4 * rows[:1] - 3 * rows[1:]))
    assert_close(Bits(temperature=0.5).choices(rows, setting(rows=2)), 2 * rows[:1])


def test_the_loss_is_the_published_one():
    case = load_case("infinity-self-correction")
    losses = bit_losses(case.tensors["logits"], case.tensors["labels"])
    assert_close(float(losses.mean()), case.facts["losses"]["plain"], rtol=1e-6, atol=0)
    pairs = case.tensors["logits"].unflatten(-1, (-1, 2)).flatten(0, 2)
    assert_close(losses.mean(), F.cross_entropy(pairs, case.tensors["labels"].flatten().long()))


def test_a_plan_with_bits_is_written_and_read():
    plan = Plan(Schedule((1,)), (Step(Scale(0), guidance=3.0, head=Bits(top_p=0.97, temperature=0.5)),))
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("setting", [{"top_p": 1.5}, {"temperature": 0.0}, {"top_k": -1}], ids=str)
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Bits(**setting)
