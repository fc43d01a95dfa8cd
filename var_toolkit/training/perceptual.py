"""Perceptual distance between images, in the manner of LPIPS (arXiv 1801.03924) without its learned weights.

The feature maps come from the still-life classifier, from the detector of scenes, or from any network of timm that
returns them: VGG-16, for example, for photographs.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from var_toolkit.training.starting_weights import network_from

TIMM = "timm:"  # begins the name of a network of timm


class FeatureMaps(Protocol):
    """A network that returns its maps of images (B, 3, h, w) in [-1, 1], fine to coarse, each (B, C, h', w')."""

    def levels(self, images: Tensor) -> list[Tensor]: ...


class PerceptualDistance(nn.Module):
    """Mean over the levels of a network of the squared distance between unit feature vectors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: FeatureMaps = network.eval().requires_grad_(False)  # type: ignore[assignment]

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Scalar; gradients flow into `made` only."""
        with torch.no_grad():
            wanted = self.network.levels(real)
        got = self.network.levels(made)
        return torch.stack([self._distance(a, b) for a, b in zip(got, wanted, strict=True)]).mean()

    @staticmethod
    def _distance(a_BChw: Tensor, b_BChw: Tensor) -> Tensor:
        unit_a, unit_b = (x.float() / (x.float().square().sum(1, keepdim=True) + 1e-6).sqrt() for x in (a_BChw, b_BChw))
        return (unit_a - unit_b).square().sum(1).mean()


class TimmFeatures(nn.Module):
    """The pretrained network that timm knows by a name, with the normalisation that it was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm  # takes seconds

        try:
            self.network = timm.create_model(name, pretrained=True, features_only=True)
        except Exception as error:  # of timm, the hub and the model's own file: anything
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"timm has no pretrained network {name!r} that returns feature maps ({why}); use vgg16.tv_in1k, "
                "or another name that `timm.list_pretrained()` lists"
            ) from None
        trained = timm.data.resolve_data_config(model=self.network)
        self.register_buffer("mean", torch.tensor(trained["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(trained["std"]).view(3, 1, 1))

    def levels(self, images: Tensor) -> list[Tensor]:
        """See `FeatureMaps`."""
        maps: list[Tensor] = self.network(((images + 1) / 2 - self.mean) / self.std)
        return maps


def perceptual_network(name: str) -> nn.Module:
    """The network of a recipe's `perceptual_network`: `timm:NAME`, or where a classifier or detector of ours lies.

    ValueError in one line if it does not exist.
    """
    if name.startswith(TIMM):
        return TimmFeatures(name.removeprefix(TIMM))
    network = network_from(name, nn.Module, what="perceptual_network")
    if not hasattr(network, "levels"):
        found, wanted = type(network).__name__, "StillLifeClassifier or a SceneDetector"
        raise ValueError(f"perceptual_network: {name} holds a {found}; expected a {wanted}")
    return network
