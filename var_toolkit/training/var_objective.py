"""Trains the VAR transformer by teacher forcing, after the published recipe (arXiv 2404.02905 and its release).

Letters: B images, L tokens, V vocabulary, K scales, C width, c latent channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_type_hints

import torch
from torch import Tensor, nn

from var_toolkit.conditions.class_names import Named
from var_toolkit.core.bind import Run, run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.categorical import Categorical, token_losses
from var_toolkit.models.family import Family
from var_toolkit.models.var import VAR
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.training.batches import Batch, Source, TokenArray
from var_toolkit.training.code_cache import cached_tokens
from var_toolkit.training.data_sources import (
    HeldOut,
    class_names_of,
    images_of,
    require_size,
    require_still_life_classes,
    shares,
    still_lifes,
)
from var_toolkit.training.draws import Draws, without_some
from var_toolkit.training.objectives import Loss, Objective, Phase, Workplace
from var_toolkit.training.recipe import CaptionsData, FoldersData, Recipe, StillLifesData
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import network_from, start_from

# As in the published code: parameters with these names, biases and 1D parameters have no weight decay.
NOT_DECAYED = (
    "cls_token", "start_token", "task_token", "cfg_uncond", "pos_embed", "pos_1LC", "pos_start", "start_pos",
    "lvl_embed", "gamma", "beta", "ada_gss", "moe_bias", "scale_mul",
)  # fmt: skip


PREVIEW: dict[str, Any] = {"guidance": 1.5, "head": Categorical(top_k=900, top_p=0.96)}


@dataclass(frozen=True)
class VarOptions:
    """Settings that are defaults in the published recipe, and the initial weights."""

    class_dropout: float = 0.1
    label_smoothing: float = 0.0
    adaln_gamma: float = 1e-3  # initial scale of the gates: 1e-3 for d16 and d20, down to 5e-6 for d36
    initial: str | None = None  # directory of weights to start from
    class_embedding: Literal["table", "still-life-factors"] = "table"

    def __post_init__(self) -> None:
        require_share(class_dropout=self.class_dropout, label_smoothing=self.label_smoothing)


@objective("var")
class VarObjective(Objective):
    """Cross-entropy on every token of every scale, with equal weights.

    Subclasses change the network, its initial weights (`_begin`), the loss (`_loss`), validation (`_judged`), or the
    number of scales that the network computes (`trained`).
    """

    options_type: ClassVar[type] = VarOptions
    network_type: ClassVar[Any] = VAR
    tokenizer_type: ClassVar[Any] = MultiScaleVQ
    sampling: Sampling = Sampling()  # default settings of the saved model
    log_note = (
        "accuracy is the share of exactly predicted tokens; low values are normal, because many codes look alike: "
        "on ImageNet good images have 4 to 6 % overall"
    )

    @classmethod
    def config_type(cls) -> type:
        return cast(type, get_type_hints(cls.network_type.__init__)["config"])

    @classmethod
    def of_family(cls, family: Family) -> type["VarObjective"]:
        """The same objective for the networks of another family. ValueError if they need another tokenizer."""
        needed, ours = family.tokenizer.network, cls.tokenizer_type.__name__
        if needed != ours:
            raise ValueError(f"family {family.name} draws for {needed}; this objective is for {ours}")
        return type(cls.__name__, (cls,), {"network_type": family.network})

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        if recipe.tokenizer is None:
            raise ValueError(f"{where}: missing key 'tokenizer'; give the directory of a trained tokenizer")
        cls._check_scales(recipe, where)
        embedding = getattr(recipe.objective_options, "class_embedding", "table")
        if embedding == "still-life-factors" and recipe.model.num_classes != 1000:
            raise ValueError(f"{where}: class_embedding still-life-factors needs num_classes 1000")

    @classmethod
    def _check_scales(cls, recipe: Recipe, where: str) -> None:
        if len(recipe.model.patch_nums) < 2:
            raise ValueError(
                f"{where}: patch_nums is {list(recipe.model.patch_nums)}; training needs at least two scales"
            )

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options = recipe, recipe.objective_options
        device = workplace.team.device
        tokenizer = self._open_tokenizer()
        self._require_fit(tokenizer.config)
        require_size(recipe.data, tokenizer.image_side)
        self.tokenizer = tokenizer.to(device).requires_grad_(False)
        self.scales: Schedule = tokenizer.scales
        self.trained = self.scales
        network = self.empty_network()
        self._begin(network)
        self.freeze(network)
        self.networks = {"var": network.to(device)}
        self.record = nn.Module()
        self.source, self.held_out = self._data(workplace)

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Labels, and the inputs of all scales after the first."""
        scales = Schedule(recipe.model.patch_nums)
        inputs = torch.zeros(rows, scales.total - scales.lengths[0], recipe.model.latent_channels)
        return torch.zeros(rows, dtype=torch.long), inputs

    def _open_tokenizer(self) -> Any:
        """The tokenizer of the recipe, with the schedule of the model."""
        return network_from(str(self.recipe.tokenizer), self.tokenizer_type, what="tokenizer")

    def _require_fit(self, tokenizer: Any) -> None:
        """ValueError if the sizes of model and tokenizer differ."""
        pairs = {"patch_nums": "patch_nums", "vocab_size": "vocab_size", "latent_channels": "z_channels"}
        require_equal(self.recipe.model, tokenizer, pairs)

    def _begin(self, network: Any) -> None:
        """Set the initial weights of the network."""
        network.init_weights(adaln_gamma=self.options.adaln_gamma)
        if self.options.class_embedding == "still-life-factors":
            sum_of_factors_(network.class_emb.weight)
        if self.options.initial is not None:
            self._start(network, self.options.initial)

    def _start(self, network: Any, initial: str) -> None:
        """Load saved weights into the network."""
        start_from(network, initial)

    def empty_network(self) -> nn.Module:
        return cast(nn.Module, self.network_type(self.recipe.model))

    def save(self, network: nn.Module, directory: Path) -> None:
        """Save a model directory, which includes the tokenizer."""
        assert isinstance(network, self.network_type)
        Pipeline(self.tokenizer, network, self.sampling, self._class_names()).save_pretrained(directory)

    def _class_names(self) -> Named:
        """The class names that are saved with the model."""
        return class_names_of(self.recipe.data, self.source)

    @property
    def classes(self) -> int:
        """Number of classes, which is also the index of the null class."""
        return cast(int, self.recipe.model.num_classes)

    def _data(self, workplace: Workplace) -> tuple[Source, HeldOut]:
        data, size = self.recipe.data, self.recipe.at_a_time
        if isinstance(data, FoldersData | CaptionsData):
            return images_of(self.recipe, workplace, self.classes)
        if isinstance(data, StillLifesData):
            require_still_life_classes(self.classes)
        held_out = self._codes(workplace, data.validation_count, "validation") if data.validation_count else None
        parts = shares(len(held_out), workplace.team, size) if held_out is not None else []
        return self._codes(workplace, data.count, "train"), HeldOut(held_out, parts)

    def _codes(self, workplace: Workplace, count: int, split: str) -> Source:
        """Still lifes as the tokenizer codes them, computed once."""
        images, labels = still_lifes(workplace, count, split)
        name, leads = self._cache_name(split), workplace.team.leads
        tokens = cached_tokens(self.tokenizer, images, workplace.cache_dir, name, progress=leads)
        return TokenArray(tokens, labels, workplace.team.device)

    @staticmethod
    def _cache_name(split: str) -> str:
        from var_toolkit.still_life.data_set import VERSION

        return f"still-lifes-v{VERSION}-{split}"

    def phases(self, step: int) -> list[Phase]:
        return [Phase(("var",), self._loss)]

    def param_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        return decay_groups(network)

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        tokens_BL, inputs_BLc = self._forced(batch)
        return self._cross_entropy(self.networks["var"](self._labels(batch, draws), inputs_BLc), tokens_BL)

    def _labels(self, batch: Batch, draws: Draws) -> Tensor:
        """Labels (B), some of them replaced by the null class, for guidance."""
        return without_some(batch.labels, draws, self.options.class_dropout, self.classes)

    def _cross_entropy(self, logits_BLV: Tensor, tokens_BL: Tensor) -> Loss:
        losses_BL = token_losses(logits_BLV, tokens_BL, label_smoothing=self.options.label_smoothing)
        loss = losses_BL.mean()
        terms = self._by_scale("loss", losses_BL.detach(), logits_BLV.detach(), tokens_BL)
        return Loss(loss, {"loss": loss.detach(), **terms})

    def _forced(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) of the trained scales, and the network's inputs (B, L - n_0, c) under teacher forcing."""
        with torch.no_grad(), torch.autocast(batch.labels.device.type, enabled=False):
            tokens = self._tokens(batch)[: len(self.trained)]
            inputs_BLc = self.tokenizer.teacher_inputs(tokens)
        return torch.cat(tokens, dim=1), inputs_BLc[:, : self.trained.total - self.trained.lengths[0]]

    def _tokens(self, batch: Batch) -> list[Tensor]:
        if batch.tokens is not None:
            return self.scales.split(batch.tokens)
        assert batch.images is not None
        return self.tokenizer.encode(batch.images)

    def _by_scale(self, key: str, values_BL: Tensor, logits_BLV: Tensor, tokens_BL: Tensor) -> dict[str, Tensor]:
        """Accuracy, and per scale the accuracy and the mean of the values, named `key`."""
        right_BL = (logits_BLV.argmax(dim=2) == tokens_BL).float()
        terms = {"accuracy": right_BL.mean()}
        parts = zip(self.trained.split(values_BL), self.trained.split(right_BL), strict=True)
        for k, (values, right) in enumerate(parts):
            terms |= {f"{key}_scale_{k}": values.mean(), f"accuracy_scale_{k}": right.mean()}
        return terms

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The figures of `_judged` over all held-out images."""
        rows = [self._judged(network, batch) for batch in self.held_out]
        return {key: float(torch.stack([row[key] for row in rows]).mean()) for key in rows[0]} if rows else {}

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Loss and accuracy with the true labels."""
        tokens_BL, inputs_BLc = self._forced(batch)
        return self._graded(network(batch.labels, inputs_BLc), tokens_BL)

    def _graded(self, logits_BLV: Tensor, tokens_BL: Tensor) -> dict[str, Tensor]:
        losses_BL = token_losses(logits_BLV, tokens_BL)
        return {"loss": losses_BL.mean(), **self._by_scale("loss", losses_BL, logits_BLV, tokens_BL)}

    def preview(self, network: nn.Module) -> Tensor | None:
        """Sixteen images of evenly spaced classes, with the same noise at every call."""
        return self._drawn(self._run(network), 16)

    def _run(self, network: nn.Module, **settings: Any) -> Run:
        """The plan of the previews."""
        assert isinstance(network, self.network_type)
        return run_of(self.tokenizer, network, **(PREVIEW | settings))

    def _drawn(self, run: Run, count: int) -> Tensor:
        """Images of evenly spaced classes, (count, 3, h, w) in [-1, 1]."""
        labels = torch.linspace(0, self.classes - 1, count).round().long()
        device = next(self.tokenizer.parameters()).device
        return self.tokenizer.decode(decode(run, labels.to(device), Noise(range(count), device)).latent)


