"""What an objective is: the part of training that differs between networks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from torch import Tensor, nn

from var_toolkit.formats.directory import save_network

if TYPE_CHECKING:
    from var_toolkit.processes import Team
    from var_toolkit.training.batches import Batch, Source
    from var_toolkit.training.draws import Draws
    from var_toolkit.training.recipe import Recipe


class Loss(NamedTuple):
    """A scalar to minimise, and detached numbers for the log."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """One optimiser step within a training step: the networks it updates and the loss that it lowers."""

    updates: tuple[str, ...]
    loss: Callable[["Batch", "Draws"], Loss]


WHOLE_BATCH = {"accumulate": "its loss is not the mean of those of single images"}
_NONE = "its network has no transformer blocks"
NO_BLOCKS = {"checkpoint_activations": _NONE, "adapter": _NONE, "parallel": f"{_NONE}, and is trained as copies (ddp)"}
NO_ADAPTER = {"adapter": "it trains no single network that draws images by itself"}


class Workplace(NamedTuple):
    """What a run gives its objective besides the recipe."""

    cache_dir: Path
    team: "Team"
    skip_damaged: bool = False  # replace images of folders that cannot be read, instead of ending the run


class Objective(ABC):
    """The part of training that differs between networks.

    `networks` holds what is trained, by name, and is written to the checkpoint; the loop swaps the entries for
    wrapped ones (DDP) before the first step, so losses must call `self.networks[name](...)` and nothing else of them.
    The first entry is the one that the run delivers. `record` is a module without gradients for counters.
    """

    options_type: ClassVar[type]
    data_kinds: ClassVar[tuple[str, ...]] = ("still-lifes", "folders")
    reads_control: ClassVar[bool] = False  # whether the data may have control images
    log_note: ClassVar[str] = ""
    refused: ClassVar[Mapping[str, str]] = {}  # fields of a recipe that must stay as they are by default, and why

    recipe: "Recipe"
    options: Any
    networks: dict[str, nn.Module]
    record: nn.Module
    source: "Source"

    @classmethod
    @abstractmethod
    def config_type(cls) -> type:
        """The dataclass that the recipe's `model` section fills."""

    @classmethod
    def check(cls, recipe: "Recipe", *, where: str) -> None:
        """Raise ValueError for settings that do not fit together, before any work."""
        return None

    @abstractmethod
    def __init__(self, recipe: "Recipe", workplace: Workplace) -> None:
        """Build networks on the workplace's device and open the data."""

    @abstractmethod
    def phases(self, step: int) -> list[Phase]:
        """What to minimise at this step, in order."""

    @classmethod
    def outline(cls, recipe: "Recipe") -> dict[str, nn.Module]:
        """The networks that a recipe trains, for their sizes alone: nothing is read."""
        self = cls.__new__(cls)
        self.recipe, self.options = recipe, recipe.objective_options
        network = self.empty_network()
        self.freeze(network)
        return {recipe.objective: network}

    @classmethod
    def example(cls, recipe: "Recipe", rows: int) -> Any:
        """Inputs of the main network for `rows` images, to measure activations; None if they are not measured."""
        return None

    def freeze(self, network: Any) -> None:
        """Leave parts of the main network out of training."""
        return None

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """AdamW's parameter groups of one network; `decay: False` exempts a group from weight decay."""
        return [{"params": [p for p in network.parameters() if p.requires_grad], "decay": True}]

    def after_step(self, batch: "Batch", draws: "Draws") -> dict[str, float]:
        """Upkeep without gradients (counters, codebook revival); numbers for the log."""
        return {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Means over this process's share of the held-out images, by the network that would be delivered."""
        return {}

    def preview(self, network: nn.Module) -> Tensor | None:
        """Images in [-1, 1], (B, 3, h, w), for a grid of eight columns; None if there is nothing to show."""
        return None

    @staticmethod
    def adapted(network: Any) -> nn.Module:
        """The part of the main network that an adapter adapts: the one that draws."""
        return cast(nn.Module, network)

    @abstractmethod
    def empty_network(self) -> nn.Module:
        """The delivered network with any weights, on the CPU: what is saved at the end is loaded into it."""

    def save(self, network: nn.Module, directory: Path) -> None:
        """Write what the run delivers to a new directory: the network alone, if nothing belongs with it."""
        save_network(network, directory)
