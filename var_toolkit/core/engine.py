"""The engine that runs every plan.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, V vocabulary, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from var_toolkit.core.filters import draw, filter_top_k_top_p, guide, soft_codes
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.masked_refinement import refine
from var_toolkit.core.next_token import draw_tokens
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.plan import Plan, Stage, Tokenizer, is_next_token
from var_toolkit.core.preserved import Preserved, require_editable
from var_toolkit.heads.flow import draw_map


@dataclass(frozen=True)
class ScaleEvent:
    """What a callback learns after every scale."""

    scale: int
    tokens: Tensor  # (B, n_k), int64; continuous ones (B, n_k, C), float32
    latent: Tensor  # float32: the sum of all scales so far, (B, C, h, w); of continuous tokens their map, (B, C, p, p)
    tokenizer: Tokenizer

    def preview(self) -> Tensor:
        """The images as they would be if the finer scales stayed empty, float in [-1, 1], (B, 3, h, w)."""
        return self.tokenizer.decode(self.latent)


@dataclass(frozen=True)
class Decoded:
    """What decoding returns."""

    tokens: list[Tensor]  # K maps (B, n_k), int64; continuous ones (B, n_k, C), float32
    latent: Tensor  # (B, C, h, w), float32
    forward_passes: int
    evaluations: int  # of velocities, for continuous tokens
    cache_bytes: int  # keys and values at their largest
    speculation: Any = None  # what became of the drafts (`speculative.tally.Tally`), where there were some


class Canvas:
    """The latent that grows scale by scale, and the backbone inputs that follow from it."""

    def __init__(self, tokenizer: Tokenizer, preserved: Preserved | None = None) -> None:
        self.pyramid, self.scales, self.preserved = tokenizer.pyramid, tokenizer.scales, preserved
        self.latent: Tensor | None = None
        self.inputs: list[Tensor] = []  # of scales 1, 2, ... as far as they are known

    def of(self, images: Tensor | slice) -> Canvas:
        """A canvas that begins with what some images of this one have."""
        other = copy(self)
        other.latent = None if self.latent is None else self.latent[images]
        other.inputs = [inputs_BLC[images] for inputs_BLC in self.inputs]
        return other

    def add(self, codes_BLC: Tensor, scale: int) -> Tensor:
        latent: Tensor = self.pyramid.grow(self.latent, codes_BLC, scale)
        self.latent = latent = latent if self.preserved is None else self.preserved.merge_latent(scale, latent)
        if scale + 1 < len(self.scales):
            self.inputs.append(self.pyramid.shrink(latent, scale + 1))
        return latent

    def inputs_of(self, scales: range, copies: int) -> Tensor | None:
        """The inputs of some scales as rows (copies * B, L, C); scale 0 has none."""
        parts = self.inputs[max(scales.start, 1) - 1 : scales.stop - 1]
        return torch.cat(parts, dim=1).repeat(copies, 1, 1) if parts else None


@torch.inference_mode()
def decode(
    plan: Plan,
    labels_B: Tensor,
    noise: Noise,
    *,
    preserved: Preserved | None = None,
    on_scale: Callable[[ScaleEvent], None] | None = None,
) -> Decoded:
    """Draw the tokens of one image per label, all scales coarse to fine, except those that are preserved.

    The tokens of an image depend on its label and its own noise, not on the other images of the batch (up to the
    rounding of batched matrix products, which may differ with the batch size). ValueError if tokens are preserved and
    the plan speculates; FloatingPointError if logits or latents are not finite, which is read once, at the end, unless
    the networks are on the CPU.
    """
    if preserved is not None:
        require_editable(plan)
    speculation = plan.stages[0].speculation
    if speculation is not None:
        drawn: Decoded = speculation.decode(plan, labels_B, noise, on_scale=on_scale)
        return drawn
    canvas, checks = Canvas(plan.tokenizer, preserved), FiniteCheck()
    tokens: list[Tensor] = []
    condition: Any = None
    cache: Any = None
    passes, evaluations, cache_bytes = 0, 0, 0
    for stage, scales, fresh, capacities in plan.passes():
        backbone: Any = stage.backbone
        rows_R, k = labels_of_rows(stage, labels_B), scales.stop - 1
        if fresh:
            cache = None  # freed before the next backbone makes its own
            cache = backbone.new_cache(len(rows_R), capacities)
            condition = None if is_next_token(backbone) else backbone.condition(rows_R)
        else:
            cache.resize(capacities)
        if is_next_token(backbone):
            found = draw_tokens(stage, rows_R, noise, cache, checks, preserved)
            codes = canvas.pyramid.embed(found)
        else:
            inputs = canvas.inputs_of(scales, stage.rows)
            hidden = backbone.hidden(condition, inputs, scales=scales, cache=cache, subnet=stage.subnet)
            hidden = hidden[:, -plan.tokenizer.scales.lengths[k] :]
            found, codes = _drawn(stage, k, hidden, condition, canvas, noise, checks)
        latent = canvas.add(codes, k)
        tokens.append(found)
        passes, evaluations = passes + stage.forward_passes(k), evaluations + stage.evaluations()
        cache_bytes = max(cache_bytes, cache.nbytes)
        if on_scale is not None:
            on_scale(ScaleEvent(k, found, latent, plan.tokenizer))
    checks.require()
    return Decoded(tokens, latent, passes, evaluations, cache_bytes)


def _drawn(
    stage: Stage, k: int, hidden: Tensor, condition: Any, canvas: Canvas, noise: Noise, checks: FiniteCheck
) -> tuple[Tensor, Tensor]:
    """Tokens of a scale from its features (R, n_k, width), and their codes, (B, n_k, C)."""
    backbone: Any = stage.backbone
    scales, pyramid, preserved = canvas.scales, canvas.pyramid, canvas.preserved
    if stage.flow is not None:
        strength = stage.strength(scales.progress(k))
        found = draw_map(stage, k, hidden, noise, channels=backbone.config.latent_channels, strength=strength)
        checks.note(found, f"the latents of scale {k}", stage)
        found = found if preserved is None else preserved.merge_tokens(k, found)
        return found, found
    logits = scale_choices(stage, backbone.logits(condition, hidden), k, checks)
    span = (scales.offsets[k], scales.lengths[k])
    found = draw(logits, noise.uniform(Stream.TOKEN, *span), temperature=stage.temperature)
    found = found if preserved is None else preserved.merge_tokens(k, found)
    if stage.masked(k):
        found = refine(stage, k, found, logits, condition, canvas.inputs[k - 1], pyramid, noise, checks, preserved)
    if not stage.smooth:
        return found, pyramid.embed(found)
    gumbel = noise.gumbel(Stream.SMOOTH, *span, logits.shape[-1])
    codes = soft_codes(logits, gumbel, pyramid.embedding.weight, progress=scales.progress(k))
    return found, codes if preserved is None else torch.where(
        preserved.mask[k].unsqueeze(-1), pyramid.embed(found), codes
    )


def labels_of_rows(stage: Stage, labels_B: Tensor) -> Tensor:
    """The labels of the backbone's rows: under guidance, the null class for each image as well."""
    if stage.rows == 1:
        return labels_B
    return torch.cat((labels_B, torch.full_like(labels_B, stage.backbone.config.num_classes)))


def scale_choices(stage: Stage, logits: Tensor, k: int, checks: FiniteCheck, whose: str = "") -> Tensor:
    """Logits of the rows (R, n_k, V) -> those that the tokens are drawn from (B, n_k, V): guided and filtered.

    `whose` names the network in the error of `checks`, where a run has several.
    """
    if stage.guidance > 0:
        logits = guide(logits, stage.guidance * stage.backbone.scales.progress(k))
    checks.note(logits, f"the {whose}logits of scale {k}", stage)
    return filter_top_k_top_p(logits, top_k=stage.top_k, top_p=stage.top_p)
