"""Facts about the origin of weights: saved with them and shown in the model card, but not used in any computation.

`facts.json` lies beside `model_index.json`, or in the folder of any other network that a training run writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from var_toolkit import strict_fields
from var_toolkit.formats.directory import read_json, write_json
from var_toolkit.registry import CARD, Entry, Hub, published

FACTS = "facts.json"
SIGNATURE = (
    "<!-- Written by var_toolkit from facts.json and the configurations. Without this line it is yours and stays. -->"
)
DATA = {
    "still-lifes": "still lifes rendered by var_toolkit",
    "scenes": "scenes with captions rendered by var_toolkit",
    "scene-edits": "pairs of scenes with instructions rendered by var_toolkit",
    "imagenet": "ImageNet",
}


@dataclass(frozen=True)
class Facts:
    """What is known of a model's weights; None or empty where nothing is known."""

    origin: str | None = None  # where the weights come from, in words
    license: str | None = None  # as the hub names it, such as mit
    base_models: tuple[str, ...] = ()  # hub ids of the models that they were made from
    data: str | None = None  # the training data of the backbone, in words
    images_seen: int | None = None
    recipe: str | None = None  # of its training, YAML
    training: dict[str, float] = field(default_factory=dict)  # the last figures in the log of its training
    figures: dict[str, str] = field(default_factory=dict)  # of images drawn with the default settings
    card: str | None = None  # a model card written by hand (README.md), which replaces the generated one

    def altered(self, how: str) -> Facts:
        """The facts after a part of the model was replaced: the scores and the licence no longer apply."""
        origin = f"{self.origin or 'not known'}; {how}"
        return replace(self, origin=origin, license=None, figures={}, card=None)

    def licensed(self, license: str | None) -> Facts:
        """The facts with a licence, if one is given. ValueError if the weights have a different one."""
        if license is None or license == self.license:
            return self
        if self.license is not None:
            raise ValueError(
                f"license is {license!r}, but these weights have the licence {self.license!r}; remove license"
            )
        return replace(self, license=license)


FIELDS = {field.name for field in fields(Facts)} - {"card"}  # which lies in a file of its own


def of_entry(entry: Entry) -> Facts:
    """What the zoo knows of one of its models."""
    data = DATA.get(entry.class_names)
    if isinstance(entry.source, Hub):
        names = [f"{repository}/{file}" for repository, file in entry.source.files.values()]
        return Facts(
            origin=f"the published files {', '.join(names)}",
            license=entry.source.license,
            base_models=tuple(dict.fromkeys(repository for repository, _ in entry.source.files.values())),
            data=data,
            figures={
                f"{name.upper()}, 50,000 images, as its authors report": str(v) for name, v in entry.published.items()
            },
        )
    training = entry.training
    known = Facts(f"the model {entry.name} that comes with var_toolkit", "mit", data=data)
    if training is None:
        return known
    return replace(
        known, images_seen=training.images, recipe=_packaged_recipes(training.recipes), figures=training.figures()
    )


def of_files(family: str, names: Mapping[str, str]) -> Facts:
    """The facts that the names of published files determine; files with names of the zoo count as its own."""
    for entry, source in published(family):
        known = {part: file.rpartition("/")[2] for part, (_, file) in source.files.items()}
        if known.keys() == names.keys() and known["backbone"] == names["backbone"]:
            return replace(of_entry(entry), origin=f"converted from {_listed(names)}, the names of published files")
    return Facts(origin=f"converted from {_listed(names)}")


def of_both(first: Facts, second: Facts) -> Facts:
    """The facts of two models that draw together: both origins, and the licence if it is the same."""
    origins = [facts.origin or "not known" for facts in (first, second)]
    return Facts(
        origin=f"two models: {'; and '.join(origins)}",
        license=first.license if first.license == second.license else None,
        base_models=tuple(dict.fromkeys((*first.base_models, *second.base_models))),
        data=first.data if first.data == second.data else None,
    )


def read_facts(folder: Path) -> Facts:
    """The facts in a folder; unknown keys are ignored. ValueError in one line for values of the wrong type."""
    path, card = folder / FACTS, folder / CARD
    told: Any = read_json(path) if path.is_file() else {}
    known = {name: value for name, value in told.items() if name in FIELDS}  # a newer version may have more
    facts = strict_fields.build(Facts, known, where=str(path))
    return replace(facts, card=by_hand(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None)


def write_facts(folder: Path, facts: Facts) -> None:
    """Write the facts into an existing folder, without the card."""
    known = {name: value for name, value in asdict(facts).items() if value not in (None, (), {}) and name != "card"}
    if facts.training:  # without figures that JSON cannot hold, of a training that diverged
        known["training"] = {name: value for name, value in facts.training.items() if isfinite(value)}
    write_json(folder / FACTS, known)


def by_hand(card: str) -> str | None:
    """The card if a user wrote or changed it; None for a generated one, and for hub settings without any text."""
    text = card.strip()
    body = text.split("\n---", 1)[-1].strip() if text.startswith("---") else text
    return None if SIGNATURE in text or not body.strip("-") else card


def _packaged_recipes(names: tuple[str, ...]) -> str:
    """Recipes that come with the package, one after the other."""
    folder = Path(str(files("var_toolkit.configs")))
    texts = [f"# configs/{name}.yaml\n{(folder / f'{name}.yaml').read_text(encoding='utf-8')}" for name in names]
    return "---\n".join(texts)


def _listed(names: Mapping[str, str]) -> str:
    return " and ".join(dict.fromkeys(names.values()))
