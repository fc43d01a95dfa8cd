"""Class labels from user input: a number, a name, a synonym or a synset."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from operator import index
from typing import Any, SupportsIndex

NO_CLASS = "none"
DATA_SETS = {  # with the models that draw their classes
    "imagenet": "an ImageNet model, such as var-d16",
    "still-lifes": "a still-life model, such as stilllife-var",
}
Named = str | tuple[str, ...] | None  # how a model stores its names: those of a data set, its own, or none

CLASSES = 1000  # of each of these data sets
LONGEST = 255  # characters of a name, as many as a folder's may have
SHOWN = 5  # names in an error
SPAN = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")  # of labels
NEGATIVE = re.compile(r"\s*-\s*\d+\s*")
SYNSET = re.compile(r"n\d{8}")
EXPLICIT = re.compile(r"(label|name):\s*(.+)")  # for models some of whose names are numbers
# Names of torchvision for categories that ImageNet's descriptions do not distinguish.
TORCHVISION = {"crane bird": 134}


class ClassNames:
    """The names of the classes of a model.

    A class has a display name and any number of other names; case, accents, hyphens, underscores and spaces do not
    matter. `named` is the origin of the names, as a model stores it.
    """

    def __init__(self, names: Sequence[Sequence[str]], named: Named) -> None:
        self._names, self.named = names, named
        # Labels by text, from strict to loose comparison: the first dictionary that has the text decides.
        exact: dict[str, set[int]] = {}
        main: dict[str, set[int]] = {}
        other: dict[str, set[int]] = {}
        for label, (shown, *others) in enumerate(names):
            description = ", ".join(name for name in (shown, *others) if not SYNSET.fullmatch(name))
            exact.setdefault(shown, set()).add(label)
            for text in (shown, description):
                main.setdefault(folded(text), set()).add(label)
            for text in others:
                other.setdefault(folded(text), set()).add(label)
        if named == "imagenet":
            for text, label in TORCHVISION.items():
                main.setdefault(text, {label})
        self._exact, self._main, self._other = exact, main, other

    def __len__(self) -> int:
        return len(self._names)

    def name(self, label: int) -> str:
        """The display name of a label."""
        return "no class" if label == len(self) else self._names[label][0]

    def names(self, label: int) -> tuple[str, ...]:
        """All names of a label, the one for display first, an ImageNet synset last."""
        return tuple(self._names[label])

    def row(self, label: int) -> dict[str, Any]:
        """All that is known of a label, as JSON values."""
        name, *others = self.names(label)
        synsets = [other for other in others if SYNSET.fullmatch(other)]
        return {
            "label": label,
            "name": name,
            "synonyms": [other for other in others if other not in synsets],
            "synset": synsets[0] if synsets else None,
        }

    def resolve(self, wanted: SupportsIndex | str | None) -> int:
        """The label of a number or a name; ValueError with the nearest names if it is unknown.

        None, or "none", is the null class after all others, which models use for images without a label. Where names
        are numbers themselves, "label:7" and "name:7" distinguish the two, and an integer is always a label.
        """
        if wanted is None:
            return len(self)
        if not isinstance(wanted, str):
            return self._label(_integer(wanted))
        found = self._named(wanted)
        if (explicit := EXPLICIT.fullmatch(wanted.strip())) and not found:
            kind, text = explicit.groups()
            if kind == "name":
                return self._only(wanted, self._named(text))
            return len(self) if text == NO_CLASS else self._label(_integer(text))
        as_number = wanted.strip().lstrip("+-").isdecimal()
        if not as_number and wanted != NO_CLASS:
            return self._only(wanted, found)
        label = len(self) if wanted == NO_CLASS else int(wanted)
        if not found:
            return self._label(label) if as_number else label
        if found != {label} and 0 <= label <= len(self) - as_number:
            text = wanted.strip()
            raise ValueError(
                f"class {text!r} is ambiguous: label {text} ({self.name(label)!r}), or the class named {text!r}, "
                f"label {min(found)}; write label:{text} or name:{text}"
            )
        return self._only(wanted, found)

    def resolve_all(self, text: str) -> list[int]:
        """The labels of one text on the command line: one class, or several such as "0-9,207,red cube on sand".

        A name that contains commas or hyphens is recognised as one class.
        """
        if self._known(text):
            return [self.resolve(text)]
        pieces, at = text.split(","), 0
        labels: list[int] = []
        while at < len(pieces):
            # The longest run of pieces that is a name, else a single piece.
            ends = range(min(len(pieces), at + SHOWN), at, -1)
            end = next((end for end in ends if self._known(",".join(pieces[at:end]))), at + 1)
            labels += self._piece(",".join(pieces[at:end]))
            at = end
        return labels

    def _piece(self, text: str) -> Iterable[int]:
        span = None if self._known(text) else SPAN.fullmatch(text)
        if span is None:
            return [self.resolve(text)]
        first, last = (self.resolve(end) for end in span.groups())
        if first > last:
            raise ValueError(f"classes {text!r} is a descending range; give the smaller number first")
        return range(first, last + 1)

    def _label(self, number: int) -> int:
        if not 0 <= number < len(self):
            raise ValueError(f"class {number} does not exist; classes are 0 to {len(self) - 1}")
        return number

    def _known(self, text: str) -> bool:
        return bool(self._named(text))

    def _named(self, text: str) -> set[int]:
        """The labels that a text names: one, several, or none. A definition after ": ", as in timm, is ignored."""
        if found := self._exact.get(text.strip()):
            return found
        if NEGATIVE.fullmatch(text):
            return set()  # a label that does not exist; without its sign it would be another class
        for short in (folded(text), folded(text.partition(": ")[0])):
            if found := self._main.get(short) or self._other.get(short):
                return found
        return set()

    def _only(self, wanted: str, found: set[int]) -> int:
        if len(found) == 1:
            return min(found)
        if found:
            choices = ", ".join(f"{label} ({', '.join(self._names[label][:2])})" for label in sorted(found))
            raise ValueError(f"class {wanted!r} is the name of several classes; give the number: {choices}")
        raise ValueError(f"class {wanted!r} is not known{self._way_out(wanted)}")

    def _way_out(self, wanted: str) -> str:
        """The end of an error for an unknown name: the nearest names, another model with that class, or numbers."""
        last = len(self) - 1
        by_number = f"numbers 0 to {last} work too"
        if self.named is None:
            return f": this model was saved without class names; give a number from 0 to {last}"
        if holding := self.matching(wanted):
            such = " and ".join(repr(self.name(label)) for label in holding[:2])
            return f", but names like {such} are; `vargen classes {shlex.quote(wanted)}` lists them"
        if near := self.nearest(wanted):
            return f"; did you mean {' or '.join(map(repr, near))}? {by_number}"
        if isinstance(self.named, tuple):
            shown = ", ".join(repr(self.name(label)) for label in range(min(SHOWN, len(self))))
            return f"; this model's classes are {shown}{', ...' if last >= SHOWN else ''}; {by_number}"
        return (
            f"; this model draws classes like {self.name(min(207, last))!r}; "
            f"{self.elsewhere(wanted)}`vargen classes` lists names, and {by_number}"
        )

    def elsewhere(self, wanted: str) -> str:
        """Other models that draw this class, as the beginning of a sentence."""
        return "".join(
            f"{wanted!r} needs {models}; "
            for data_set, models in DATA_SETS.items()
            if data_set != self.named and class_names(data_set, CLASSES).matching(wanted)
        )

    def nearest(self, wanted: str) -> list[str]:
        """Up to three names with a similar spelling."""
        shown = {folded(name): name for names in reversed(self._names) for name in reversed(names)}
        return [shown[text] for text in get_close_matches(folded(wanted), shown, n=3, cutoff=0.66)]

    def matching(self, pattern: str) -> list[int]:
        """The labels with a name that matches a pattern with * or ?, or that contains the text as whole words."""
        if any(sign in pattern for sign in "*?["):
            low = pattern.casefold()
            return [
                i for i, names in enumerate(self._names) if any(fnmatchcase(name.casefold(), low) for name in names)
            ]
        words = f" {folded(pattern)} "
        if words.isspace():
            return []
        return [i for i, names in enumerate(self._names) if any(words in f" {folded(name)} " for name in names)]


def folded(text: str) -> str:
    """A name without differences of case, accents, hyphens, underscores, apostrophes and spaces, for comparison."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    letters = "".join(c for c in plain if not unicodedata.combining(c) and c not in "'\u2019`")
    short = " ".join(re.findall(r"\w+", letters.replace("_", " ")))
    return str(int(short)) if short.isdecimal() else short or text.strip()


