"""Trains one network for several depths: VARiant's progressive training (arXiv 2511.16546, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from var_toolkit.core.layers import Layers
from var_toolkit.core.plan import Subnet
from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import Loss, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.var_objective import VarObjective, VarOptions


@dataclass(frozen=True, kw_only=True)
class VariantOptions(VarOptions):
    """Which subnets are trained, and how often.

    The probability that a step trains a subnet is the first `subnet_probability` until the first of `phase_ends`
    (shares of the run), grows linearly until the second, and is the second `subnet_probability` from there on. The
    defaults are the paper's, with 5, 15 and 5 epochs. Two equal probabilities give plain joint training.
    """

    subnets: tuple[int, ...]  # numbers of layers
    full_scales: int  # the first scales, which run through every layer
    subnet_probability: tuple[float, float] = (0.2, 1.0)
    phase_ends: tuple[float, float] = (0.2, 0.8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.subnets or len(set(self.subnets)) < len(self.subnets):
            raise ValueError(f"subnets is {list(self.subnets)}; expected different numbers of layers, such as [8, 4]")
        if not all(0 <= share <= 1 for share in self.subnet_probability):
            raise ValueError(f"subnet_probability is {list(self.subnet_probability)}; expected two numbers in [0, 1]")
        if not 0 <= self.phase_ends[0] <= self.phase_ends[1] <= 1:
            raise ValueError(f"phase_ends is {list(self.phase_ends)}; expected two growing shares of the run in [0, 1]")


@objective("variant")
class VariantObjective(VarObjective):
    """Cross-entropy on every token, at each step of the whole network or of one of its subnets.

    All subnets are equally likely, because the paper gives no probabilities. All processes choose the same subnet.
    Skipped layers still learn from the first scales, so every parameter has a gradient at every step.
    """

    options_type = VariantOptions
    log_note = (
        "loss is of whichever depth was trained: loss_full and loss_subnet_* tell them apart; " + VarObjective.log_note
    )

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        options, count = recipe.objective_options, len(recipe.model.patch_nums)
        if not 1 <= options.full_scales <= count - 1:
            raise ValueError(
                f"{where}: full_scales is {options.full_scales}; it must be from 1 to {count - 1}, of {count} scales"
            )
        for subnet in options.subnets:
            try:
                Layers.spread(recipe.model.depth, subnet, options.full_scales)
            except ValueError as error:
                raise ValueError(f"{where}: subnets: {error}") from None

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        super().__init__(recipe, workplace)
        self.subnets = {
            layers: Layers.spread(recipe.model.depth, layers, self.options.full_scales)
            for layers in self.options.subnets
        }
        self.steps = recipe.total_steps(len(self.source))

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        layers = self._chosen(draws)
        tokens_BL, inputs_BLc = self._forced(batch)
        logits_BLV = self.networks["var"](self._labels(batch, draws), inputs_BLc, self.subnets.get(layers))
        loss, terms = self._cross_entropy(logits_BLV, tokens_BL)
        return Loss(loss, {"loss": terms["loss"], **_named(terms, layers)})

    def _chosen(self, draws: Draws) -> int:
        """The number of layers that this step trains; 0 for all of them."""
        whether, which = torch.rand(2, generator=draws.generator("subnet"), dtype=torch.float64).tolist()
        options = self.options
        probability = subnet_probability(draws.step / self.steps, options.subnet_probability, options.phase_ends)
        return options.subnets[int(which * len(options.subnets))] if whether < probability else 0

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Loss and accuracy with the true labels, of the whole network and of every subnet."""
        tokens_BL, inputs_BLc = self._forced(batch)
        found: dict[str, Tensor] = {}
        for layers in (0, *self.subnets):
            logits_BLV = network(batch.labels, inputs_BLc, self.subnets.get(layers))
            found |= _named(self._graded(logits_BLV, tokens_BL), layers)
        return found

    def preview(self, network: nn.Module) -> Tensor:
        """A row of eight images by the whole network, and a row by each subnet with the same classes and noise."""
        fewer = [Subnet(count, self.options.full_scales) for count in self.subnets]
        return torch.cat([self._drawn(self._run(network, layers=layers), 8) for layers in (None, *fewer)])


def subnet_probability(passed: float, between: tuple[float, float], ends: tuple[float, float]) -> float:
    """The probability that a step trains a subnet after the share `passed` of the run."""
    if passed >= ends[1]:
        return between[1]
    if passed <= ends[0]:
        return between[0]
    return between[0] + (between[1] - between[0]) * (passed - ends[0]) / (ends[1] - ends[0])


def _named(terms: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The figures of one depth, with the depth in their names."""
    return {f"{key}_{f'subnet_{layers}' if layers else 'full'}": value for key, value in terms.items()}
