"""Trains the still-life classifier: three cross-entropies on slightly degraded images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.still_life.classifier import StillLifeClassifier, StillLifeClassifierConfig
from var_toolkit.training.batches import Batch
from var_toolkit.training.data_sources import images_of
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import NO_BLOCKS, Loss, Objective, Phase, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective


@dataclass(frozen=True)
class ClassifierOptions:
    """Degradations that generated images also have, so that the classifier relies on content."""

    noise: float = 0.1  # largest standard deviation, in units of [-1, 1]
    blur: float = 0.5  # share of images that are blurred
    contrast: float = 0.1  # largest change of contrast and brightness


@objective("classifier")
class ClassifierObjective(Objective):
    """Sum of the cross-entropies of solid, colour and ground."""

    options_type = ClassifierOptions
    refused = NO_BLOCKS
    log_note = "accuracy counts an image only if solid, colour and ground are all correct"

    @classmethod
    def config_type(cls) -> type:
        return StillLifeClassifierConfig

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options, self.team = recipe, recipe.objective_options, workplace.team
        self.networks = {"classifier": self.empty_network().to(self.team.device)}
        self.record = nn.Module()
        self.source, self.held_out = images_of(recipe, workplace)

    def empty_network(self) -> nn.Module:
        return StillLifeClassifier(self.recipe.model)

    def phases(self, step: int) -> list[Phase]:
        return [Phase(("classifier",), self._loss)]

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        assert batch.images is not None
        logits = self.networks["classifier"](damaged(batch.images, self.options, draws))
        truth = (batch.labels // 100, batch.labels // 10 % 10, batch.labels % 10)
        total = sum((F.cross_entropy(x, y) for x, y in zip(logits, truth, strict=True)), batch.images.new_zeros(()))
        right = torch.stack([x.detach().argmax(1) == y for x, y in zip(logits, truth, strict=True)]).all(0)
        return Loss(total, {"loss": total.detach(), "accuracy": right.float().mean()})

    def validate(self, network: nn.Module) -> dict[str, float]:
        assert isinstance(network, StillLifeClassifier)
        right = [network.predict(batch.images) == batch.labels for batch in self.held_out if batch.images is not None]
        return {"accuracy": float(torch.cat(right).float().mean())} if right else {}


def damaged(images: Tensor, options: ClassifierOptions, draws: Draws) -> Tensor:
    """Images (B, 3, h, w) in [-1, 1] with blur, changed contrast and brightness, and noise, each of random strength."""

    def amount(purpose: str) -> Tensor:
        return draws.per_image(purpose).view(-1, 1, 1, 1)

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    weight = (amount("blurred") < options.blur) * amount("blur")
    mixed = images.lerp(blurred, weight)
    contrast = 1 + options.contrast * (2 * amount("contrast") - 1)
    brightness = options.contrast * (2 * amount("brightness") - 1)
    noise = draws.numbers("added noise").normal(*mixed.shape) * (options.noise * amount("noise"))
    return (mixed * contrast + brightness + noise).clamp(-1, 1)
