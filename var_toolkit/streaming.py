"""The one loop over batches: every image of a pipeline is drawn here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from var_toolkit.best_of import Made, chosen_of, scorer_for
from var_toolkit.conditions.condition import Asked, of_labels
from var_toolkit.conditions.images import WithImage
from var_toolkit.conditions.text import PromptEmbeds
from var_toolkit.core.engine import ScaleEvent, decode
from var_toolkit.core.finite import require_finite
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Plan
from var_toolkit.core.preserved import Preserved
from var_toolkit.core.schedule import Schedule
from var_toolkit.image_conditions import Shown
from var_toolkit.images import Given, as_output
from var_toolkit.output import Chosen, PipelineOutput
from var_toolkit.ranges import checked
from var_toolkit.setting_table import Settings
from var_toolkit.settings import OUTPUT_TYPES, Labels
from var_toolkit.strict_fields import shown
from var_toolkit.wanted import Wanted, wanted

if TYPE_CHECKING:
    from var_toolkit.pipeline import Pipeline


def batches(
    pipe: Pipeline,
    class_labels: Labels,
    preserve: Callable[[Schedule], Preserved] | None = None,
    finish: Callable[[Tensor, str], Any] = as_output,
    source: Callable[[Schedule], Tensor] | None = None,
    /,
    *,
    prompt: str | Iterable[str] | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    prompt_embeds: PromptEmbeds | None = None,
    negative_prompt_embeds: PromptEmbeds | None = None,
    control_image: Given = None,
    seeds: int | Iterable[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    plan: Plan | None = None,
    batch_size: int = 8,
    output_type: str = "pil",
    callback_on_scale_end: Callable[[ScaleEvent], None] | None = None,
    **settings: Unpack[Settings],
) -> Iterator[PipelineOutput]:
    """The batches of `Pipeline.stream`; all checks are made at once, drawing starts with the first `next`.

    `preserve` finds the preserved tokens of a schedule, once; `finish` makes the output from images in [-1, 1];
    `source` makes the image that is edited by an instruction, (1, 3, h, w) in [-1, 1], at the size of a schedule.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}; it must be one of {', '.join(OUTPUT_TYPES)}")
    batch_size = checked("batch_size", batch_size)
    run = pipe.bind(chosen_plan(pipe, plan, settings))
    how, scorer = run.plan.best_of, scorer_for(pipe, run.plan.best_of, settings.get("scorer"))
    texts = (prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
    every, network = wanted(pipe, class_labels, *texts, seeds, generator, batch_size), pipe.backbone
    if preserve is not None and run.plan.skipped:
        raise ValueError("skip_scales leaves out detail that a given image has; leave it out to edit or to vary one")
    preserved = None if preserve is None else preserve(run.schedule)
    image = Shown(source, control_image).request(pipe, run.plan)

    def draw(one: Wanted) -> Made:
        noise = Noise(one.seeds, pipe.device)
        asked: Asked | Tensor = one.request(pipe.device)
        if image is not None:
            asked = of_labels(asked, network.config.num_classes) if isinstance(asked, Tensor) else asked
            asked = WithImage(asked, image)
        drawn = decode(run, asked, noise, preserved=preserved, on_scale=callback_on_scale_end)
        if output_type == "latent" and how is None:
            return Made(drawn, None)
        return Made(drawn, require_finite(pipe.decode(drawn.latent, noise), "the decoder's images"))

    def batch(one: Wanted) -> PipelineOutput:
        chosen: list[Chosen] = []
        if how is None or scorer is None:
            drawn, pixels = draw(one)
        else:
            (drawn, pixels), chosen = chosen_of(one, how, scorer, draw, batch_size)
        images = latents = drawn.latent.cpu()
        if output_type != "latent":
            images = finish(pixels, output_type)  # type: ignore[arg-type]
        return PipelineOutput(
            images=images,
            class_labels=one.labels,
            prompts=one.prompts,
            seeds=one.seeds,
            tokens=[found.cpu() for found in drawn.tokens],
            latents=latents,
            forward_passes=drawn.forward_passes,
            velocity_evaluations=drawn.evaluations,
            cache_bytes=drawn.cache_bytes,
            speculation=drawn.speculation or None,
            chosen=chosen,
        )

    return map(batch, every)


def chosen_plan(pipe: Pipeline, plan: Plan | None, settings: Mapping[str, Any]) -> Plan:
    """The plan that is given, or that of the settings. ValueError for both, unless that is a scorer."""
    if plan is None:
        return pipe.plan(**settings)
    if not isinstance(plan, Plan):
        raise ValueError(f"plan is {shown(plan)}; it must be a Plan, such as `pipe.plan()` returns")
    others = (value for name, value in settings.items() if not (name == "scorer" and callable(value)))
    if any(value is not None and value is not False for value in others):
        raise ValueError("give a plan or settings, not both: a plan holds its own settings")
    return plan
