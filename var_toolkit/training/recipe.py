"""A training recipe: everything that decides the result of a run, read from one YAML file."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from var_toolkit.config_files import read_yaml
from var_toolkit.formats.directory import require_buildable
from var_toolkit.formats.limits import network_config
from var_toolkit.strict_fields import build, refuse_unknown_keys, shown
from var_toolkit.training.registry import objective_class

MOST_RANK = 4_096
MOST_HELD_OUT = 2_048  # images of files, which stay in memory decoded, as bytes


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)


@dataclass(frozen=True)
class StillLifesData:
    """The synthetic data set, rendered once and stored on disk."""

    kind: Literal["still-lifes"] = "still-lifes"
    count: int = 100_000
    validation_count: int = 2_000
    control: Literal["edges"] | None = None  # the control image of each image, as the renderer draws it

    def __post_init__(self) -> None:
        _require(self.count > 0, f"count is {self.count}; expected a number above 0")
        _require(self.validation_count >= 0, f"validation_count is {self.validation_count}; expected 0 or more")


@dataclass(frozen=True)
class ScenesData:
    """Synthetic scenes of one to three solids with captions, 128 px, rendered once and stored on disk."""

    kind: Literal["scenes"] = "scenes"
    count: int = 40_000
    validation_count: int = 1_000

    def __post_init__(self) -> None:
        _require(self.count > 0, f"count is {self.count}; expected a number above 0")
        _require(self.validation_count >= 0, f"validation_count is {self.validation_count}; expected 0 or more")


@dataclass(frozen=True)
class SceneEditsData:
    """Pairs of scenes with instructions, 128 px, rendered once and stored on disk: the first scenes, edited."""

    kind: Literal["scene-edits"] = "scene-edits"
    count: int = 16_000
    validation_count: int = 500

    def __post_init__(self) -> None:
        _require(self.count > 0, f"count is {self.count}; expected a number above 0")
        _require(self.validation_count >= 0, f"validation_count is {self.validation_count}; expected 0 or more")


@dataclass(frozen=True)
class FoldersData:
    """Images in one folder a class, as ImageNet is unpacked: `root` holds the class folders."""

    root: str
    size: int
    kind: Literal["folders"] = "folders"
    validation_root: str | None = None
    workers: int = 8
    flip: bool = False  # mirror half of the training images
    class_names: str | tuple[str, ...] | None = None  # imagenet, or a name for each class; else those of the folders
    control_root: str | None = None  # control images, under the names and in the sizes of the images of `root`
    validation_control_root: str | None = None  # likewise of `validation_root`

    def __post_init__(self) -> None:
        _require(self.size > 0, f"size is {self.size}; expected a number above 0")
        _require(self.workers >= 0, f"workers is {self.workers}; expected 0 or more")
        _require(
            (self.validation_control_root is None) == (self.validation_root is None or self.control_root is None),
            "control_root, validation_root and validation_control_root go together; give validation_control_root with "
            "the other two, and only then",
        )

    @property
    def control(self) -> str | None:
        """Where the control images are."""
        return self.control_root


@dataclass(frozen=True)
class CaptionsData:
    """Images with captions: files beside text files, or those of JSON lines, parquet files or WebDataset shards."""

    root: str
    size: int
    kind: Literal["captions"] = "captions"
    validation_root: str | None = None
    validation_count: int = 0  # held out of `root`, where there is no other root
    workers: int = 8
    flip: bool = False  # mirror half of the training images, although their captions may say left and right
    image_field: str | None = None
    caption_fields: tuple[str, ...] | None = None  # one of all their captions is drawn in each epoch

    def __post_init__(self) -> None:
        _require(self.size > 0, f"size is {self.size}; expected a number above 0")
        _require(self.workers >= 0, f"workers is {self.workers}; expected 0 or more")
        held_out = f"validation_count is {self.validation_count}"
        _require(0 <= self.validation_count <= MOST_HELD_OUT, f"{held_out}; expected 0 to {MOST_HELD_OUT}")
        _require(
            not self.validation_count or self.validation_root is None,
            f"{held_out}, but validation_root is given; remove one of them",
        )
        _require(self.caption_fields != (), "caption_fields is empty; name a field, or remove it")


@dataclass(frozen=True)
class SamplesData:
    """Samples of the target model with uniformly distributed classes, generated once and stored on disk as tokens."""

    kind: Literal["samples"] = "samples"
    count: int = 6_000
    validation_count: int = 500
    class_names: Literal["imagenet", "still-lifes"] | None = None  # of the teacher, which its weights do not tell

    def __post_init__(self) -> None:
        _require(self.count > 0, f"count is {self.count}; expected a number above 0")
        _require(self.validation_count >= 0, f"validation_count is {self.validation_count}; expected 0 or more")


Data = StillLifesData | ScenesData | SceneEditsData | FoldersData | CaptionsData | SamplesData
DATA: dict[str, type[Data]] = {
    "still-lifes": StillLifesData,
    "scenes": ScenesData,
    "scene-edits": SceneEditsData,
    "folders": FoldersData,
    "captions": CaptionsData,
    "samples": SamplesData,
}


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW, or Muon for the matrices of hidden layers and AdamW for the rest (`optimisers.py`).

    Give `lr` (absolute) or `base_lr` (peak = base_lr * batch_size / 256, as papers quote it).
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float | None = None
    base_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    final_weight_decay: float | None = None

    def __post_init__(self) -> None:
        _require((self.lr is None) != (self.base_lr is None), "give exactly one of lr and base_lr")
        for name in ("lr", "base_lr", "eps"):
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, f"{name} is {value}; expected a number above 0")
        for name in ("weight_decay", "final_weight_decay"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < math.inf, f"{name} is {value}; expected 0 or more")
        _require(all(0 <= beta < 1 for beta in self.betas), f"betas is {self.betas}; expected numbers in [0, 1)")

    def peak(self, batch_size: int) -> float:
        return self.lr if self.lr is not None else (self.base_lr or 0.0) * batch_size / 256


@dataclass(frozen=True)
class ScheduleConfig:
    """Warm-up over a fraction of the run from `start` x peak, then `kind` down to `final` x peak."""

    kind: Literal["lin0", "cosine", "constant"] = "lin0"
    warmup: float = 0.02
    start: float = 0.005
    final: float = 0.1

    def __post_init__(self) -> None:
        for name in ("warmup", "start", "final"):
            _require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; expected a fraction in [0, 1]")


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA or a DoRA that is trained in place of the network, by peft."""

    kind: Literal["lora", "dora"] = "lora"
    rank: int = 8
    alpha: float = 16.0  # what the adapter adds is multiplied by alpha / rank
    targets: tuple[str, ...] | None = None  # ends of names of layers; by default all linear ones of transformer blocks

    def __post_init__(self) -> None:
        _require(1 <= self.rank <= MOST_RANK, f"rank is {self.rank}; expected 1 to {MOST_RANK}")
        _require(0 < self.alpha < math.inf, f"alpha is {self.alpha}; expected a number above 0")
        _require(self.targets != (), "targets is empty; name layers, or remove it")


