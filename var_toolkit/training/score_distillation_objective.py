"""Conditional score distillation of VAR, after Distilled Decoding 2 (arXiv 2510.21003): a student without trajectories.

The teacher's logits make the score of a noisy token known in closed form. A guidance network learns the score of the
student's own tokens, each given the student's coarser ones, and the student learns where the two differ. First the
guidance network learns the teacher's score on images of the teacher (`pretrain`), then that of the student alone
(`align`); after that, `guidance_updates` of it alternate with one of the student.

The scores, the losses and their order are the paper's. The authors have not released code, and two things are ours: the
student is that of Distilled Decoding 1, whose embedding head takes the place of a small MLP, so that it draws by the
same plans; and scores are compared as velocities, which weighs small times less. Time 0 is data, 1 is noise.

Letters: B images, L tokens, N = B * L, V codes, c channels of a code, C features.
"""

import sys
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.core.bind import Run, bind, run_of
from var_toolkit.core.filters import guide
from var_toolkit.core.plan import BACKBONE, plan_of
from var_toolkit.guidance import weight
from var_toolkit.heads.categorical import Categorical
from var_toolkit.methods.distilled import in_steps
from var_toolkit.models.distilled_var import DistilledVAR
from var_toolkit.models.layers.diffusion_head import DiffusionMLP
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.registry import Sampling, family_of
from var_toolkit.training.batches import Batch, Source, TokenArray
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import NO_ADAPTER, WHOLE_BATCH, Loss, Phase, Workplace
from var_toolkit.training.recipe import Recipe, SamplesData
from var_toolkit.training.registry import objective
from var_toolkit.training.sample_cache import cached_samples
from var_toolkit.training.starting_weights import network_from
from var_toolkit.training.var_objective import VarObjective

OWN = ("coded", "jumps", "latent_channels", "drop_path")  # sizes that teacher and student need not share
ADAM = 2  # numbers that the optimiser holds of each weight


