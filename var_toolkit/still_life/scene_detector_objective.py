"""Trains the detector of scenes on slightly degraded images."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.still_life.classifier_objective import ClassifierOptions, damaged
from var_toolkit.still_life.scene_detector import CELL, SceneDetector, SceneDetectorConfig, Seen
from var_toolkit.still_life.scene_drawing import SIZE, foot_at, seen_at
from var_toolkit.still_life.scenes import COLOURS, GROUNDS, LIGHTS, SIZES, SOLIDS, scene_of
from var_toolkit.training.batches import Batch
from var_toolkit.training.data_sources import images_of, require_size
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import NO_BLOCKS, WHOLE_BATCH, Loss, Objective, Phase, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective

CELLS = SIZE // CELL


@objective("scene-detector")
class SceneDetectorObjective(Objective):
    """Focal loss of presence, and cross-entropies of what the solids, the ground and the light are."""

    options_type = ClassifierOptions
    data_kinds = ("scenes",)
    refused = WHOLE_BATCH | NO_BLOCKS
    log_note = "accuracy counts an image only if all that it shows is right"

    @classmethod
    def config_type(cls) -> type:
        return SceneDetectorConfig

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options, self.team = recipe, recipe.objective_options, workplace.team
        self.networks = {"detector": self.empty_network().to(self.team.device)}
        self.record = nn.Module()
        require_size(recipe.data, SIZE)
        self.source, self.held_out = images_of(recipe, workplace)

    def empty_network(self) -> nn.Module:
        return SceneDetector(self.recipe.model)

    def phases(self, step: int) -> list[Phase]:
        return [Phase(("detector",), self._loss)]

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        assert batch.images is not None
        seen: Seen = self.networks["detector"](damaged(batch.images, self.options, draws))
        truth = _truths(batch.labels, "train")
        terms = _terms(seen, truth)
        total = torch.stack(list(terms.values())).sum()
        return Loss(total, {"loss": total.detach(), **{name: value.detach() for name, value in terms.items()}})

    def validate(self, network: nn.Module) -> dict[str, float]:
        assert isinstance(network, SceneDetector)
        right = [found for batch in self.held_out for found in _right(network, batch, "validation")]
        return {"accuracy": sum(right) / len(right)} if right else {}


def _terms(seen: Seen, truth: Tensor) -> dict[str, Tensor]:
    image, row, column, *kinds = truth[:, :6].long().unbind(1)
    presence = torch.zeros_like(seen.presence)
    presence[image, row, column] = 1.0
    at = [part[image, row, column] for part in (seen.solid, seen.colour, seen.size)]
    return {
        "presence": _focal(seen.presence, presence) / len(seen.presence),
        **{name: F.cross_entropy(x, y) for name, x, y in zip(("solid", "colour", "size"), at, kinds, strict=True)},
        "foot": 5.0 * F.l1_loss(seen.foot[image, row, column], truth[:, 6]),
        "ground": F.cross_entropy(seen.ground[image], truth[:, 7].long()),
        "light": F.cross_entropy(seen.light[image], truth[:, 8].long()),
    }


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of empty and occupied cells, with less weight on those that are clear (arXiv 1708.02002)."""
    wrong = (target - logits.sigmoid()).abs()
    return (wrong.square() * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).sum()


def _right(network: SceneDetector, batch: Batch, split: str) -> list[bool]:
    """Whether all that is found in an image is what its scene holds, and nothing else."""
    assert batch.images is not None
    right = []
    for number, found in zip(batch.labels.tolist(), network.find(batch.images), strict=True):
        scene = scene_of(number, split)
        shown, held = ([(one.solid, one.colour, one.size) for one in things] for things in (found.things, scene.things))
        right.append((sorted(shown), found.ground, found.light) == (sorted(held), scene.ground, scene.light))
    return right


def _truths(labels: Tensor, split: str) -> Tensor:
    """A row for each solid of scenes: image, row, column, solid, colour, size, foot, ground, light."""
    rows = [[image, *row] for image, number in enumerate(labels.tolist()) for row in _truth(number, split)]
    return torch.tensor(rows, dtype=torch.float32, device=labels.device)


@cache
def _truth(number: int, split: str) -> list[list[float]]:
    scene: Any = scene_of(number, split)
    whole = [GROUNDS.index(scene.ground), LIGHTS.index(scene.light)]
    rows = []
    for thing in scene.things:
        x, y = seen_at(thing)
        cell = [int(np.clip(y * CELLS, 0, CELLS - 1)), int(np.clip(x * CELLS, 0, CELLS - 1))]
        what = [SOLIDS.index(thing.solid), COLOURS.index(thing.colour), tuple(SIZES).index(thing.size)]
        rows.append([*cell, *what, foot_at(thing), *whole])
    return rows
