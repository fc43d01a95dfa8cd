"""Class agreement and the embedded distance: what `vargen bench` asks for."""

import numpy as np
import pytest
import torch

from var_toolkit.evaluation.image_sets import FreshStillLifes
from var_toolkit.evaluation.scores import score
from var_toolkit.still_life import quality as still_life_quality
from var_toolkit.still_life.quality import (
    agreement,
    class_agreement,
    embedded_distance,
    fresh_statistics,
    image_statistics,
)


def test_renderings_agree_with_their_labels_and_not_with_others(renderings):
    labels = torch.arange(0, 1000, 5)
    assert class_agreement(renderings, labels) > 0.98
    other = agreement(renderings, (labels + 10) % 1000)
    assert other.whole < 0.02 < 0.9 < other.ground


def test_images_that_do_not_fit_are_refused(renderings):
    with pytest.raises(ValueError, match="200 images and 3 labels"):
        class_agreement(renderings, torch.arange(3))
    with pytest.raises(ValueError, match=r"images are torch.float32; they must be uint8"):
        embedded_distance(renderings.float(), fresh_statistics(3))


@pytest.mark.slow
def test_the_distance_is_that_of_the_command(blurred, renderings, images_folder):
    reference = fresh_statistics(1000)
    assert embedded_distance(blurred, reference) == pytest.approx(score(images_folder, "stilllife").fid, rel=1e-5)
    assert embedded_distance(blurred, reference) > embedded_distance(renderings, reference)


def test_statistics_are_drawn_once_and_kept(tmp_path, monkeypatch):
    path = tmp_path / "kept" / "fresh.npz"
    first = fresh_statistics(10, cached=path)
    monkeypatch.setattr(still_life_quality, "FreshStillLifes", None)
    again = fresh_statistics(10, cached=path)
    assert torch.equal(first.sigma, again.sigma)
    with pytest.raises(TypeError):  # another count has to be drawn
        fresh_statistics(11, cached=path)


def test_a_kept_file_that_is_damaged_is_drawn_anew(tmp_path):
    path = tmp_path / "fresh.npz"
    path.write_bytes(b"damaged")
    found = fresh_statistics(10, cached=path)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["mu"], found.mu)


def test_batches_do_not_matter(monkeypatch):
    images = torch.stack([FreshStillLifes(20)[i] for i in range(20)])
    whole = image_statistics(images)
    monkeypatch.setattr(still_life_quality, "BATCH", 7)
    torch.testing.assert_close(image_statistics(images).sigma, whole.sigma, rtol=1e-4, atol=1e-3)
