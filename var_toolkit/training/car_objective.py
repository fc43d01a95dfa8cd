"""Trains the branch of CAR (arXiv 2410.04671 and its release): a frozen VAR learns to follow control images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import of_labels
from var_toolkit.conditions.images import WithImage
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.models.car import CAR, STRIDE, control_images
from var_toolkit.models.var import VAR
from var_toolkit.training.batches import Batch, Source, to_unit_range
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import Loss, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import network_from, require_same_sizes
from var_toolkit.training.var_objective import VarObjective, require_share

BRANCH = "car_"  # how the names of what is trained begin


@dataclass(frozen=True, kw_only=True)
class CarOptions:
    """The trained VAR, and settings that are defaults in the published recipe."""

    initial: str  # directory or name of a model; of a CAR, its branch is trained on
    class_dropout: float = 0.1
    label_smoothing: float = 0.0
    adaln_gamma: float = 1e-3  # initial scale of the gates of the branch

    def __post_init__(self) -> None:
        require_share(class_dropout=self.class_dropout, label_smoothing=self.label_smoothing)


class SteeredStillLifes:
    """Still lifes of a split, in any form, with the edges that the renderer draws for them."""

    def __init__(self, source: Source, split: str) -> None:
        self.source, self.split = source, split

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        from var_toolkit.still_life.data_set import solid_edges
        from var_toolkit.still_life.image_cache import item

        for numbers, batch in zip(rows, self.source.batches(rows, epoch), strict=True):
            drawn = torch.stack([solid_edges(*item(number, self.split)) for number in numbers.tolist()])
            controls = to_unit_range(drawn[:, None].expand(-1, 3, -1, -1) * 255.0)
            yield batch._replace(controls=controls.to(batch.labels.device))


@objective("car")
class CarObjective(VarObjective):
    """VAR's loss, with a control image for every image; only the branch is trained, and labels alone are dropped."""

    options_type: ClassVar[type] = CarOptions
    network_type: ClassVar[Any] = CAR
    reads_control: ClassVar[bool] = True

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        if getattr(recipe.data, "control", None) is None:
            raise ValueError(
                f"{where}: data has no control images; add `control: edges` to still-lifes, or control_root to folders"
            )

    def freeze(self, network: Any) -> None:
        """Leave VAR as it is."""
        for name, weight in network.named_parameters():
            weight.requires_grad_(name.startswith(BRANCH))

    def _begin(self, network: Any) -> None:
        network.init_weights(adaln_gamma=self.options.adaln_gamma)
        saved = network_from(self.options.initial, VAR, what="initial")
        own = {"control_channels", "light_width", "light_layers"} if not isinstance(saved, CAR) else set()
        require_same_sizes(network, saved, self.options.initial, free=own)
        network.load_state_dict(network.state_dict() | saved.state_dict())

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """What VAR reads, and the control images of all scales."""
        sides = [STRIDE * side for side in recipe.model.patch_nums]
        return *super().example(recipe, rows), [torch.zeros(rows, 3, side, side) for side in sides]

    def _codes(self, workplace: Workplace, count: int, split: str) -> Source:
        return SteeredStillLifes(super()._codes(workplace, count, split), split)

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        tokens_BL, inputs_BLc = self._forced(batch)
        logits_BLV = self.networks["var"](self._labels(batch, draws), inputs_BLc, self._controls(batch))
        return self._cross_entropy(logits_BLV, tokens_BL)

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Loss and accuracy with the true labels."""
        tokens_BL, inputs_BLc = self._forced(batch)
        return self._graded(network(batch.labels, inputs_BLc, self._controls(batch)), tokens_BL)

    def _controls(self, batch: Batch) -> list[Tensor]:
        assert batch.controls is not None
        return control_images(batch.controls, self.scales)

    def preview(self, network: nn.Module) -> Tensor | None:
        """Control images of held-out images, and below them what is drawn for these and the same classes."""
        batch = self.held_out.first()
        if batch is None:
            return None
        assert batch.controls is not None
        labels, controls = batch.labels[:8], batch.controls[:8]
        run, count = self._run(network), len(labels)
        request = network.image_request(controls, self.tokenizer, self.scales)  # type: ignore[operator]
        asked = WithImage(of_labels(labels, self.classes), request)
        drawn = decode(run, asked, Noise(range(count), labels.device)).latent
        shown = nn.functional.interpolate(controls, size=self.scales.image_size(self.tokenizer.downsample))
        return torch.cat((shown, self.tokenizer.decode(drawn)))
