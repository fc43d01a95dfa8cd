"""Trains E-CAR (arXiv 2412.14170): the velocity of each scale between the states at its start and its end.

Letters: B images, L tokens, K scales, C channels of the latents.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.heads.flow import Flow
from var_toolkit.models.ecar import ECAR, ECARConfig, end_level, enlarged, ratio_at, start_level
from var_toolkit.registry import Sampling
from var_toolkit.tokenizers.latent_pyramid import sequence
from var_toolkit.training.flowar_objective import FlowARObjective
from var_toolkit.training.registry import objective


@objective("ecar")
class ECARObjective(FlowARObjective):
    """FlowAR's loss between the states of each scale, which are noisy maps; the noise of all scales is one.

    The noise of a coarse map is that of the finest, averaged over blocks and brought back to variance 1.
    """

    network, preview_head = ECAR, Flow("euler", 4, (0.0, 1.0))

    @classmethod
    def config_type(cls) -> type:
        return ECARConfig

    def sampling(self) -> Sampling:
        """The default settings of the model."""
        return Sampling(cfg=2.0, steps=8, guidance_interval=(0.0, 1.0))

    def _errors(
        self, network: nn.Module, labels_B: Tensor, latent: Tensor, noise_BLC: Tensor, times_BK: Tensor
    ) -> Tensor:
        with torch.autocast(labels_B.device.type, enabled=False):
            starts, ends = self._states(latent, self.scales.split(noise_BLC)[-1])
            inputs = [self.pyramid.shrink(end, k + 1) for k, end in enumerate(ends[:-1])]
            start_BLC, end_BLC = (torch.cat([sequence(each) for each in states], dim=1) for states in (starts, ends))
            time = times_BK[:, self.scales.level_ids().to(times_BK.device)].unsqueeze(-1)
            states = time * start_BLC + (1 - time) * end_BLC
        velocity = network(labels_B, torch.cat(inputs, dim=1), states, times_BK)
        return (velocity - (start_BLC - end_BLC)).square().mean(dim=-1)

    def _states(self, latent_BChw: Tensor, noise_BLC: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The states at the start and at the end of each scale, (B, C, p, p), from the noise of the finest map."""
        maps = self.pyramid.latents(self.scales.split(self.pyramid.maps(latent_BChw)))
        fine, sides = noise_BLC.transpose(1, 2).unflatten(2, latent_BChw.shape[2:]), self.scales.patch_nums
        starts, ends = [], []
        for k, side in enumerate(sides):
            ratio = sides[-1] // side
            noise = F.avg_pool2d(fine, ratio) * ratio
            start, end = start_level(k, self.scales), end_level(k, len(sides))
            data = enlarged(maps[k - 1], ratio_at(k, self.scales)) if k else torch.zeros_like(noise)
            starts.append((1 - start) * data + start * noise)
            ends.append((1 - end) * maps[k] + end * noise)
        return starts, ends
