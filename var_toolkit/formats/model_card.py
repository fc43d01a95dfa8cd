"""The model card (README.md): networks, default settings, training, scores and licence; only what is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import nn

from var_toolkit.files import write_whole
from var_toolkit.formats.facts import SIGNATURE, Facts
from var_toolkit.guidance import counted
from var_toolkit.models.layers.int8_layer import weights_of
from var_toolkit.registry import CARD, family_of

if TYPE_CHECKING:
    from var_toolkit.pipeline import Pipeline

UNKNOWN = "Not known."
UNLICENSED = "Not known. Ask the authors of the weights before you use or share them."
PROMPT = "a red sphere to the left of a blue cube on sand"
UNNAMED = ("nvidia-non-commercial",)  # licences for which the hub has no name
LEARNED = {"still-lifes": "rendered still lifes", "imagenet": "ImageNet"}


def model_card(pipe: Pipeline, source: str) -> str:
    """The card of a model that `load` opens by the name `source`; a card written by hand is preserved."""
    if pipe.facts.card is not None:
        return pipe.facts.card
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(pipe), sort_keys=False)}---",
        f"# {source.rpartition('/')[2]}",
        _summary(pipe),
        _use(pipe, source),
        f"## The model\n\n{_table(_networks(pipe))}",
        f"## Default sampling settings\n\n```\n{pipe.bind(pipe.plan())}\n```\n\n{_guidance(pipe)}",
        f"## Training\n\n{_training(pipe.facts)}",
        f"## Evaluation\n\n{_figures(pipe.facts)}",
        f"## Licence\n\n{_licence(pipe)}",
        SIGNATURE,
    ]
    return "\n\n".join(parts) + "\n"


def _guidance(pipe: Pipeline) -> str:
    told = counted(pipe.bind(pipe.plan()))
    return f"`cfg` is {told['cfg']} as the authors count; this is a `guidance_scale` of {told['guidance_scale']}."


def write_card(pipe: Pipeline, folder: Path, source: str) -> None:
    """Write the model card into a folder."""
    write_whole(folder / CARD, lambda path: path.write_text(model_card(pipe, source), encoding="utf-8"))


def write_adapter_card(folder: Path, facts: Facts, base: str, source: str, *, text: bool) -> None:
    """Write the card of an adapter of a base model, of text or classes; `--adapter` opens it by the name `source`."""
    subject = f'--prompt "{PROMPT}"' if text else "--class 0"
    parts = [
        f"---\n{yaml.safe_dump({'library_name': 'peft', 'tags': ['image-generation', 'lora']}, sort_keys=False)}---",
        f"# {source.rpartition('/')[2]}",
        f"An adapter of the model `{base}`. It lies in peft's format and draws with its base model:",
        f"```\nvargen sample --model {base} --adapter {source} {subject}\n```",
        f"## Training\n\n{_training(facts)}",
        SIGNATURE,
    ]
    write_whole(folder / CARD, lambda path: path.write_text("\n\n".join(parts) + "\n", encoding="utf-8"))


def _front_matter(pipe: Pipeline) -> dict[str, Any]:
    facts, names = pipe.facts, [_title(backbone).lower() for backbone in pipe.backbones]
    told: dict[str, Any] = {"library_name": "var_toolkit"}
    if facts.license in UNNAMED:
        told |= {"license": "other", "license_name": facts.license}
    elif facts.license is not None:
        told["license"] = facts.license
    # The hub has no task for class-conditional images; such models are listed as unconditional.
    told["pipeline_tag"] = "unconditional-image-generation" if pipe.text is None else "text-to-image"
    kind = "class-conditional" if pipe.text is None else "text-to-image"
    told["tags"] = list(dict.fromkeys(["image-generation", "autoregressive", kind, *names]))
    if facts.base_models:
        told["base_model"] = list(facts.base_models)
    return told


def _summary(pipe: Pipeline) -> str:
    family, name = family_of(pipe.backbone), _title(pipe.backbone)
    told = f"Draws {_subject(pipe)} at {pipe.tokenizer.image_side} x {pipe.tokenizer.image_side} pixels with "
    if pipe.refiner is None:
        way = f", a model of {family.way}" if family.way else ""
        return f"{told}{f'[{name}](https://arxiv.org/abs/{family.paper})' if family.paper else name}{way}."
    second = _title(pipe.refiner.backbone)
    return (
        f"{told}[CoDe](https://arxiv.org/abs/2411.17787), collaborative decoding: the drafter ({name}) draws the "
        f"first {pipe.draft_scales} scales, and the refiner ({second}) the remaining ones."
    )


def _subject(pipe: Pipeline) -> str:
    if pipe.text is not None:
        return "what a prompt says,"
    what = LEARNED.get(pipe.data_set or "")
    return f"images of {pipe.backbone.config.num_classes:,} classes{f' of {what}' if what else ''}"


def _use(pipe: Pipeline, source: str) -> str:
    option, argument = f'--prompt "{PROMPT}"', f'prompt="{PROMPT}"'
    if pipe.text is None:
        label = min(207, pipe.backbone.config.num_classes - 1)
        option, argument = f"--class {label}", f"{label}"
    return f"""## Use

