"""Search among candidates of a coarse scale, before the costly scales are drawn (after LSRS).

All candidates come from the same features, so the network computes no more; the cache holds nothing of them, because it
holds what scales were drawn from. Letters: B images, M candidates of each, R rows, L tokens, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from var_toolkit.heads.head import Drawn, Setting

if TYPE_CHECKING:
    from var_toolkit.core.bind import Bound
    from var_toolkit.core.engine import Drawing


def best_candidate(drawing: Drawing, one: Bound, hidden_RLC: Tensor, at: Setting) -> Drawn:
    """What the scorer of a step prefers among the candidates of each image; the first of them is the plain draw."""
    assert one.step.search is not None
    count, images = one.step.search.count, len(drawing.request)
    image = torch.arange(images, device=hidden_RLC.device).repeat_interleave(count)
    drawn = one.step.head.draw_candidates(hidden_RLC, at, count)
    tokens = drawn.tokens
    if drawing.preserved is not None:
        tokens = drawing.preserved.merge_tokens(at.scale, tokens)
    latent = drawing.canvas.of(image).add(tokens, at.scale, drawn.codes)
    labels = drawing.request.rows(one.network, 1).labels
    assert labels is not None  # a scorer is bound to networks of classes alone
    scores = one.scorer(latent, labels[image], at.scale).view(images, count)
    chosen = scores.argmax(1) + count * torch.arange(images, device=scores.device)
    codes = None if drawn.codes is None else drawn.codes[chosen]
    return Drawn(drawn.tokens[chosen], codes, drawn.logits)
