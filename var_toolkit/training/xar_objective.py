"""Trains xAR (arXiv 2502.20388): all cells of an image in one pass, each with noise of its own, as context, too.

Letters: B images, L tokens in the order of the cells, T cells, c channels of a token.
"""

from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit.heads.flow import Flow
from var_toolkit.models.xar import XAR, XARConfig
from var_toolkit.registry import Sampling
from var_toolkit.training.acdit_objective import ACDiTObjective
from var_toolkit.training.draws import Numbers
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective


@objective("xar")
class XARObjective(ACDiTObjective):
    """Squared error of the velocity of every token. Times are sigmoids of standard normal numbers, one for each cell.

    The cells before a cell have their own noise, which is noisy context learning.
    """

    network, preview_head = XAR, Flow("sde", 16, (0.0, 1.0))

    @classmethod
    def config_type(cls) -> type:
        return XARConfig

    def sampling(self) -> Sampling:
        """The default settings of the model."""
        return Sampling(cfg=2.7, steps=40, guidance_interval=(0.0, 1.0))

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Labels, noisy tokens, and the time of each cell."""
        model = recipe.model
        tokens = torch.zeros(rows, model.side**2, model.latent_channels)
        return torch.zeros(rows, dtype=torch.long), tokens, torch.zeros(rows, model.side**2 // model.block_side**2)

    def _errors(self, network: nn.Module, labels_B: Tensor, latent: Tensor, numbers: Numbers) -> Tensor:
        size = self.recipe.model.block_side**2
        with torch.autocast(labels_B.device.type, enabled=False):
            clean = self.pyramid.maps(latent)[:, self.order_L]
            times_BT = numbers.normal(len(clean), clean.shape[1] // size).sigmoid()
            noise, times = numbers.normal(*clean.shape), times_BT.repeat_interleave(size, dim=1).unsqueeze(-1)
            states = (1 - times) * clean + times * noise
        found = network(labels_B, states, times_BT)
        with torch.autocast(labels_B.device.type, enabled=False):
            errors = (found - (noise - clean)).square().mean(dim=-1)
        return errors.unflatten(1, (-1, size)).mean(dim=2)
