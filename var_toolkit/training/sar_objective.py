"""Self-Autoregressive Refinement (SAR, arXiv 2512.06421 and its release): a FlexVAR learns from its own samples.

Letters: B images, R rows (2B under guidance: conditional half first), L tokens, V vocabulary, K scales, c channels.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from var_toolkit.core.filters import filter_top_k_top_p, guide, pick
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.categorical import token_losses
from var_toolkit.ranges import checked
from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws, Numbers
from var_toolkit.training.flexvar_objective import FlexVarObjective, FlexVarOptions, random_schedule
from var_toolkit.training.objectives import Loss
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective


class SelfForced(NamedTuple):
    """What the two passes give."""

    logits: Tensor  # (B, L, V), of the true tokens, under teacher forcing
    own_logits: Tensor  # (B, n, V), of the tokens that were rolled out
    targets: Tensor  # (B, n)


@dataclass(frozen=True)
class SarOptions(FlexVarOptions):
    """How samples are drawn and rolled out, and the weight of their loss.

    As published, `rollout` is the last transition alone; the paper has all of them. `target` says what the second pass
    learns: the sample, or the true tokens.
    """

    sigma: float = 0.01
    rollout: Literal["last", "all"] = "last"
    target: Literal["sample", "truth"] = "sample"
    guidance: float = 1.2  # 0 is off
    top_k: int = 900
    top_p: float = 0.96

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sigma", "guidance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number of 0 or more")
        for name in ("top_k", "top_p"):
            checked(name, getattr(self, name))


@objective("sar")
class SarObjective(FlexVarObjective):
    """The loss of FlexVAR, and a small one for a second pass that reads what the first has drawn.

    The release drops other labels in the second pass than in the first; here both have the same.
    """

    options_type: ClassVar[type] = SarOptions
    log_note = "self_loss is the cross-entropy of the second pass, which reads tokens that the network has drawn itself"

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Both passes, of which the first may have an unconditional half, as one."""
        return super().example(recipe, rows * (3 if recipe.objective_options.guidance > 0 else 2))

    def _loss(self, batch: Batch, draws: Draws) -> Loss:
        schedule = random_schedule(self.scales, self.options, draws.generator("schedule"))
        with torch.no_grad(), torch.autocast(batch.labels.device.type, enabled=False):
            features = self.tokenizer.features(batch.images) if batch.features is None else batch.features
            pyramid = self.tokenizer.pyramid_of(schedule)
            tokens = pyramid.encode(features)
        found = self_forced(
            self.networks["var"],
            pyramid,
            self._labels(batch, draws),
            tokens,
            self.options,
            null_class=self.classes,
            numbers=draws.numbers("samples"),
        )
        smooth, true_BL = self.options.label_smoothing, torch.cat(tokens, dim=1)
        loss = token_losses(found.logits, true_BL, label_smoothing=smooth).mean()
        own = token_losses(found.own_logits, found.targets, label_smoothing=smooth).mean()
        accuracy = (found.logits.detach().argmax(dim=2) == true_BL).float().mean()
        terms = {"loss": loss.detach(), "self_loss": own.detach(), "accuracy": accuracy}
        return Loss(loss + self.options.sigma * own, terms)


def self_forced(
    network: nn.Module,
    pyramid: Any,
    labels_B: Tensor,
    tokens: list[Tensor],
    options: SarOptions,
    *,
    null_class: int,
    numbers: Numbers,
) -> SelfForced:
    """Both passes of a step, for the true tokens of each scale, K maps (B, n_k). No gradient flows through samples."""
    schedule: Schedule = pyramid.scales
    with torch.no_grad(), torch.autocast(labels_B.device.type, enabled=False):
        inputs = pyramid.teacher_inputs(tokens)
    copies = 2 if options.guidance > 0 else 1
    labels_R = torch.cat((labels_B, torch.full_like(labels_B, null_class)))[: copies * len(labels_B)]
    logits_RLV = network(labels_R, inputs.repeat(copies, 1, 1), schedule=schedule)
    with torch.no_grad():
        drawn = _drawn(logits_RLV.detach(), schedule, options, numbers)
    targets = drawn if options.target == "sample" else tokens
    logits_BLV = logits_RLV[: len(labels_B)]
    if options.rollout == "all" or len(schedule) == 1:
        with torch.no_grad(), torch.autocast(labels_B.device.type, enabled=False):
            own = pyramid.teacher_inputs(drawn)
        later = schedule.lengths[0] if len(schedule) > 1 else 0
        found = network(labels_B, own, schedule=schedule)[:, later:]
        return SelfForced(logits_BLV, found, torch.cat(targets, dim=1)[:, later:])
    with torch.no_grad(), torch.autocast(labels_B.device.type, enabled=False):
        last = len(schedule) - 1
        own = pyramid.shrink(pyramid.grow(None, pyramid.embed(drawn[-2]), last - 1), last)
    alone = Schedule((1, schedule.patch_nums[-1]))
    return SelfForced(logits_BLV, network(labels_B, own, schedule=alone, bare_start=True)[:, 1:], targets[-1])


def _drawn(logits_RLV: Tensor, schedule: Schedule, options: SarOptions, numbers: Numbers) -> list[Tensor]:
    """Samples of all scales under teacher forcing, guided by the release's ramp, which is not FlexVAR's."""
    found = []
    for scale, part in enumerate(schedule.split(logits_RLV)):
        if options.guidance > 0:
            part = guide(part, options.guidance / 2 * (1 + scale / max(len(schedule) - 1, 1)))
        probabilities = filter_top_k_top_p(part, top_k=options.top_k, top_p=options.top_p).softmax(-1)
        found.append(pick(probabilities, numbers.uniform(*part.shape[:2])))
    return found
