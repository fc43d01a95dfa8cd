"""Masked refinement inside a scale (HMAR, arXiv 2506.04421): doubtful tokens are masked and redrawn.

A scale is drawn at once; then the least likely tokens are masked, and the network's masked branch redraws them given
the others, in as many passes as the schedule of the scale (`methods.masked_passes`) has further entries.

Letters: B images, L tokens of one scale, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from var_toolkit.core.filters import pick
from var_toolkit.core.noise import Stream
from var_toolkit.core.plan import Step
from var_toolkit.core.preserved import Preserved
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.head import Drawn, Setting


def redrawn(step: Step, first: Drawn, at: Setting, inputs_BLc: Tensor, preserved: Preserved | None = None) -> Tensor:
    """The tokens of a scale (B, L) after its masked passes, from those first drawn and the logits they came from.

    As published, these passes run without guidance, so only the conditional rows are computed. Preserved tokens are
    never masked, so a pass may draw fewer than its schedule says.
    """
    head, found_BL, logits_BLV = step.head, first.tokens, first.logits
    assert isinstance(head, Categorical)
    assert logits_BLV is not None
    doubt_BL, masked_BL = confidence(logits_BLV, found_BL), torch.ones_like(found_BL, dtype=torch.bool)
    if preserved is not None:
        masked_BL = masked_BL & ~preserved.mask[at.scale]
    for attempt, count in enumerate(step.masked):
        masked_BL = least_confident(doubt_BL, masked_BL, count) & masked_BL
        current = current_input(at.pyramid, at.scale, found_BL, masked_BL if step.clean else None)
        scales = range(at.scale, at.scale + 1)
        logits_BLV = at.network.refined(at.condition, inputs_BLc, current, masked_BL, scales=scales)
        at.note(logits_BLV, f"the logits of scale {at.scale}, masked pass {attempt + 1},", step.guidance)
        logits_BLV = head.filtered(logits_BLV)
        uniform_BL = at.noise.uniform(Stream.REFINE, at.first, at.count, attempt=attempt)
        found_BL = torch.where(masked_BL, pick(head.probabilities(logits_BLV), uniform_BL), found_BL)
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
