"""Masked refinement inside a scale (HMAR, arXiv 2506.04421): doubtful tokens are masked and drawn again.

A scale is drawn at once; the tokens that were least likely are hidden, and the network's masked branch draws them anew
beside those that stay, in as many passes as the schedule of the scale has further entries.

Letters: B pictures, L tokens of one scale, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from var_toolkit.sampling.filters import draw, filter_top_k_top_p
from var_toolkit.sampling.noise import Noise, Stream
from var_toolkit.scales import Scales

if TYPE_CHECKING:
    from var_toolkit.sampling.plan import Stage

# How many tokens are settled in each pass, by the side of the scale; scales that are not named take one pass.
NAMED: dict[str, dict[int, tuple[int, ...]]] = {
    "published": {2: (1, 3), 3: (1, 1, 2, 5)},  # of the released sampler: 14 passes at 256 px
    "benchmark-256": {2: (1, 3), 3: (1, 3, 5)},  # of the paper's speed tables, by resolution
    "benchmark-512": {2: (1, 3), 3: (1, 1, 2, 5), 4: (5, 11)},
    "benchmark-1024": {2: (1, 3), 3: (1, 1, 2, 5), 4: (3, 5, 8)},
}
OFF = "off"
REST = "..."


@dataclass(frozen=True)
class Refinement:
    """How many tokens of each scale are settled in each pass: one tuple a scale, its numbers sum to its tokens.

    The first number counts the draw of the whole scale, each further one a masked pass. Tokens that stay visible are
    shown as the published code shows them: the convolution that spreads them over the latent has seen the masked ones
    too. `clean` empties the masked places before; weights that were trained the published way did not learn from that.
    """

    schedule: tuple[tuple[int, ...], ...]
    clean: bool = False

    def masked(self, scale: int) -> tuple[int, ...]:
        """How many tokens are masked in each masked pass of a scale: all that are not settled before it."""
        counts = self.schedule[scale]
        return tuple(sum(counts[step:]) for step in range(1, len(counts)))

    def require_fit(self, scales: Scales) -> None:
        """ValueError if this is no schedule for these scales."""
        if len(self.schedule) != len(scales):
            raise ValueError(f"refine has {len(self.schedule)} lists for {len(scales)} scales; give one list a scale")
        for k, (counts, tokens) in enumerate(zip(self.schedule, scales.lengths, strict=True)):
            shown = ",".join(map(str, counts))
            if any(count < 1 for count in counts) or sum(counts) != tokens:
                raise ValueError(f"refine: scale {k} has {shown}; it must be positive numbers that sum to {tokens}")
        if len(self.schedule[0]) > 1:
            raise ValueError("refine: the first scale comes from the class alone; it must have one number")

    def __str__(self) -> str:
        extra = sum(len(counts) - 1 for counts in self.schedule)
        refined = [f"{k}: {','.join(map(str, counts))}" for k, counts in enumerate(self.schedule) if len(counts) > 1]
        return f"{extra} masked passes ({'; '.join(refined)}){' clean' if self.clean else ''}"


def refinement(wanted: str | Sequence[Sequence[int]], scales: Scales, *, clean: bool = False) -> Refinement | None:
    """What `--refine` means for a schedule of scales: a name, lists such as "1;1,3;1,1,2,5;...", or "off" (None).

    A last list of "..." stands for one pass for each scale that is left. ValueError if it does not fit.
    """
    if wanted == OFF:
        return None
    if isinstance(wanted, str) and wanted in NAMED:
        lists = tuple(NAMED[wanted].get(side, (side * side,)) for side in scales.patch_nums)
    elif isinstance(wanted, str):
        lists = _parsed(wanted, scales)
    else:
        lists = tuple(tuple(map(int, counts)) for counts in wanted)
    found = Refinement(lists, clean)
    found.require_fit(scales)
    return found


def _parsed(text: str, scales: Scales) -> tuple[tuple[int, ...], ...]:
    parts = [part.strip() for part in text.split(";")]
    if parts[-1] == REST:
        parts[-1:] = [str(tokens) for tokens in scales.lengths[len(parts) - 1 :]]
    try:
        return tuple(tuple(map(int, part.split(","))) for part in parts)
    except ValueError:
        raise ValueError(
            f'refine is {text!r}; it must be {OFF}, {", ".join(NAMED)}, or a list a scale such as "1;1,3;1,1,2,5;..."'
        ) from None


def refine(
    stage: Stage, scale: int, found_BL: Tensor, logits_BLV: Tensor, condition: Any, inputs_BLc: Tensor, quantize: Any,
    noise: Noise,
) -> Tensor:  # fmt: skip
    """The tokens of a scale (B, L) after its masked passes, from those first drawn and the logits they came from.

    As published, these passes run without guidance, so only the conditional rows are computed.
    """
    assert stage.refine is not None
    backbone: Any = stage.backbone  # a stage with `refine` has one that can
    place = (backbone.scales.offsets[scale], backbone.scales.lengths[scale])
    doubt_BL, masked_BL = confidence(logits_BLV, found_BL), torch.ones_like(found_BL, dtype=torch.bool)
    for step, count in enumerate(stage.refine.masked(scale)):
        masked_BL = least_confident(doubt_BL, masked_BL, count)
        current = current_input(quantize, scale, found_BL, masked_BL if stage.refine.clean else None)
        logits_BLV = backbone.refined(condition, inputs_BLc, current, masked_BL, scales=range(scale, scale + 1))
        logits_BLV = filter_top_k_top_p(logits_BLV, top_k=stage.top_k, top_p=stage.top_p)
        uniform_BL = noise.uniform(Stream.REFINE, *place, attempt=step)
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


def current_input(quantize: Any, scale: int, tokens_BL: Tensor, hidden_BL: Tensor | None = None) -> Tensor:
    """What the tokens of a scale add to the latent, shrunk to that scale (B, L, c); without those that are hidden."""
    codes = quantize.embed(tokens_BL)
    if hidden_BL is not None:
        codes = codes.masked_fill(hidden_BL.unsqueeze(-1), 0.0)
    return quantize.shrink(quantize.contribution(codes, scale), scale)
