"""Next-token decoding (LlamaGen, arXiv 2406.06525): one map, drawn token by token from the class on.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from var_toolkit.core.filters import draw, filter_top_k_top_p, guide
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.preserved import Preserved

if TYPE_CHECKING:
    from var_toolkit.core.plan import Stage


def draw_tokens(
    stage: Stage, labels_R: Tensor, noise: Noise, cache: Any, checks: FiniteCheck, preserved: Preserved | None = None
) -> Tensor:
    """The map of each image, (B, L): a token depends on the class and on all tokens before it, also preserved ones.

    It does not depend on preserved tokens after it.
    """
    backbone: Any = stage.backbone
    count = backbone.config.tokens
    uniform_BL = noise.uniform(Stream.TOKEN, 0, count)
    hidden = backbone.next_hidden(labels_R, labels_R.new_empty(len(labels_R), 0), cache=cache)
    found: list[Tensor] = []
    for position in range(count):
        logits = choices(stage, backbone.next_logits(hidden), position, checks, f"the logits of token {position}")
        here = slice(position, position + 1)
        drawn = draw(logits, uniform_BL[:, here])
        found.append(drawn if preserved is None else preserved.merge_tokens(0, drawn, here))
        if position + 1 < count:
            hidden = backbone.next_hidden(None, found[-1].repeat(stage.rows, 1), cache=cache)
    return torch.cat(found, dim=1)


def choices(
    stage: Stage,
    logits_RLV: Tensor,
    position: int | Tensor,
    checks: FiniteCheck | None = None,
    what: str = "",
) -> Tensor:
    """Logits of the rows -> those that the tokens are drawn from (B, L, V): guided, tempered and filtered.

    `position` is that of the token in the map: one for all, or one each, (B, L). As published, where guidance has ended
    the null half is still computed and the conditional half is used alone; and the filters act after the temperature,
    while those of next-scale models act before it. `checks` records whether the guided logits are finite, as `what`.
    """
    if stage.guidance > 0:
        logits_RLV = _guided(stage, logits_RLV, position)
    if checks is not None:
        checks.note(logits_RLV, what, stage)
    return filter_top_k_top_p(logits_RLV / stage.temperature, top_k=stage.top_k, top_p=stage.top_p)


def _guided(stage: Stage, logits_RLV: Tensor, position: int | Tensor) -> Tensor:
    if stage.guided_tokens is None:
        return guide(logits_RLV, stage.guidance)
    if isinstance(position, int):  # known to the host: no copy to the device, and one half of the work
        return guide(logits_RLV, stage.guidance) if position < stage.guided_tokens else logits_RLV.chunk(2)[0]
    within = position < stage.guided_tokens
    return torch.where(within.unsqueeze(-1), guide(logits_RLV, stage.guidance), logits_RLV.chunk(2)[0])
