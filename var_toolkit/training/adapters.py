"""Training an adapter of a network in place of the network."""

from pathlib import Path

import torch
from torch import Tensor, nn

from var_toolkit.formats.peft_files import write_adapter
from var_toolkit.models.layers.lora import adapter_tensors, inject, target_layers
from var_toolkit.training.delivery import portable
from var_toolkit.training.draws import derived
from var_toolkit.training.objectives import Objective
from var_toolkit.training.recipe import AdapterConfig, Recipe
from var_toolkit.training.starting_weights import network_from, require_same_sizes


class TrainedAdapter:
    """The adapter of a recipe, which its objective's network has from here on; the network itself is frozen.

    ValueError of one line if the initial weights are those of another network, or no layer is named as the recipe says.
    """

    def __init__(self, recipe: Recipe, objective: Objective) -> None:
        assert recipe.adapter is not None
        self.recipe, self.objective, self.config = recipe, objective, recipe.adapter
        self.base = str(recipe.objective_options.initial)
        network = next(iter(objective.networks.values()))
        part = objective.adapted(network)
        require_same_sizes(part, network_from(self.base, type(part), what="initial"), self.base, free=set())
        self.layers = target_layers(part, self.config.targets)
        torch.manual_seed(derived(recipe.seed, "adapter"))
        train_adapter(network, part, self.layers, self.config)

    def empty_network(self) -> nn.Module:
        """The objective's network with an adapter, with any weights."""
        network = self.objective.empty_network()
        train_adapter(network, self.objective.adapted(network), self.layers, self.config)
        return network

    def save(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write the adapter of a trained network, given the state dict of that, to an existing folder."""
        network = self.empty_network()
        network.load_state_dict(weights)
        part = self.objective.adapted(network)
        write_adapter(
            folder,
            adapter_tensors(part),
            rank=self.config.rank,
            alpha=self.config.alpha,
            dora=self.config.kind == "dora",
            layers=self.layers,
            network=type(part).__name__,
            module=type(part).__module__,
            base=portable(self.base),
        )


def train_adapter(network: nn.Module, part: nn.Module, layers: list[str], config: AdapterConfig) -> None:
    """Put adapters into layers of the part of a network that draws, in place, and freeze the rest."""
    network.requires_grad_(False)
    inject(part, layers, rank=config.rank, alpha=config.alpha, dora=config.kind == "dora")