With var_toolkit installed:

    vargen sample --model {source} {option}

```python
import var_toolkit

pipe = var_toolkit.load("{source}")
pipe({argument}, seeds=0).images[0].save("image.png")
```"""


def _networks(pipe: Pipeline) -> list[tuple[str, str]]:
    roles = ("drafter", "refiner") if pipe.refiner is not None else ("backbone",)
    rows = [(role, _transformer(backbone)) for role, backbone in zip(roles, pipe.backbones, strict=True)]
    scales = pipe.tokenizer.scales
    maps = " ".join(str(side) for side in scales.patch_nums)
    return [
        *rows,
        ("tokenizer", _tokenizer(pipe.tokenizer)),
        ("token maps", f"of side {maps}; {scales.total:,} tokens per image"),
        ("images", f"{pipe.tokenizer.image_side} x {pipe.tokenizer.image_side} pixels"),
        _condition(pipe),
    ]


def _condition(pipe: Pipeline) -> tuple[str, str]:
    if pipe.text is None:
        count = pipe.backbone.config.num_classes
        label = min(207, count - 1)
        return "classes", f"{count:,}, such as {label}: {pipe.class_names.name(label)}"
    if pipe.text_encoder is None:
        return "text", f"features of {pipe.text.channels:,} channels, at most {pipe.text.longest} tokens"
    license = f"licence `{pipe.text_encoder.license}`" if pipe.text_encoder.license else "licence not known"
    return "text encoder", f"{pipe.text_encoder.name}, {license}, at most {pipe.text.longest} tokens"


def _transformer(backbone: Any) -> str:
    config = backbone.config
    return f"{_title(backbone)}, {config.depth} layers, width {config.embed_dim}, {_parameters(backbone)}"


def _tokenizer(tokenizer: Any) -> str:
    network = getattr(tokenizer, "autoencoder", tokenizer)
    codes, bits = (getattr(network.config, name, None) for name in ("vocab_size", "codebook_dim"))
    values = f"{codes:,} codes" if codes else "codes of bits" if bits else "continuous latents"
    return f"{type(network).__name__}, {values} of {tokenizer.channels} channels, {_parameters(network)}"


def _training(facts: Facts) -> str:
    rows = [
        ("weights", facts.origin or UNKNOWN),
        ("training data of the transformer", facts.data or UNKNOWN),
        ("images seen", f"{facts.images_seen:,}" if facts.images_seen is not None else UNKNOWN),
        *((f"{name.replace('_', ' ')} at the end", f"{value:g}") for name, value in facts.training.items()),
    ]
    recipe = (
        f"The training recipe:\n\n```yaml\n{facts.recipe.strip()}\n```"
        if facts.recipe
        else "The training recipe is not known."
    )
    return f"{_table(rows)}\n\n{recipe}"


def _figures(facts: Facts) -> str:
    if not facts.figures:
        return "No scores are known."
    return f"Measured with the default sampling settings.\n\n{_table(facts.figures.items())}"


def _licence(pipe: Pipeline) -> str:
    told = f"`{pipe.facts.license}`" if pipe.facts.license is not None else UNLICENSED
    encoder = pipe.text_encoder
    if encoder is None or isinstance(encoder, nn.Module):  # a network is a part of the model
        return told
    own = f"the licence `{encoder.license}`" if encoder.license else "a licence that is not known here"
    return f"{told}\n\nThe text encoder, {encoder.name}, has {own}."


def _title(backbone: nn.Module) -> str:
    return family_of(backbone).title or type(backbone).__name__


def _parameters(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in weights_of(network)) / 1e6:,.1f} M parameters"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
