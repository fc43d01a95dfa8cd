"""E-CAR: the states between scales have white noise of the right level, and training sees what sampling does."""

import pytest
import torch
from small_flowar import tiny_ecar
from small_mar import tokenizer_of
from torch.testing import assert_close

from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.flow import Flow
from var_toolkit.models.ecar import ECARConfig, end_level, enlarged, renoised, start_level
from var_toolkit.tokenizers.latent_pyramid import sequence

SCHEDULES = [Schedule((1, 2, 4)), Schedule((2, 6)), Schedule((1, 2, 4, 8, 16))]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_noise_is_white_again_after_it_is_enlarged(schedule):
    torch.manual_seed(0)
    for scale in range(1, len(schedule)):
        before, side = schedule.patch_nums[scale - 1], schedule.patch_nums[scale]
        level, start = end_level(scale - 1, len(schedule)), start_level(scale, schedule)
        data = torch.randn(1, 1, before, before)
        noise = torch.randn(20_000, 1, before, before)
        state = renoised((1 - level) * data + level * noise, torch.randn(20_000, 1, side, side), scale, schedule)
        rest = (state - (1 - start) * enlarged(data, side // before))[:, 0, : side // before, : side // before]
        assert_close(rest.flatten(1).T.cov(), start**2 * torch.eye(rest[0].numel()), atol=0.05, rtol=0)


def test_levels_go_from_noise_to_data():
    schedule = SCHEDULES[0]
    assert [start_level(k, schedule) for k in range(3)] == pytest.approx([1, 0.8, 0.5])
    assert [end_level(k, 3) for k in range(3)] == pytest.approx([2 / 3, 1 / 3, 0])


def test_each_scale_begins_where_the_one_before_ended(monkeypatch):
    network, begun = tiny_ecar(), []
    made = network.field_of

    def watched(hidden, at):
        begun.append((made(hidden, at), at.latent))
        return begun[-1][0]

    monkeypatch.setattr(network, "field_of", watched)
    run = run_of(tokenizer_of(network), network, guidance=1.0, head=Flow("euler", 2, (0.0, 1.0)))
    decoded = decode(run, torch.tensor([1, 2]), Noise([3, 4]))
    assert begun[0][1] is None
    for tokens, (field, latent) in zip(decoded.tokens, begun[1:], strict=False):
        assert torch.equal(sequence(latent), tokens)
        assert field.start(torch.zeros(2, latent[0, 0].numel() * 4, 4)).shape == (2, latent[0, 0].numel() * 4, 4)
    again = decode(run, torch.tensor([2]), Noise([4])).latent
    assert_close(again, decoded.latent[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda network: ECARConfig(patch_nums=(1, 2, 3)), "each side must be a multiple"),
        (lambda network: network.head_at(Flow("sde"), network.scales, 0), "solver is 'sde'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make(tiny_ecar())
