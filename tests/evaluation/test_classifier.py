"""The still-life classifier."""

import pytest
import torch

from var_toolkit.formats.directory import load_network, save_network
from var_toolkit.still_life.classifier import StillLifeClassifier, StillLifeClassifierConfig


def test_it_is_small_and_answers_three_questions():
    network = StillLifeClassifier(StillLifeClassifierConfig())
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert sum(p.numel() for p in network.parameters()) <= 600_000
    assert [answer.shape for answer in network(images)] == [(2, 10)] * 3
    assert network.features(images).shape == (2, 128)
    assert [tuple(level.shape[1:]) for level in network.levels(images)] == [
        (16, 64, 64), (32, 32, 32), (64, 16, 16), (96, 8, 8), (128, 4, 4)]  # fmt: skip


def test_its_label_joins_the_three_answers():
    torch.manual_seed(0)
    network, images = StillLifeClassifier(StillLifeClassifierConfig((8, 8))), torch.rand(5, 3, 64, 64)
    solid, colour, ground = (logits.argmax(1) for logits in network(images))
    assert torch.equal(network.predict(images), 100 * solid + 10 * colour + ground)


def test_a_saved_classifier_gives_the_same_answers(tmp_path):
    network, images = StillLifeClassifier(StillLifeClassifierConfig((8, 8))), torch.rand(2, 3, 64, 64)
    save_network(network, tmp_path / "classifier")
    torch.testing.assert_close(load_network(tmp_path / "classifier")(images), network(images), rtol=0, atol=0)


def test_impossible_widths_are_refused():
    with pytest.raises(ValueError, match=r"widths is \[12\]; expected a list of multiples of 8"):
        StillLifeClassifierConfig((12,))