def require_share(**values: float) -> None:
    """ValueError for options, given by name, outside [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; expected a number in [0, 1)")


def decay_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Two groups of trainable parameters: with weight decay, and without (the release's rule)."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        free = parameter.ndim == 1 or name.endswith("bias") or any(part in name for part in NOT_DECAYED)
        (exempt if free else decayed).append(parameter)
    return [{"params": decayed, "decay": True}, {"params": exempt, "decay": False}]


@torch.no_grad()
def sum_of_factors_(table_NC: Tensor) -> None:
    """Initialise the embeddings of 1000 still-life classes as sums of three random vectors: solid, colour and ground.

    Classes that share a factor start close together, so that they learn from each other's images from the first step.
    The last row, the null class, is unchanged. It remains an ordinary embedding table.
    """
    labels = torch.arange(len(table_NC) - 1, device=table_NC.device)
    spread = table_NC.std() / 3**0.5
    solids, colours, grounds = (torch.randn(10, table_NC.shape[1], device=table_NC.device) * spread for _ in range(3))
    table_NC[:-1] = solids[labels // 100] + colours[labels // 10 % 10] + grounds[labels % 10]


def require_equal(model: Any, tokenizer: Any, pairs: Mapping[str, str]) -> None:
    """ValueError for a model whose sizes differ from those of its tokenizer; `pairs` are the names of the sizes."""
    for ours, theirs in pairs.items():
        asked, has = getattr(model, ours), getattr(tokenizer, theirs)
        if asked != has:
            raise ValueError(f"model: {ours} is {asked}, but the tokenizer has {has}")
