"""A small PatchGAN (Isola et al., arXiv 1611.07004): one logit per patch of an image, without batch norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """Images (B, 3, h, w) -> logits (B, 1, h/8, w/8): high where a patch looks real.

    GroupNorm replaces the original's batch norm, so that a logit does not depend on the other images or on the number
    of processes.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in ((width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).float()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The loss of the discriminator, a scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
