"""Distilled Decoding (arXiv 2412.17153): a student learns where the noise of an image leads with its teacher.

The authors have not released their training. The pairs of noise and codes, the start from the teacher and the first of
the two losses are the paper's; the solver, the second loss (the paper's is perceptual, on decoded images) and the
weight between the two are ours. Letters: B images, L tokens, V vocabulary, c channels of a code.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from var_toolkit.core.bind import Run, bind, run_of
from var_toolkit.core.plan import BACKBONE, plan_of
from var_toolkit.guidance import weight
from var_toolkit.heads.categorical import token_losses
from var_toolkit.heads.flowed import Flowed
from var_toolkit.methods.distilled import in_steps
from var_toolkit.models.distilled_llamagen import DistilledRasterGPT
from var_toolkit.models.distilled_var import DistilledVAR
from var_toolkit.models.family import Family
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.models.var import VAR
from var_toolkit.registry import Sampling, family_of
from var_toolkit.training.batches import Batch, Source
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import WHOLE_BATCH, Loss, Workplace
from var_toolkit.training.raster_gpt_objective import RasterGPTObjective
from var_toolkit.training.recipe import Recipe, SamplesData
from var_toolkit.training.registry import objective
from var_toolkit.training.sample_cache import Trajectories, cached_samples
from var_toolkit.training.starting_weights import network_from, start_from
from var_toolkit.training.var_objective import VarObjective

OWN = ("coded", "jumps", "latent_channels", "drop_path", "dropout")  # sizes that a teacher need not share


@dataclass(frozen=True, kw_only=True)
class DistilledDecodingOptions:
    """The teacher, how it draws what the student learns, and the losses."""

    teacher: str  # directory or name of a model
    cfg: float = 2.0  # of the teacher, as its authors count
    top_k: int = 0
    top_p: float = 0.0
    solver: str = "rk4"  # of the map from noise to codes
    flow_steps: int = 16
    distance: float = 1.0  # weight of the loss of embeddings; that of codes has weight 1
    initial: str | None = None  # weights of a student to start from, instead of the teacher's

    def __post_init__(self) -> None:
        Flowed(top_k=self.top_k, top_p=self.top_p, solver=self.solver, flow_steps=self.flow_steps)  # raises ValueError
        if not 0 <= self.distance < math.inf:
            raise ValueError(f"distance is {self.distance}; expected a number of 0 or more")


class Distillation(VarObjective):
    """Cross-entropy on the codes of the coarse tokens, and a squared distance to the codes of the others.

    Each image starts at noise or at one of the student's later steps, whichever is drawn; the tokens before are then
    given as codes. The distance is relative to the mean square of the codebook.
    """

    options_type: ClassVar[type] = DistilledDecodingOptions
    refused = WHOLE_BATCH
    network_type: ClassVar[Any] = DistilledVAR
    teacher_type: ClassVar[Any] = VAR
    data_kinds: ClassVar[tuple[str, ...]] = ("samples",)
    log_note = (
        "accuracy is the share of codes that are those to which the noise leads; distance is 1 for a student that "
        "always predicts zero; both are over the tokens that each step draws"
    )

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.device = workplace.team.device
        super().__init__(recipe, workplace)
        del self.teacher  # which has drawn what there is to learn
        self.sampling = Sampling(cfg=family_of(self.networks["var"]).cfg_off)
        self.codebook = self.tokenizer.pyramid.codebook()

    def _begin(self, network: Any) -> None:
        teacher = network_from(self.options.teacher, self.teacher_type, what="teacher")
        if type(teacher) is not self.teacher_type:
            wanted, found = self.teacher_type.__name__, type(teacher).__name__
            raise ValueError(f"teacher: {self.options.teacher} holds a {found}; expected a {wanted}")
        ours, theirs = asdict(network.config), asdict(teacher.config)
        for name in ours.keys() - set(OWN):
            if ours[name] != theirs[name]:
                raise ValueError(
                    f"model: {name} is {ours[name]}, but the teacher has {theirs[name]}; they must be equal"
                )
        network.init_weights()
        network.start_from_teacher(teacher)
        start_from(network, self.options.initial)
        self.teacher = teacher.to(self.device).eval().requires_grad_(False)
        self.starts, self.coded = torch.tensor(network.starts, device=self.device), network.coded_tokens()

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Labels, codes of all tokens, and how many of them are given."""
        labels, inputs = super().example(recipe, rows)
        first = getattr(recipe.model, "patch_nums", (1,))[0] ** 2  # which the teacher reads no inputs for
        return labels, torch.zeros(rows, first + inputs.shape[1], recipe.model.latent_channels), labels

    def _codes(self, workplace: Workplace, count: int, split: str) -> Source:
        assert isinstance(self.recipe.data, SamplesData)
        team, run = workplace.team, self.teacher_run()
        tokens, labels = cached_samples(run, count, split, workplace.cache_dir, progress=team.leads)
        channels = self.tokenizer.pyramid.codebook().shape[-1]
        return Trajectories(tokens, labels, team.device, split=split, channels=channels)

    def teacher_run(self) -> Run:
        """How the teacher goes from noise to codes."""
        o = self.options
        temperature_first = self.teacher.default_head.temperature_first
        head = Flowed(o.top_k, o.top_p, temperature_first=temperature_first, solver=o.solver, flow_steps=o.flow_steps)
        guidance = weight({}, Sampling(cfg=o.cfg), self.teacher)
        return run_of(self.tokenizer, self.teacher, guidance=guidance, head=head)

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        chosen_B = (draws.per_image("step") * len(self.starts)).long().clamp(max=len(self.starts) - 1)
        loss, terms = self._compared(self.networks["var"], batch, self.starts[chosen_B])
        return Loss(loss, {"loss": loss.detach(), **terms})

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Losses and accuracy from noise alone."""
        loss, terms = self._compared(network, batch, torch.zeros_like(batch.labels))
        return {"loss": loss, **terms}

    def _compared(self, network: nn.Module, batch: Batch, kept_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of students that start behind `kept_B` tokens, and detached numbers for the log."""
        assert batch.tokens is not None
        assert batch.noise is not None
        codes_BLc = self.codebook[batch.tokens]
        place_L = torch.arange(batch.tokens.shape[1], device=codes_BLc.device)
        drawn_BL = place_L >= kept_B[:, None]
        inputs = torch.where(drawn_BL.unsqueeze(-1), batch.noise, codes_BLc)
        embeddings_BLc, logits_BLV = network(batch.labels, inputs, kept_B)
        apart_BL = (embeddings_BLc - codes_BLc).square().mean(-1) / self.codebook.square().mean()
        as_codes, as_embeddings = drawn_BL & (place_L < self.coded), drawn_BL & (place_L >= self.coded)
        cross_entropy = _mean(token_losses(logits_BLV, batch.tokens), as_codes)
        distance = _mean(apart_BL, as_embeddings)
        right_BL = (logits_BLV.detach().argmax(-1) == batch.tokens).float()
        return cross_entropy + self.options.distance * distance, {
            "cross_entropy": cross_entropy.detach(),
            "distance": distance.detach(),
            "accuracy": _mean(right_BL, as_codes),
        }

    def _run(self, network: nn.Module, **settings: Any) -> Run:
        """Drawing in one step."""
        plan = in_steps(plan_of(network), network, 1)
        return bind(plan, {BACKBONE: network}, self.tokenizer)


