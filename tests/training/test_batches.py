"""Batches of what was computed before: values, labels and captions belong to the same images."""

import numpy as np
import pytest
import torch

from var_toolkit.training.batches import FeatureArray, ImageArray, TokenArray

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [ImageArray, TokenArray, FeatureArray], ids=lambda kind: kind.__name__)
def test_captions_are_those_of_the_images_and_of_the_epoch(kind):
    values, labels = np.arange(5, dtype=np.int16)[:, None], np.arange(5) * 10
    source = kind(values, labels, CPU, lambda index, epoch: f"{index} in epoch {epoch}")
    first, second = source.batches([torch.tensor([3, 1]), torch.tensor([4])], 7)
    assert first.captions == ("3 in epoch 7", "1 in epoch 7")
    assert second.captions == ("4 in epoch 7",)
    assert first.labels.tolist() == [30, 10]
    (expected,) = kind(values[[3, 1]], labels[:2], CPU).batches([torch.arange(2)], 7)
    assert torch.equal(getattr(first, kind.field), getattr(expected, kind.field))
    assert expected.captions is None
