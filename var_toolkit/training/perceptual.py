"""Distance between images in the eyes of the still-life classifier, in the manner of LPIPS (arXiv 1801.03924)."""

import torch
from torch import Tensor, nn

from var_toolkit.evaluation.classifier import StillLifeClassifier


class PerceptualDistance(nn.Module):
    """Mean over the classifier's stages of the squared distance between unit feature vectors."""

    def __init__(self, classifier: StillLifeClassifier) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Scalar; gradients flow into `made` only."""
        with torch.no_grad():
            wanted = self.classifier.levels(real)
        got = self.classifier.levels(made)
        return torch.stack([self._distance(a, b) for a, b in zip(got, wanted, strict=True)]).mean()

    @staticmethod
    def _distance(a_BChw: Tensor, b_BChw: Tensor) -> Tensor:
        unit_a, unit_b = (x.float() / (x.float().square().sum(1, keepdim=True) + 1e-6).sqrt() for x in (a_BChw, b_BChw))
        return (unit_a - unit_b).square().sum(1).mean()