class NextTokenDistillation(Distillation, RasterGPTObjective):
    """The same for students of networks that draw one token after another."""

    network_type: ClassVar[Any] = DistilledRasterGPT
    teacher_type: ClassVar[Any] = RasterGPT

    def _require_fit(self, tokenizer: Any) -> None:
        super()._require_fit(tokenizer)
        ours, theirs = self.recipe.model.latent_channels, tokenizer.code_dim
        if ours != theirs:
            raise ValueError(f"model: latent_channels is {ours}, but the tokenizer has {theirs}")


@objective("distilled-decoding")
class DistilledDecodingObjective(Distillation):
    """Of VAR, or with `family: distilled_llamagen` of LlamaGen's GPT."""

    @classmethod
    def of_family(cls, family: Family) -> type[VarObjective]:
        """The objective for a family of students. ValueError for any other."""
        for kind in (Distillation, NextTokenDistillation):
            if issubclass(family.network, kind.network_type):
                return kind
        raise ValueError(f"family {family.name} has no students; use distilled_var or distilled_llamagen")


def _mean(values_BL: Tensor, where_BL: Tensor) -> Tensor:
    """The mean where it is true; 0 if that is nowhere."""
    return (values_BL * where_BL).sum() / where_BL.sum().clamp(min=1)
