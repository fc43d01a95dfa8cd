"""The Fréchet distance and the statistics that it takes."""

import numpy as np
import pytest
import scipy.linalg
import torch

from var_toolkit.evaluation.frechet import Statistics, frechet_distance


def gaussian(mean, deviations, rotation=None) -> Statistics:
    rotation = torch.eye(len(deviations), dtype=torch.float64) if rotation is None else rotation
    return Statistics(
        torch.tensor(mean, dtype=torch.float64),
        rotation @ torch.diag(torch.tensor(deviations, dtype=torch.float64) ** 2) @ rotation.T,
    )


def test_gaussians_with_common_axes_give_the_closed_form():
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    one = gaussian([0.0, 0, 0, 0], [1.0, 2, 3, 0], rotation)
    other = gaussian([1.0, -2, 0, 2], [2.0, 2, 1, 5], rotation)
    assert frechet_distance(one, other) == pytest.approx(9 + 1 + 0 + 4 + 25, rel=1e-7)


def test_it_agrees_with_the_matrix_root_of_scipy():
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(300, 20)) @ rng.normal(size=(20, 20)) + rng.normal(size=20) for _ in range(2)]
    mu, sigma = zip(*((x.mean(0), np.cov(x, rowvar=False)) for x in sets), strict=True)
    root = scipy.linalg.sqrtm(sigma[0] @ sigma[1]).real
    expected = ((mu[0] - mu[1]) ** 2).sum() + np.trace(sigma[0] + sigma[1] - 2 * root)
    found = frechet_distance(*(Statistics.of(torch.from_numpy(x)) for x in sets))
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_singular_covariance_is_at_no_distance_from_itself():
    few = Statistics.of(1000 + 50 * torch.randn(30, 400, generator=torch.Generator().manual_seed(0)))
    assert frechet_distance(few, few) < 1e-6


def test_statistics_in_chunks_are_those_of_numpy():
    features = 1e3 + torch.randn(9000, 5, generator=torch.Generator().manual_seed(0))
    found = Statistics.of(features)
    np.testing.assert_allclose(found.mu, features.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)


def test_what_has_no_covariance_is_refused():
    with pytest.raises(ValueError, match="2 feature vectors or more; there are 1"):
        Statistics.of(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        Statistics.of(torch.tensor([[0.0], [float("nan")]]))
    with pytest.raises(ValueError, match="of 1 and of 2 features"):
        frechet_distance(gaussian([0.0], [1.0]), gaussian([0.0, 0], [1.0, 1]))
