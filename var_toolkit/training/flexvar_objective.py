"""Trains FlexVAR by teacher forcing on a new schedule at every step (arXiv 2502.20313 and its release).

Letters: B images, L tokens, V vocabulary, K scales, c latent channels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.categorical import token_losses
from var_toolkit.models.flexvar import FlexVAR
from var_toolkit.models.var import VAR
from var_toolkit.registry import Sampling
from var_toolkit.tokenizers.raster_vq import RasterVQ
from var_toolkit.training.batches import Batch, FeatureArray
from var_toolkit.training.code_cache import cached_features
from var_toolkit.training.data_sources import still_lifes
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import Loss, Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import network_from, start_from
from var_toolkit.training.var_objective import VarObjective, VarOptions, require_equal, require_share

COARSE_END = 10  # sides from 3 to this are coarse, those from there to the finest are fine
DROPS = (0.9, 0.95, 0.98, 0.99)  # one more side is left out for each of these that a uniform number exceeds


@dataclass(frozen=True)
class FlexVarOptions(VarOptions):
    """The published rule for schedules: 1, 2, some coarse and some fine sides, and the finest one."""

    coarse_sides: int = 5
    fine_sides: int = 2
    token_limit: int = 680  # of a schedule; above it one of its last four sides is left out, as often as necessary
    own_share: float = 0.05  # of steps at the schedule of the recipe

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(own_share=self.own_share)
        for name, least in (("coarse_sides", 0), ("fine_sides", 0), ("token_limit", 5)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")


@objective("flexvar")
class FlexVarObjective(VarObjective):
    """The mean cross-entropy of all tokens of a schedule; each map codes the whole image."""

    options_type: ClassVar[type] = FlexVarOptions
    network_type: ClassVar[Any] = FlexVAR
    tokenizer_type: ClassVar[Any] = RasterVQ
    sampling = Sampling(cfg=2.5, top_k=900, top_p=0.95)  # as published

    def _open_tokenizer(self) -> Any:
        return super()._open_tokenizer().for_schedule(Schedule(self.recipe.model.patch_nums))

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Labels, and the inputs of the longest of some schedules that are drawn."""
        own, options = Schedule(recipe.model.patch_nums), recipe.objective_options
        drawn = [random_schedule(own, options, torch.Generator().manual_seed(seed)) for seed in range(16)]
        longest = max(drawn, key=lambda one: one.total)
        inputs = torch.zeros(rows, longest.total - longest.lengths[0], recipe.model.latent_channels)
        return torch.zeros(rows, dtype=torch.long), inputs, None, longest

    def _require_fit(self, tokenizer: Any) -> None:
        require_equal(self.recipe.model, tokenizer, {"vocab_size": "vocab_size", "latent_channels": "code_dim"})

    def _start(self, network: Any, initial: str) -> None:
        """Load saved weights of a FlexVAR, or of a VAR as far as the two have tensors of the same name and shape."""
        saved = network_from(initial, VAR, what="initial")
        if isinstance(saved, FlexVAR):
            return start_from(network, initial)
        own = network.state_dict()
        named = saved.state_dict().items()
        alike = {name: tensor for name, tensor in named if name in own and tensor.shape == own[name].shape}
        if not any(name.startswith("blocks.") for name in alike):
            raise ValueError(f"initial: no layer of {initial} has the sizes of the recipe; give another, or remove it")
        network.load_state_dict(alike, strict=False)

    def _codes(self, workplace: Workplace, count: int, split: str) -> FeatureArray:
        """Latents of still lifes, from which the tokens of any schedule follow."""
        images, labels = still_lifes(workplace, count, split)
        found = cached_features(
            self.tokenizer, images, workplace.cache_dir, self._cache_name(split), progress=workplace.team.leads
        )
        return FeatureArray(found, labels, workplace.team.device)

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        schedule = random_schedule(self.scales, self.options, draws.generator("schedule"))
        logits_BLV, tokens_BL = self._predicted(self.networks["var"], self._labels(batch, draws), batch, schedule)
        losses_BL = token_losses(logits_BLV, tokens_BL, label_smoothing=self.options.label_smoothing)
        right_BL = (logits_BLV.detach().argmax(dim=2) == tokens_BL).float()
        return Loss(losses_BL.mean(), {"loss": losses_BL.detach().mean(), "accuracy": right_BL.mean()})

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Loss and accuracy with the true labels, at the schedule of the recipe."""
        return self._graded(*self._predicted(network, batch.labels, batch, self.scales))

    def _predicted(
        self, network: nn.Module, labels_B: Tensor, batch: Batch, schedule: Schedule
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, L, V) and the true tokens (B, L) of a schedule."""
        with torch.no_grad(), torch.autocast(labels_B.device.type, enabled=False):
            features = self.tokenizer.features(batch.images) if batch.features is None else batch.features
            pyramid = self.tokenizer.pyramid_of(schedule)
            tokens = pyramid.encode(features)
            inputs_BLc = pyramid.teacher_inputs(tokens)
        return network(labels_B, inputs_BLc, schedule=schedule), torch.cat(tokens, dim=1)


def random_schedule(own: Schedule, options: FlexVarOptions, generator: torch.Generator) -> Schedule:
    """The schedule of one step. It ends with the finest side of `own`, unless too many tokens leave that out."""
    if float(torch.rand((), generator=generator)) < options.own_share:
        return own
    coarse = _some(range(3, min(COARSE_END + 1, own.finest)), options.coarse_sides, generator)
    fine = _some(range(COARSE_END + 1, own.finest), options.fine_sides, generator)
    sides = sorted({1, 2, *coarse, *fine, own.finest})
    uniform = float(torch.rand((), generator=generator))
    for _ in range(sum(uniform > limit for limit in DROPS)):
        if len(sides) > 3:
            del sides[_one(2, len(sides) - 1, generator)]
    while Schedule(tuple(sides)).total > options.token_limit:
        del sides[_one(max(len(sides) - 4, 1), len(sides), generator)]
    return Schedule(tuple(sides))


def _some(sides: range, count: int, generator: torch.Generator) -> list[int]:
    return [sides[int(i)] for i in torch.randperm(len(sides), generator=generator)[:count]]


def _one(low: int, end: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, end, (), generator=generator))
