"""xAR: the cached pass is the training pass with clean context, the stochastic solver, and what a cell depends on."""

from dataclasses import replace

import pytest
import torch
from golden.recipe import fill_
from small_mar import tiny_xar_config, tokenizer_of
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import plan_of
from var_toolkit.core.sketch import Sketch
from var_toolkit.heads.flow import Flow
from var_toolkit.models.xar import XAR, CellField, XARConfig


@pytest.fixture(scope="module")
def network():
    made = XAR(tiny_xar_config())
    fill_(made.state_dict(), "xar")
    return made.eval()


def test_the_cached_pass_is_the_training_pass_with_clean_context(network):
    clean, noisy = torch.randn(2, 2, 16, 4)
    order, size, labels = network.block_order(torch.device("cpu")), network.block_tokens, torch.tensor([1, 3])
    by_position = torch.zeros_like(clean).index_copy(1, order, clean)
    condition, cache = network.condition(Given(labels=labels)), network.new_cache(2)
    for cell in range(4):
        first = cell * size
        with torch.no_grad():
            times = torch.zeros(2, 4)
            times[:, cell] = 0.3
            packed = torch.cat((clean[:, :first], noisy[:, first : first + size], clean[:, first + size :]), dim=1)
            expected = network(labels, packed, times)[:, first : first + size]
            sketch = Sketch(order.expand(2, -1), by_position, first)
            hidden = network.group_hidden(condition, sketch, first + size, scale=0, cache=cache)
            rotation = network.rotation(order.device).of(slice(first, first + size))
            field = CellField(network, hidden, rotation, cache.of(2))
            assert_close(field(noisy[:, first : first + size], 0.3), expected, atol=1e-5, rtol=1e-5)
            own = field.rows(1)(noisy[:1, first : first + size], 0.3)
        assert_close(own, expected[:1], atol=1e-5, rtol=1e-5)


def test_guidance_grows_from_nothing_at_the_first_cell(network):
    plan = plan_of(network, guidance=1.5)
    assert [step.guidance for step in plan.steps] == pytest.approx([0, 0.5, 1.0, 1.5])
    assert {step.head.solver for step in plan.steps} == {"sde"}


def test_a_cell_does_not_depend_on_the_noise_of_later_ones(network):
    class Changed(Noise):
        def normal_at(self, stream, positions_BL, width, *, attempt=0):
            found = super().normal_at(stream, positions_BL, width, attempt=attempt)
            return found + (positions_BL == 15).any() * 1.0  # 15 is of the last cell

    run = run_of(tokenizer_of(network), network, guidance=1.0, head=Flow("sde", 3, (0.0, 1.0)))
    order = network.block_order(torch.device("cpu"))
    first, second = (decode(run, torch.tensor([1]), noise([3])).tokens[0][:, order] for noise in (Noise, Changed))
    assert torch.equal(first[:, :-4], second[:, :-4])
    assert not torch.equal(first[:, -4:], second[:, -4:])


def test_images_do_not_depend_on_their_batch(network):
    run = run_of(tokenizer_of(network), network, guidance=1.0, head=Flow("sde", 3, (0.0, 1.0)))
    both = decode(run, torch.tensor([1, 4]), Noise([3, 8])).latent
    assert_close(decode(run, torch.tensor([4]), Noise([8])).latent, both[1:], atol=1e-5, rtol=1e-5)


def test_the_stochastic_solver_reaches_the_data_and_has_the_right_spread():
    """Of a normal distribution, whose velocity is known, at any time."""
    mean, spread = 0.7, 0.3

    def velocity(x, time):
        variance = (1 - time) ** 2 * spread**2 + time**2
        gap = (x - (1 - time) * mean) / variance
        return time * gap - (mean + (1 - time) * spread**2 * gap)  # noise less data, given x

    torch.manual_seed(0)
    noise, added = torch.randn(20_000), torch.randn(199, 20_000)
    found = Flow("sde", 200).walk(velocity, noise, tuple(added))
    assert float(found.mean()) == pytest.approx(mean, abs=0.02)
    assert float(found.std()) == pytest.approx(spread, abs=0.02)
    assert Flow("sde", 50).times()[0] == 1
    assert Flow("sde", 50).times()[-2:] == pytest.approx([0.04, 0])
    assert Flow("sde", 50).evaluations() == 50


def test_published_sizes_have_their_parameters():
    with torch.device("meta"):
        network = XAR(XARConfig(embed_dim=1280, depth=40))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.18e9, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_side": 3}, "side is 4; it must be a multiple"),
        ({"embed_dim": 65}, "multiple of 64"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(tiny_xar_config(), **changes)
