"""The noise of an image belongs to the image alone, and is good noise."""

import numpy as np
import pytest
import torch
from scipy import stats

from var_toolkit.core.noise import Noise, RoundNoise, RunNoise, Stream, philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    words = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert [int(word) for word in words] == expected


def test_an_image_has_the_same_noise_alone_and_in_any_batch():
    batch = Noise([3, 9, 2**62, 0]).gumbel(Stream.TOKEN, 5, 7, 11)
    assert torch.equal(batch[2:3], Noise([2**62]).gumbel(Stream.TOKEN, 5, 7, 11))


def test_noise_belongs_to_the_position_not_to_the_order_of_calls():
    noise = Noise([1])
    assert torch.equal(
        noise.gumbel(Stream.TOKEN, 0, 10, 6), torch.cat([noise.gumbel(Stream.TOKEN, i, 1, 6) for i in range(10)], dim=1)
    )


def test_seeds_streams_and_positions_are_independent():
    a = Noise([1]).gumbel(Stream.TOKEN, 0, 100, 100).flatten()
    for other in (
        Noise([2]).gumbel(Stream.TOKEN, 0, 100, 100),
        Noise([1 + 2**32]).gumbel(Stream.TOKEN, 0, 100, 100),
        Noise([1]).gumbel(Stream.SMOOTH, 0, 100, 100),
        Noise([1]).gumbel(Stream.TOKEN, 100, 100, 100),
    ):
        assert abs(np.corrcoef(a, other.flatten())[0, 1]) < 0.04


def test_gumbel_noise_has_the_gumbel_distribution_and_is_finite():
    sample = Noise([5]).gumbel(Stream.TOKEN, 0, 500, 1000).flatten().numpy()
    assert np.isfinite(sample).all()
    assert stats.kstest(sample[::5], "gumbel_r").pvalue > 1e-3


def test_uniform_noise_is_uniform_and_keeps_off_both_ends():
    sample = Noise([5, 6]).uniform(Stream.TOKEN, 0, 100_000)
    assert sample.shape == (2, 100_000)
    assert sample.min() > 0
    assert sample.max() < 1
    assert stats.kstest(sample[0].numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(sample[:, 40:50], Noise([5, 6]).uniform(Stream.TOKEN, 40, 10))


def test_normal_noise_has_the_normal_distribution():
    sample = Noise([5]).normal(Stream.FLOW, 0, 100_000, 16).double()
    assert sample.shape == (1, 100_000, 16)
    assert abs(sample.mean()) < 0.004
    assert sample.var().item() == pytest.approx(1, abs=0.005)
    assert (sample**4).mean().item() == pytest.approx(3, abs=0.03)
    assert stats.kstest(sample[:, ::100].flatten().numpy(), "norm").pvalue > 1e-3
    assert sample.var(dim=(0, 1)).numpy() == pytest.approx(1, abs=0.03)  # in every channel


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**32 - 1])
def test_normal_noise_is_finite_whatever_the_words_and_its_tail_reaches_beyond_six(word, monkeypatch):
    monkeypatch.setattr(Noise, "words", lambda *args: torch.tensor([[[word, 0]]]))
    sample = Noise([0]).normal(Stream.FLOW, 0, 1, 2)
    assert sample.isfinite().all()
    assert sample.abs().amax() > 6 or word > 1


def test_normal_noise_belongs_to_the_image_and_the_position():
    batch = Noise([3, 9, 2**62, 0]).normal(Stream.FLOW, 5, 7, 16)
    alone = Noise([2**62])
    assert torch.equal(batch[2:3], alone.normal(Stream.FLOW, 5, 7, 16))
    assert torch.equal(batch[2:3], torch.cat([alone.normal(Stream.FLOW, 5 + i, 1, 16) for i in range(7)], dim=1))


def test_normal_noise_of_images_positions_and_channels_is_independent():
    sample = Noise([1, 2]).normal(Stream.FLOW, 0, 10_000, 4)
    first = sample[0, :, 0]
    for other in (sample[1, :, 0], sample[0, :, 1], sample[0, :, 2], sample[0, :, 3], sample[0, :, 0].roll(1)):
        for a, b in ((first, other), (first.square(), other.square())):
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.04


@pytest.mark.parametrize("width", [1, 3, 5])
def test_normal_noise_of_an_odd_width_is_as_good(width):
    sample = Noise([5]).normal(Stream.FLOW, 0, 20_000, width)
    assert sample.shape == (1, 20_000, width)
    assert stats.kstest(sample.flatten().numpy(), "norm").pvalue > 1e-3


DRAWS = {
    "uniform": lambda noise, first, count: noise.uniform(Stream.TOKEN, first, count),
    "uniform-second-attempt": lambda noise, first, count: noise.uniform(Stream.REFINE, first, count, attempt=1),
    "uniform-of-drafts": lambda noise, first, count: noise.uniform(Stream.DRAFT, first, count, attempt=3),
    "uniforms": lambda noise, first, count: noise.uniforms(Stream.TOKEN, first, count, 18),
    "normal": lambda noise, first, count: noise.normal(Stream.FLOW, first, count, 7),
    "gumbel": lambda noise, first, count: noise.gumbel(Stream.SMOOTH, first, count, 33),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_noise_of_a_whole_run_has_the_same_bits_as_that_of_each_step(draw):
    each = Noise([3, 2**62 + 1])
    run = RunNoise(Noise([3, 2**62 + 1]), 30)
    for first, count in ((0, 1), (1, 4), (5, 9), (14, 16)):
        assert torch.equal(draw(run, first, count), draw(each, first, count))


def test_noise_of_rounds_has_the_bits_of_each_round_in_whatever_order():
    noise = Noise([3, 2**40])
    rounds = RoundNoise(noise, Stream.DRAFT, 5)
    for number in (1, 2, RoundNoise.ROUNDS, RoundNoise.ROUNDS + 1, 3, 200):
        assert torch.equal(rounds.of(number), noise.uniform(Stream.DRAFT, 0, 5, attempt=number))


def test_noise_of_a_run_is_computed_once(monkeypatch):
    calls, words = [], Noise.words
    monkeypatch.setattr(Noise, "words", lambda self, *args: calls.append(args) or words(self, *args))
    run = RunNoise(Noise([3]), 30)
    for first, count in ((0, 1), (1, 4), (5, 9)):
        run.uniform(Stream.TOKEN, first, count)
    assert len(calls) == 1


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_is_no_63_bit_number_is_refused(seed):
    with pytest.raises(ValueError, match="seed is"):
        Noise([seed])