@dataclass(frozen=True)
class Recipe:
    """One training run.

    `batch_size` is global: it is split over the processes, and there into `accumulate` micro-batches.
    """

    objective: str
    model: Any
    data: Data
    optimiser: OptimiserConfig
    batch_size: int
    steps: int | None = None
    epochs: int | None = None
    tokenizer: str | None = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    grad_clip: float | None = 2.0
    ema: float | None = None
    precision: Literal["bf16", "fp32", "fp16"] = "bf16"
    seed: int = 0
    checkpoint_minutes: float = 10.0
    log_every: int = 20
    sample_every: int = 1000
    validate_every: int = 1000
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    accumulate: int = 1  # micro-batches of a step, whose gradients add up to those of the whole batch
    checkpoint_activations: bool = False  # compute those within transformer blocks again instead of keeping them
    adapter: AdapterConfig | None = None  # what is trained in place of the network
    objective_options: Any = None
    family: str | None = None  # of the network, if it is not that of the objective

    def __post_init__(self) -> None:
        _require((self.steps is None) != (self.epochs is None), "give exactly one of steps and epochs")
        for name in ("batch_size", "steps", "epochs", "log_every", "sample_every", "validate_every", "accumulate"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} is {value}; expected a number above 0")
        _require(self.checkpoint_minutes >= 0, f"checkpoint_minutes is {self.checkpoint_minutes}; expected 0 or more")
        _require(self.ema is None or 0 < self.ema < 1, f"ema is {self.ema}; expected a decay in (0, 1), or null")
        _require(self.grad_clip is None or self.grad_clip > 0, f"grad_clip is {self.grad_clip}; expected > 0, or null")
        _require(
            self.optimiser.kind == "adamw" or self.parallel == "ddp",
            "optimiser: kind is muon, which needs whole matrices; take parallel: ddp, or kind: adamw",
        )
        _require(
            self.batch_size % self.accumulate == 0,
            f"accumulate is {self.accumulate}; batch_size, {self.batch_size}, must be a multiple of it",
        )
        count = getattr(self.data, "count", self.batch_size)  # of folders it is not known yet
        _require(self.batch_size <= count, f"batch_size is {self.batch_size}, but there are only {count} images")

    @property
    def at_a_time(self) -> int:
        """How many images of a batch are computed together, by all processes."""
        return self.batch_size // self.accumulate

    def total_steps(self, images: int) -> int:
        return self.steps if self.steps is not None else (self.epochs or 0) * (images // self.batch_size)


# These fields say how to run and when to look, not what is trained: a run may continue with other values. So may those
# of data that a checkpoint does not depend on.
FREE_TO_CHANGE = frozenset(
    {
        "steps",
        "epochs",
        "checkpoint_minutes",
        "log_every",
        "sample_every",
        "validate_every",
        "parallel",
        "compile",
        "accumulate",
        "checkpoint_activations",
    }
)
FREE_IN_DATA = frozenset({"workers", "class_names"})


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; ValueError in one line for whatever is wrong with it."""
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise ValueError(f"the recipe {path} does not exist; give the path of a YAML file") from None
    return recipe_from(values, where=str(path))


def recipe_from(values: object, *, where: str = "recipe") -> Recipe:
    """The recipe in a mapping; `where` names it in complaints."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a mapping of settings, got {shown(values)}")
    refuse_unknown_keys(values, [one.name for one in dataclasses.fields(Recipe)], where=where)
    try:
        objective = objective_class(str(values.get("objective")), values.get("family"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    parts = dict(values)
    model, options = ({} if values.get(name) is None else values[name] for name in ("model", "objective_options"))
    parts["model"] = network_config(objective.config_type(), model, where=f"{where}: model")
    require_buildable(parts["model"], where=f"{where}: model")
    parts["objective_options"] = build(objective.options_type, options, where=f"{where}: objective_options")
    parts["data"] = _read_data(values.get("data"), objective.data_kinds, where=f"{where}: data")
    recipe = build(Recipe, parts, where=where)
    if not objective.reads_control and getattr(recipe.data, "control", None) is not None:
        raise ValueError(
            f"{where}: data: objective {recipe.objective} reads no control images; remove them, or use car"
        )
    for name, why in objective.refused.items():
        if getattr(recipe, name) != Recipe.__dataclass_fields__[name].default:
            raise ValueError(f"{where}: objective {recipe.objective} takes no {name}: {why}; remove it")
    if recipe.adapter is not None and getattr(recipe.objective_options, "initial", None) is None:
        raise ValueError(f"{where}: adapter needs the weights that it adapts; give initial in objective_options")
    objective.check(recipe, where=where)
    return recipe


def _read_data(values: object, allowed: tuple[str, ...], *, where: str) -> Data:
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(kind, str) or kind not in allowed:
        raise ValueError(f"{where}: kind is {shown(kind)}; allowed: {', '.join(allowed)}")
    return build(DATA[kind], values, where=where)
