"""Masked refinement inside a scale (HMAR, arXiv 2506.04421): doubtful tokens are masked and redrawn.

A scale is drawn at once; then the least likely tokens are masked, and the network's masked branch redraws them given
the others, in as many passes as the schedule of the scale (`refinement_schedule`) has further entries.

Letters: B images, L tokens of one scale, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from var_toolkit.core.filters import draw, filter_top_k_top_p
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.plan import Stage
from var_toolkit.core.preserved import Preserved


def refine(
    stage: Stage, scale: int, found_BL: Tensor, logits_BLV: Tensor, condition: Any, inputs_BLc: Tensor, pyramid: Any,
    noise: Noise, checks: FiniteCheck, preserved: Preserved | None = None,
) -> Tensor:  # fmt: skip
    """The tokens of a scale (B, L) after its masked passes, from those first drawn and the logits they came from.

    As published, these passes run without guidance, so only the conditional rows are computed. Preserved tokens are
    never masked, so a pass may draw fewer than its schedule says.
    """
    assert stage.refine is not None
    backbone: Any = stage.backbone  # a stage with `refine` has one that can
    span = (backbone.scales.offsets[scale], backbone.scales.lengths[scale])
    doubt_BL, masked_BL = confidence(logits_BLV, found_BL), torch.ones_like(found_BL, dtype=torch.bool)
    if preserved is not None:
        masked_BL = masked_BL & ~preserved.mask[scale]
    for step, count in enumerate(stage.refine.masked(scale)):
        masked_BL = least_confident(doubt_BL, masked_BL, count) & masked_BL
        current = current_input(pyramid, scale, found_BL, masked_BL if stage.refine.clean else None)
        logits_BLV = backbone.refined(condition, inputs_BLc, current, masked_BL, scales=range(scale, scale + 1))
        checks.note(logits_BLV, f"the logits of scale {scale}, masked pass {step + 1},", stage)
        logits_BLV = filter_top_k_top_p(logits_BLV, top_k=stage.top_k, top_p=stage.top_p)
        uniform_BL = noise.uniform(Stream.REFINE, *span, attempt=step)
        drawn_BL = draw(logits_BLV, uniform_BL, temperature=stage.temperature)
        found_BL = torch.where(masked_BL, drawn_BL, found_BL)
        doubt_BL = confidence(logits_BLV, found_BL)
    return found_BL


def confidence(logits_BLV: Tensor, tokens_BL: Tensor) -> Tensor:
    """The probability of each token under the filtered logits, before temperature, (B, L)."""
    chosen = logits_BLV.gather(-1, tokens_BL.unsqueeze(-1)).squeeze(-1)
    return (chosen - logits_BLV.logsumexp(dim=-1)).exp()


def least_confident(confidence_BL: Tensor, among_BL: Tensor, count: int) -> Tensor:
    """The `count` least confident positions of those that are true in `among_BL`, bool (B, L); the first win ties."""
    order = confidence_BL.masked_fill(~among_BL, torch.inf).sort(dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(among_BL).scatter(1, order, True)


def current_input(pyramid: Any, scale: int, tokens_BL: Tensor, hidden_BL: Tensor | None = None) -> Tensor:
    """What the tokens of a scale add to the latent, shrunk to that scale (B, L, c); without those that are hidden."""
    codes = pyramid.embed(tokens_BL)
    if hidden_BL is not None:
        codes = codes.masked_fill(hidden_BL.unsqueeze(-1), 0.0)
    return pyramid.shrink(pyramid.contribution(codes, scale), scale)