@dataclass(frozen=True, kw_only=True)
class ScoreDistillationOptions:
    """The teacher, how it draws, and the order of updates."""

    teacher: str  # directory or name of a VAR
    cfg: float = 2.0  # of the teacher, as its authors count
    top_k: int = 900
    top_p: float = 0.95
    pretrain: int = 0  # first steps: guidance on the teacher's images
    align: int = 0  # next steps: guidance on the student's, alone
    guidance_updates: int = 5  # for each update of the student
    head_width: int = 256  # of the guidance network's MLP
    head_depth: int = 3
    least_time: float = 0.02  # scores are not compared nearer to the data
    initial: str | None = None  # weights of a student to start from, instead of the teacher's

    def __post_init__(self) -> None:
        Categorical(top_k=self.top_k, top_p=self.top_p)  # raises ValueError
        for name, low in (("pretrain", 0), ("align", 0), ("guidance_updates", 1), ("head_width", 1), ("head_depth", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {low} or more")
        if not 0 < self.least_time < 1:
            raise ValueError(f"least_time is {self.least_time}; expected a number between 0 and 1")


class GuidanceNetwork(nn.Module):
    """The velocity of noisy tokens, each given the clean tokens of coarser scales: a VAR, and an MLP for each token."""

    def __init__(self, teacher: VAR, width: int, depth: int) -> None:
        super().__init__()
        self.backbone = deepcopy(teacher).requires_grad_(True)  # the teacher itself learns nothing
        for unused in (self.backbone.head, self.backbone.head_nm):
            unused.requires_grad_(False)
        self.mlp = DiffusionMLP(teacher.config.latent_channels, width, depth, teacher.config.embed_dim)
        self.mlp.init_weights()

    def forward(self, labels_B: Tensor, inputs_BLc: Tensor, noisy_BLc: Tensor, times_BL: Tensor) -> Tensor:
        """Velocities (B, L, c), float32; `inputs_BLc` are the tokenizer's inputs of the scales after the first."""
        condition = self.backbone.condition(Given(labels=labels_B))
        hidden = self.backbone.hidden(condition, inputs_BLc, scales=range(len(self.backbone.scales)))
        value, _ = self.mlp(noisy_BLc, 1000 * times_BL, self.mlp.cond_embed(hidden.float())).chunk(2, dim=-1)
        return cast(Tensor, value.float())


@objective("score-distillation")
class ScoreDistillationObjective(VarObjective):
    """Velocities of noise minus tokens for the guidance network; SiD's loss with alpha 1 for the student."""

    options_type: ClassVar[type] = ScoreDistillationOptions
    refused = WHOLE_BATCH | NO_ADAPTER
    network_type: ClassVar[Any] = DistilledVAR
    data_kinds: ClassVar[tuple[str, ...]] = ("samples",)
    log_note = (
        "loss is that of whichever network was updated; guidance is the error of velocities, which noise keeps above 0 "
        "once the student is learned; apart is the mean "
        "squared distance between the two denoised tokens, relative to the codes, and falls where the student improves"
    )

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        if recipe.model.coded or recipe.model.jumps:
            raise ValueError(
                f"{where}: coded is {recipe.model.coded} and jumps {list(recipe.model.jumps)}; the score of embeddings "
                "is distilled, in one step: set coded: 0 and jumps: []"
            )

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.device = workplace.team.device
        super().__init__(recipe, workplace)
        o = self.options
        self.networks["guidance"] = GuidanceNetwork(self.teacher, o.head_width, o.head_depth).to(self.device)
        self.sampling = Sampling(cfg=family_of(self.networks["var"]).cfg_off)
        self.codebook = self.tokenizer.pyramid.codebook()
        if workplace.team.leads:
            print(memory_told(self.networks.values(), self.teacher, ema=recipe.ema is not None), file=sys.stderr)

    def _begin(self, network: Any) -> None:
        teacher = network_from(self.options.teacher, VAR, what="teacher")
        if type(teacher) is not VAR:
            raise ValueError(f"teacher: {self.options.teacher} holds a {type(teacher).__name__}; expected a VAR")
        _require_equal(network, teacher, "the teacher")
        network.init_weights()
        network.start_from_teacher(teacher)
        if self.options.initial is not None:
            student = network_from(self.options.initial, DistilledVAR, what="initial")
            _require_equal(network, student, "initial")
            network.load_state_dict(student.state_dict())
        self.teacher = teacher.to(self.device).eval().requires_grad_(False)
        self.strength = weight({}, Sampling(cfg=self.options.cfg), teacher)
        self.ramp = teacher.guidance_ramp(teacher.scales)

    @classmethod
    def outline(cls, recipe: Recipe) -> dict[str, nn.Module]:
        """The student and the guidance network."""
        own, o = vars(recipe.model), recipe.objective_options
        teacher = VAR(VARConfig(**{each.name: own[each.name] for each in fields(VARConfig)})).requires_grad_(False)
        return super().outline(recipe) | {"guidance": GuidanceNetwork(teacher, o.head_width, o.head_depth)}

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """None: two networks take turns, and the student learns through both."""

    def freeze(self, network: Any) -> None:
        """Leave out what draws tokens: every token stays an embedding."""
        for unused in (network.head, network.head_nm):
            unused.requires_grad_(False)

    def _codes(self, workplace: Workplace, count: int, split: str) -> Source:
        assert isinstance(self.recipe.data, SamplesData)
        head = Categorical(self.options.top_k, self.options.top_p)
        run = run_of(self.tokenizer, self.teacher, guidance=self.strength, head=head)
        tokens, labels = cached_samples(run, count, split, workplace.cache_dir, progress=workplace.team.leads)
        return TokenArray(tokens, labels, workplace.team.device)

    def phases(self, step: int) -> list[Phase]:
        o, student = self.options, Phase(("var",), self._student_loss)
        if step < o.pretrain:
            return [Phase(("guidance",), self._teacher_score_loss)]
        turn = step - o.pretrain - o.align
        learns = turn >= 0 and turn % (o.guidance_updates + 1) == o.guidance_updates
        return [student if learns else Phase(("guidance",), self._guidance_loss)]

    def _teacher_score_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The teacher's closed-form score on its own images."""
        assert batch.tokens is not None
        codes_BLc = self.codebook[batch.tokens]
        inputs, noisy, times, _ = self._noised(codes_BLc)
        mean = self.teacher_means(batch.labels, inputs, noisy, times)
        found = self.networks["guidance"](batch.labels, inputs, noisy, times)
        loss = (found - (noisy - mean) / times.unsqueeze(-1)).square().mean()  # the score, as a velocity
        return Loss(loss, {"loss": loss.detach(), "teacher_score": loss.detach()})

    def _guidance_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The score of the student's tokens: -noise / t, which is noise minus token as a velocity."""
        with torch.no_grad():
            made_BLc = self._made(batch)
        inputs, noisy, times, noise = self._noised(made_BLc)
        found = self.networks["guidance"](batch.labels, inputs, noisy, times)
        loss = (found - (noise - made_BLc)).square().mean()
        return Loss(loss, {"loss": loss.detach(), "guidance": loss.detach()})

    def _student_loss(self, batch: Batch, draws: Draws) -> Loss:
        """SiD's loss, alpha 1: (f_teacher - f_guidance) (f_guidance - token), of denoised tokens f.

        Gradients flow to the token through all three, not to what it is conditioned on.
        """
        made_BLc = self._made(batch)
        inputs, noisy, times, _ = self._noised(made_BLc)
        wanted = self.teacher_means(batch.labels, inputs, noisy, times)
        seen = noisy - times.unsqueeze(-1) * self.networks["guidance"](batch.labels, inputs, noisy, times)
        scale = self.codebook.square().mean()
        loss = ((wanted - seen) * (seen - made_BLc)).mean() / scale
        apart = (wanted - seen).detach().square().mean() / scale
        return Loss(loss, {"loss": loss.detach(), "student": loss.detach(), "apart": apart})

    def _made(self, batch: Batch) -> Tensor:
        """The student's tokens from new noise, (B, L, c)."""
        shape = (len(batch.labels), self.scales.total, self.codebook.shape[1])
        noise_BLc = torch.randn(shape, device=self.device)
        embeddings_BLc, _ = self.networks["var"](batch.labels, noise_BLc, 0)
        return cast(Tensor, embeddings_BLc)

    def _noised(self, codes_BLc: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs that follow from codes, without gradients; the codes with noise; the times (B, L); the noise."""
        with torch.no_grad():
            inputs_BLc = inputs_of(self.tokenizer.pyramid, codes_BLc.detach())
        low = self.options.least_time
        times_BL = low + (1 - low) * torch.rand(codes_BLc.shape[:2], device=codes_BLc.device)
        noise_BLc, time = torch.randn_like(codes_BLc), times_BL.unsqueeze(-1)
        return inputs_BLc, (1 - time) * codes_BLc + time * noise_BLc, times_BL, noise_BLc

    def teacher_means(self, labels_B: Tensor, inputs_BLc: Tensor, noisy_BLc: Tensor, times_BL: Tensor) -> Tensor:
        """The teacher's denoised tokens, (B, L, c): from its guided and filtered logits, in closed form."""
        with torch.no_grad():
            both = torch.cat((labels_B, torch.full_like(labels_B, self.classes)))
            logits = self.teacher(both, inputs_BLc.repeat(2, 1, 1)).float()
            head = Categorical(self.options.top_k, self.options.top_p)
            parts = [
                head.filtered(guide(part, self.strength * share))
                for part, share in zip(logits.split(list(self.scales.lengths), dim=1), self.ramp, strict=True)
            ]
            log_p = torch.cat(parts, dim=1).log_softmax(-1)
        return denoised(noisy_BLc, times_BL, log_p, self.codebook)

    def _judged(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """How far a step of denoising by the teacher moves the student's tokens, relative to the codes."""
        noise = torch.randn(len(batch.labels), self.scales.total, self.codebook.shape[1], device=self.device)
        made, _ = network(batch.labels, noise, 0)
        times = torch.full(made.shape[:2], 0.1, device=self.device)
        inputs = inputs_of(self.tokenizer.pyramid, made)
        moved = self.teacher_means(batch.labels, inputs, 0.9 * made + 0.1 * torch.randn_like(made), times) - made
        return {"moved": moved.square().mean() / self.codebook.square().mean()}

    def _run(self, network: nn.Module, **settings: Any) -> Run:
        """Drawing in one step."""
        return bind(in_steps(plan_of(network), network, 1), {BACKBONE: network}, self.tokenizer)


def denoised(noisy_BLc: Tensor, times_BL: Tensor, log_p_BLV: Tensor, codes_Vc: Tensor) -> Tensor:
    """The mean code of every token given its noisy state, (B, L, c), each at its own time (`heads.code_flow`)."""
    with torch.autocast(noisy_BLc.device.type, enabled=False):  # these differences need float32
        x_BLc, time = noisy_BLc.float(), times_BL.float().unsqueeze(-1)
        codes_Vc = codes_Vc.float()
        # |x - (1 - t) c|^2 without |x|^2, which all codes share.
        apart_BLV = (1 - time) ** 2 * codes_Vc.square().sum(-1) - 2 * (1 - time) * (x_BLc @ codes_Vc.T)
        return (log_p_BLV.float() - apart_BLV / (2 * time**2)).softmax(-1) @ codes_Vc


def teacher_score(noisy_BLc: Tensor, times_BL: Tensor, log_p_BLV: Tensor, codes_Vc: Tensor) -> Tensor:
    """The gradient of the log density of noisy tokens, (B, L, c), in closed form."""
    time = times_BL.unsqueeze(-1)
    return -(noisy_BLc - (1 - time) * denoised(noisy_BLc, times_BL, log_p_BLV, codes_Vc)) / time**2


def inputs_of(pyramid: Any, codes_BLc: Tensor) -> Tensor:
    """The inputs of all scales after the first that follow from codes, or any vectors in their place, (B, L', c)."""
    latent, inputs = None, []
    *parts, _ = codes_BLc.split(list(pyramid.scales.lengths), dim=1)
    for scale, part in enumerate(parts):
        latent = pyramid.grow(latent, part, scale)
        inputs.append(pyramid.shrink(latent, scale + 1))
    return torch.cat(inputs, dim=1)


def memory_told(trained: Iterable[nn.Module], teacher: nn.Module, *, ema: bool) -> str:
    """What the weights take before anything is computed: of the student, the guidance network and the teacher."""
    student, guidance = ([p.numel() for p in network.parameters()] for network in trained)
    learned = sum(student) + sum(guidance)
    count = learned * (2 + ADAM) + sum(p.numel() for p in teacher.parameters()) + (sum(student) if ema else 0)
    return (
        f"student {sum(student) / 1e6:.1f} M and guidance network {sum(guidance) / 1e6:.1f} M parameters: "
        f"{4 * count / 2**20:,.0f} MiB with the teacher, gradients and optimisers, before activations"
    )


def _require_equal(network: nn.Module, other: nn.Module, what: str) -> None:
    ours, theirs = asdict(cast(Any, network.config)), asdict(cast(Any, other.config))
    for name in ours.keys() - set(OWN):
        if ours[name] != theirs[name]:
            raise ValueError(f"model: {name} is {ours[name]}, but {what} has {theirs[name]}; they must be equal")
