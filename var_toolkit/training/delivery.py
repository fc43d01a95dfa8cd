"""The facts of a run, saved with its weights, from which the model card is written."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from var_toolkit import __version__
from var_toolkit.formats.directory import INDEX
from var_toolkit.formats.facts import DATA, Facts, write_facts
from var_toolkit.formats.model_card import write_adapter_card, write_card
from var_toolkit.loading import skeleton
from var_toolkit.training.recipe import CaptionsData, Data, FoldersData, Recipe, SamplesData

SPEED = ("lr", "images_per_second")  # in the log, but not results


def note_training(folder: Path, recipe: Recipe, images: int, numbers: dict[str, float], name: str) -> None:
    """Write the facts of a run into the folder of its result, and a model card if that is a model directory.

    `numbers` are the last ones of its log, `images` how many it has seen; the card calls the model `name`.
    """
    facts = Facts(
        origin=f"{_what(recipe)}trained with var_toolkit {__version__} from a recipe",
        data=_in_words(recipe.data),
        images_seen=images,
        recipe=yaml.safe_dump(portable(dataclasses.asdict(recipe)), sort_keys=False),
        training={key: value for key, value in numbers.items() if not _is_detail(key)},
    )
    write_facts(folder, facts)
    if recipe.adapter is not None:
        base, text = portable(recipe.objective_options.initial), not hasattr(recipe.model, "num_classes")
        write_adapter_card(folder, facts, base, name, text=text)
    if (folder / INDEX).is_file():
        write_card(skeleton(folder), folder, name)


def _what(recipe: Recipe) -> str:
    if recipe.adapter is None:
        return ""
    kind = {"lora": "LoRA", "dora": "DoRA"}[recipe.adapter.kind]
    return f"a {kind} of rank {recipe.adapter.rank} for {portable(recipe.objective_options.initial)}, "


def _in_words(data: Data) -> str:
    if isinstance(data, FoldersData | CaptionsData):
        what = "captioned images" if isinstance(data, CaptionsData) else "images"
        return f"{what} of the folder {Path(data.root).name}, at {data.size} pixels"
    if isinstance(data, SamplesData):
        return f"{data.count:,} images sampled from the target model"
    return f"{data.count:,} {DATA[data.kind]}"


def portable(value: Any) -> Any:
    """Settings, or a name alone, without the folders of the machine of a run: such a path is replaced by its last name.

    What a run delivers is called `final` always, so there the name of the run stays as well.
    """
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
        path = Path(value)
        return "/".join(path.parts[-2:]) if path.name == "final" else path.name
    return value


def _is_detail(key: str) -> bool:
    return key in SPEED or key.startswith("grad_norm") or "_scale_" in key