def _integer(value: SupportsIndex | str) -> int:
    """A label as an integer; ValueError for anything else, such as True or 1.5."""
    is_boolean = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        if not is_boolean:
            return int(value) if isinstance(value, str) else index(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"class {value!r} is neither a whole number nor a name")


def kept(names: str | Iterable[str] | None, count: int) -> Named:
    """Names of `count` classes as a model stores them: the name of a data set, else a tuple in the order of the labels.

    The 1000 synsets of ImageNet in order, which are the folders of its training set, become "imagenet". Characters
    that cannot be printed, which folder names may contain, become "?". ValueError if the names do not fit.
    """
    if names is not None and not isinstance(names, str):
        names = ["".join(c if c.isprintable() else "?" for c in name)[:LONGEST] for name in names]
        if names == [synset for synset, _ in _imagenet()]:
            names = "imagenet"
    return read(names, count, "class_names")


def read(value: object, count: int, where: str) -> Named:
    """Names of `count` classes from a file; ValueError in one line, beginning with `where`."""
    if value is None:
        return None
    if isinstance(value, str):
        if value not in DATA_SETS:
            raise ValueError(f"{where} is {value[:LONGEST]!r}; it must be {', '.join(DATA_SETS)} or a list of names")
        if count > CLASSES or (value == "imagenet" and count < CLASSES):
            raise ValueError(f"{where} is {value!r}, which has {CLASSES} classes, but the backbone has {count}")
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{where} is {str(value)[:LONGEST]}; it must be {', '.join(DATA_SETS)} or a list of names")
    if len(value) != count:
        raise ValueError(f"{where} has {len(value)} names for {count} classes; it must have one for each")
    for name in value:
        if not name or len(name) > LONGEST or not name.isprintable():
            raise ValueError(f"{where} has the name {name[:LONGEST]!r}; names are printable, of 1 to {LONGEST} letters")
    return tuple(value)


@cache
def class_names(named: Named, count: int) -> ClassNames:
    """The names of `count` classes: of "imagenet", of "still-lifes", their own, or None for plain numbers."""
    if named == "imagenet":
        return ClassNames([[*description.split(", "), synset] for synset, description in _imagenet()], named)
    if named == "still-lifes":
        from var_toolkit.still_life.names import class_name

        return ClassNames([[class_name(label)] for label in range(count)], named)
    if isinstance(named, tuple):
        by_synset = dict(_imagenet())
        if all(name in by_synset for name in named):  # folders of a part of ImageNet
            return ClassNames([[*by_synset[name].split(", "), name] for name in named], named)
        return ClassNames([[name] for name in named], named)
    return ClassNames([[f"class {label}"] for label in range(count)], None)


@cache
def _imagenet() -> list[list[str]]:
    """Synset and description of each class."""
    rows: list[list[str]] = json.loads((files("var_toolkit.conditions") / "imagenet_classes.json").read_text())
    return rows
