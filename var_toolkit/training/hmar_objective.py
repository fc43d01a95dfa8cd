"""Trains HMAR's next-scale branch (arXiv 2506.04421): VAR's recipe with other attention and other scale weights.

Letters: B images, L tokens, V vocabulary, K scales.
"""

from dataclasses import asdict, dataclass, fields
from math import exp
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
from torch import Tensor, nn

from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.categorical import token_losses
from var_toolkit.models.hmar import HMAR
from var_toolkit.models.layers.next_scale import NextScaleConfig, NextScaleTransformer
from var_toolkit.training.objectives import Loss, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import network_from
from var_toolkit.training.var_objective import VarObjective, VarOptions


@dataclass(frozen=True)
class HmarOptions(VarOptions):
    """The weight of each scale in the loss, shared equally by its tokens, and the initial weights.

    `lognormal` is the paper's (despite the name, its code uses a normal density); `equal` gives all scales the same
    weight, `uniform` all tokens, as in VAR. `initial` may also be a VAR of the same sizes.
    """

    scale_weights: Literal["lognormal", "equal", "uniform"] = "lognormal"


@objective("hmar")
class HmarObjective(VarObjective):
    """Cross-entropy of every token, given only the latent before its scale; the masked branch is not trained.

    In the saved model the masked branch is a copy of the next-scale branch, from which `hmar-mask` starts, and the
    default setting has no masked passes.
    """

    options_type = HmarOptions
    network_type = HMAR
    log_note = "loss has scale weights, validation_loss does not; " + VarObjective.log_note

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        weights = scale_weights(self.scales, self.options.scale_weights)
        per_token = [w / n for w, n in zip(weights, self.scales.lengths, strict=True)]
        self.weights_L = torch.tensor(per_token, device=workplace.team.device)[self.scales.level_ids()]

    def freeze(self, network: Any) -> None:
        """Leave out the masked branch."""
        for part in masked_parts(network):
            part.requires_grad_(False)

    def _start(self, network: Any, initial: str) -> None:
        start_hmar(network, initial)

    def _cross_entropy(self, logits_BLV: Tensor, tokens_BL: Tensor) -> Loss:
        losses_BL = token_losses(logits_BLV, tokens_BL, label_smoothing=self.options.label_smoothing)
        loss = (losses_BL * self.weights_L).sum(dim=1).mean()
        terms = self._by_scale("loss", losses_BL.detach(), logits_BLV.detach(), tokens_BL)
        return Loss(loss, {"loss": loss.detach(), **terms})

    def save(self, network: nn.Module, directory: Path) -> None:
        """A model directory whose masked branch is a copy of the next-scale branch."""
        assert isinstance(network, HMAR)
        copy_to_masked(network)
        super().save(network, directory)


def scale_weights(scales: Schedule, kind: str) -> list[float]:
    """The weight of each scale in the loss, (K), with sum 1.

    `lognormal`: the sides relative to the last one are standardised (sample standard deviation) and reversed, and the
    weights are their standard normal densities. The middle scales have the largest weights, the last ones small ones.
    """
    if kind == "equal":
        raw = [1.0] * len(scales)
    elif kind == "uniform" or len(scales) == 1:
        raw = [float(n) for n in scales.lengths]
    else:
        ratios = [side / scales.finest for side in scales.patch_nums]
        centre, spread = mean(ratios), stdev(ratios)
        raw = [exp(-(((ratio - centre) / spread) ** 2) / 2) for ratio in reversed(ratios)]
    return [weight / sum(raw) for weight in raw]


def masked_parts(network: Any) -> list[nn.Module]:
    """The modules that only masked passes use."""
    return [network.mask_embed, network.mask_blocks, network.mask_head_nm, network.mask_head]


@torch.no_grad()
def copy_to_masked(network: HMAR) -> None:
    """Copy the weights of the next-scale branch to the masked branch, in place."""
    for name in ("blocks", "head_nm", "head"):
        getattr(network, f"mask_{name}").load_state_dict(getattr(network, f"ns_{name}").state_dict())


def start_hmar(network: HMAR, name: str) -> None:
    """Load saved weights: of an HMAR unchanged; of a VAR, whose last layers are copied to both branches.

    ValueError if the sizes differ.
    """
    saved = network_from(name, NextScaleTransformer, what="initial")
    ours, theirs = asdict(network.config), asdict(saved.config)
    compared = fields(network.config if isinstance(saved, HMAR) else NextScaleConfig)
    for field in compared:
        if field.name != "drop_path" and ours[field.name] != theirs[field.name]:
            raise ValueError(
                f"initial: {field.name} is {theirs[field.name]} in {name}, but {ours[field.name]} in the recipe"
            )
    if isinstance(saved, HMAR):
        network.load_state_dict(saved.state_dict())
        return
    state = network.state_dict()
    state.update(as_next_scale(saved.state_dict(), network.config.depth - network.config.branch_depth))
    network.load_state_dict(state)
    copy_to_masked(network)


def as_next_scale(state: dict[str, Tensor], shared: int) -> dict[str, Tensor]:
    """VAR's weights under the names of HMAR's next-scale branch; the first `shared` layers are the base."""
    renamed = {}
    for key, tensor in state.items():
        first, _, rest = key.partition(".")
        if first == "blocks":
            layer, _, rest = rest.partition(".")
            base = int(layer) < shared
            key = f"base_blocks.{layer}.{rest}" if base else f"ns_blocks.{int(layer) - shared}.{rest}"
        elif first in ("head", "head_nm"):
            key = f"ns_{key}"
        elif key == "word_embed.bias":
            key = "word_embed_bias"
        renamed[key] = tensor
    return renamed
