"""Best of N: candidates of every image are drawn and scored, and one of them is the image (`core.search.BestOf`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from var_toolkit.core.engine import Decoded
from var_toolkit.core.noise import candidate_seeds
from var_toolkit.core.search import BestOf
from var_toolkit.images import to_uint8
from var_toolkit.methods.scorers import CLASSES, PROMPTS, Scorer, find_scorer, name_of, require_scorer, scores_of
from var_toolkit.methods.speculative.tally import together
from var_toolkit.output import Chosen
from var_toolkit.wanted import Wanted

if TYPE_CHECKING:
    from var_toolkit.pipeline import Pipeline


class Made(NamedTuple):
    """Some drawn images."""

    drawn: Decoded
    pixels: Tensor | None  # float in [-1, 1], (B, 3, h, w); None where only latents are asked for


def best_of(pipe: Pipeline, given: dict[str, Any]) -> BestOf | None:
    """What the settings `best_of`, `scorer` and `threshold` ask for. ValueError if they do not fit the model."""
    count, scorer = given.get("best_of", 1), given.get("scorer")
    if count == 1:
        if odd := [name for name in ("scorer", "threshold") if name in given]:
            raise ValueError(f"{odd[0]} chooses among candidates; give best_of as well, 2 or more")
        return None
    draws = _draws(pipe)
    if scorer is None and draws not in (CLASSES, PROMPTS):
        raise ValueError("this model has no scorer of its own; give scorer: clip=MODEL for prompts, or module:function")
    name = name_of(scorer or ("stilllife" if draws == CLASSES else "scenes"))
    if not callable(scorer):
        require_scorer(name, draws=draws)
    return BestOf(count, name, given.get("threshold"))


def scorer_for(pipe: Pipeline, how: BestOf | None, given: object) -> Scorer | None:
    """The scorer of a plan, or the function that is given instead of it; None if the plan has none."""
    if how is None:
        if callable(given):
            raise ValueError("scorer chooses among candidates, and the plan has one; give best_of as well")
        return None
    if callable(given):
        return given
    require_scorer(how.scorer, draws=_draws(pipe))
    return find_scorer(how.scorer, pipe.device)


def _draws(pipe: Pipeline) -> str | None:
    """What a model draws, as `require_scorer` takes it."""
    if pipe.text is None:
        return CLASSES if pipe.data_set == "still-lifes" else None
    from var_toolkit.still_life.captions import vocabulary

    words = getattr(getattr(pipe.text_encoder, "config", None), "words", ())
    return PROMPTS if {*vocabulary()} <= {*words} else "prompts"


def chosen_of(
    wanted: Wanted, how: BestOf, scorer: Scorer, draw: Callable[[Wanted], Made], size: int
) -> tuple[Made, list[Chosen]]:
    """The chosen candidates of some images, drawn `size` at a time, and what was chosen."""
    asked = wanted.labels or wanted.prompts
    seeds = candidate_seeds(wanted.seeds, how.count)
    waiting = [(number, image) for number in range(how.count) for image in range(len(asked))]
    best: dict[int, tuple[Chosen, Made]] = {}
    found, every = set(), []
    while waiting:
        part, waiting = waiting[:size], waiting[size:]
        made = draw(wanted.of([image for _, image in part], [seeds[number][image] for number, image in part]))
        every.append(replace(made.drawn, tokens=[], latent=made.drawn.latent[:0].clone()))  # its counts alone
        assert made.pixels is not None
        scores = scores_of(scorer, to_uint8((made.pixels + 1) / 2).cpu(), [asked[image] for _, image in part])
        for row, ((number, image), score) in enumerate(zip(part, scores, strict=True)):
            if image in found or (image in best and score <= best[image][0].score):
                continue
            best[image] = (Chosen(number, seeds[number][image], score), _row(made, row))
            if how.threshold is not None and score >= how.threshold:
                found.add(image)
        waiting = [(number, image) for number, image in waiting if image not in found]
    kept = [best[image] for image in range(len(asked))]
    return _together([made for _, made in kept], every), [chosen for chosen, _ in kept]


def _row(made: Made, row: int) -> Made:
    """One of some images; its tensors do not hold on to the others."""
    drawn = replace(
        made.drawn,
        tokens=[tokens[row : row + 1].clone() for tokens in made.drawn.tokens],
        latent=made.drawn.latent[row : row + 1].clone(),
    )
    assert made.pixels is not None
    return Made(drawn, made.pixels[row : row + 1].clone())


def _together(rows: Sequence[Made], every: Sequence[Decoded]) -> Made:
    """Images as one batch, with the work of all that was drawn for them."""
    drawn = Decoded(
        [torch.cat(maps) for maps in zip(*(row.drawn.tokens for row in rows), strict=True)],
        torch.cat([row.drawn.latent for row in rows]),
        sum(one.forward_passes for one in every),
        sum(one.evaluations for one in every),
        max(one.cache_bytes for one in every),
        together([one.speculation for one in every if one.speculation]),
    )
    return Made(drawn, torch.cat([row.pixels for row in rows if row.pixels is not None]))
