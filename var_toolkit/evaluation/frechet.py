"""The Fréchet distance of two Gaussians, and the mean and covariance of features that it needs.

|mu_1 - mu_2|^2 + tr(sigma_1) + tr(sigma_2) - 2 tr((sigma_1 sigma_2)^(1/2)), Heusel et al. 2017, equation 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 4096  # rows converted to float64 at a time


@dataclass(frozen=True)
class Statistics:
    """Mean (C,) and covariance (C, C) of features, float64; the covariance is divided by N - 1, as in NumPy."""

    mu: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, features_BC: Tensor) -> Statistics:
        """The statistics of at least two feature vectors, in two passes: stable, without a float64 copy of them all."""
        if len(features_BC) < 2:
            raise ValueError(f"a covariance needs 2 feature vectors or more; there are {len(features_BC)}")
        if not bool(features_BC.isfinite().all()):
            raise ValueError("the features hold values that are not finite; the extractor's weights may be damaged")
        mu = torch.stack([rows.double().sum(0) for rows in features_BC.split(CHUNK)]).sum(0) / len(features_BC)
        sigma = torch.zeros(len(mu), len(mu), dtype=torch.float64)
        for rows in features_BC.split(CHUNK):
            centred = rows.double() - mu
            sigma += centred.T @ centred
        return cls(mu, sigma / (len(features_BC) - 1))


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """The squared Fréchet distance, as FID is reported. FloatingPointError if it is not finite.

    tr((sigma_1 sigma_2)^(1/2)) is the sum of the singular values of sigma_1^(1/2) sigma_2^(1/2): real, and stable for
    singular covariances as well, where the product's own eigenvalues may come out negative or complex.
    """
    if one.mu.shape != other.mu.shape:
        raise ValueError(f"statistics of {len(one.mu)} and of {len(other.mu)} features cannot be compared")
    try:
        overlap = torch.linalg.svdvals(_root(one.sigma) @ _root(other.sigma)).sum()
    except torch.linalg.LinAlgError:  # for values near the limit of float64
        overlap = torch.tensor(torch.nan)
    apart = (one.mu - other.mu).square().sum()
    distance = float(apart + one.sigma.trace() + other.sigma.trace() - 2 * overlap)
    if not math.isfinite(distance):
        raise FloatingPointError("the Fréchet distance is not finite; the statistics hold values that are too large")
    return max(0.0, distance)


def _root(sigma: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(sigma)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
