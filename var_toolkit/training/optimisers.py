"""The optimisers of a network: AdamW, or beside it Muon for the matrices of hidden layers.

Muon (Jordan et al., 2024) makes the momentum of a matrix orthogonal before it steps. PyTorch's is taken, with the
scaling of arXiv 2502.16982, by which its steps are as long as those of AdamW: one learning rate suits both.
"""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from var_toolkit.training.recipe import OptimiserConfig

ENDS = ("head", "output", "embed", "linear")  # parts of names of input and output layers


def optimisers(config: OptimiserConfig, network: nn.Module, groups: list[dict[str, Any]], lr: float) -> list[Optimizer]:
    """The optimisers of a network, given its trainable parameters in groups with and without weight decay."""
    groups = [group for group in groups if group["params"]]
    if config.kind == "adamw":
        return [_adamw(config, groups, lr)]
    chosen = hidden_matrices(network)
    matrices = [_part(group, chosen, inside=True) for group in groups]
    rest = [_part(group, chosen, inside=False) for group in groups]
    made: list[Optimizer] = [_adamw(config, [group for group in rest if group["params"]], lr)]
    if any(group["params"] for group in matrices):
        made.append(
            torch.optim.Muon(
                [group for group in matrices if group["params"]],
                lr=lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return made


def hidden_matrices(network: nn.Module) -> set[int]:
    """The ids of the weights of linear layers that neither read inputs nor make logits."""
    return {
        id(module.weight)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name.rpartition(".")[2] for part in ENDS)
    }


def _part(group: dict[str, Any], chosen: set[int], *, inside: bool) -> dict[str, Any]:
    return group | {"params": [one for one in group["params"] if (id(one) in chosen) == inside]}


def _adamw(config: OptimiserConfig, groups: list[dict[str, Any]], lr: float) -> Optimizer:
    return torch.optim.AdamW(
        groups, lr=lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )
