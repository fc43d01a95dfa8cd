"""Find the weights of a network in a training checkpoint, remove wrappers, and give them their published names.

A state dict is identified by the names of the tensors in it, so the key that a trainer stores it under is irrelevant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

EMA = re.compile(r"(^|[^a-z])ema([^a-z]|$)|averag|shadow|polyak|(^|_)swa(_|$)", re.IGNORECASE)
RAW = re.compile(r"(^|_)(non?|without|wo)_?ema|online", re.IGNORECASE)
OTHERS = re.compile(r"optim|sched|scaler", re.IGNORECASE)  # hold tensors that are not weights
PLAIN = ("module", "_orig_mod")  # wrappers of DistributedDataParallel and torch.compile, not names of weights
# What trainers store in the same state dict: losses and their networks, metrics, and the counters of averages.
TRAINING = re.compile(
    r"(loss|loss_fn|criterion|discriminator|disc|lpips|perceptual|perceptual_loss|metrics?|teacher|ema|model_ema)\."
    r"|(decay|num_updates|n_averaged|initted|step)$"
)
DEPTH = 6  # of dictionaries in dictionaries
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class NoSuchWeightsError(ValueError):
    """A file has no weights of the kind or name that --weights gives."""


@dataclass(frozen=True)
class Chosen:
    """The weights that were taken, and a note for the user; None if there was no choice."""

    tensors: dict[str, Tensor]
    note: str | None = None


@dataclass(frozen=True)
class _Candidate:
    """Tensors that may be the weights: their path, their prefix, and the names beside them that only training uses."""

    path: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        words = [*self.path, *(word for word in self.prefix.split(".") if word and word not in PLAIN)]
        return ".".join(words) or "model"

    @property
    def kind(self) -> str:
        for word in reversed(self.label.split(".")):
            if RAW.search(word):
                return "model"
            if EMA.search(word):
                return "ema"
        return "model"


def choose(content: object, required: Sequence[str], source: str, wanted: str | None = None) -> Chosen:
    """The state dict of the network that has the tensors `required`; any state dict if none are.

    `wanted` is "ema" for averaged weights, "model" for the others, or a name from a note; by default the averaged ones
    are taken if there are both. ValueError in one line if there are none, or several of a kind.
    """
    dicts = list(_state_dicts(content, ()))
    if not dicts:
        raise ValueError(f"{source} holds no state dict (names to tensors); give a published weight file")
    found = [one for path, tensors in dicts for one in _candidates(path, tensors, required)]
    most = max(_matches(one.tensors, required) for one in found)
    found = [one for one in found if 2 * _matches(one.tensors, required) >= most]
    if required and not most:  # the caller reports which tensors are missing
        found = [max(found, key=lambda one: len(one.tensors))]
    nameless = next(_nameless(content, ()), None)
    taken = _taken(found, wanted, nameless, source)
    return Chosen(_checked(taken.tensors, source), _note(taken, found, wanted, nameless))


def _state_dicts(content: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary with named tensors, at any depth."""
    if not isinstance(content, Mapping) or len(path) > DEPTH:
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for name, value in content.items():
        if isinstance(name, str) and not OTHERS.search(name):
            yield from _state_dicts(value, (*path, name))


def _nameless(content: object, path: tuple[str, ...]) -> Iterator[str]:
    """Paths of averaged weights that are stored as a list, without names."""
    if not isinstance(content, Mapping) or len(path) > DEPTH:
        return
    for name, value in content.items():
        inner = (*path, str(name))
        if isinstance(value, list) and value and isinstance(value[0], Tensor) and any(map(EMA.search, inner)):
            yield ".".join(inner)
        yield from _nameless(value, inner)


def _candidates(path: tuple[str, ...], tensors: dict[str, Tensor], required: Sequence[str]) -> Iterator[_Candidate]:
    """The tensors of a state dict under each prefix that has most of the required ones."""
    prefixes = _prefixes(tensors, required)
    for prefix in prefixes:
        longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        here = {
            name[len(prefix) :]: tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix) and not name.startswith(longer or ("\0",))
        }
        training = {name for name in here if TRAINING.match(name)} if required else set()
        weights = {name: tensor for name, tensor in here.items() if name not in training}
        others = [name for name in tensors if not name.startswith(tuple(prefixes))] if prefix else []
        yield _Candidate(path, prefix, weights, (*others, *(prefix + name for name in sorted(training))))
        if averaged := _without_dots(tensors, prefix, weights):
            yield _Candidate((*path, "model_ema"), "", averaged)


def _prefixes(tensors: Mapping[str, Tensor], required: Sequence[str]) -> list[str]:
    """Prefixes of the published names, such as "module." and "model."; "" for none."""
    counts = Counter(
        name[: len(name) - len(end)] for end in required for name in tensors if name == end or name.endswith(f".{end}")
    )
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if 2 * count >= most] or [""]


def _without_dots(tensors: Mapping[str, Tensor], prefix: str, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averages of latent-diffusion's LitEma, which removes the dots from names and omits buffers."""
    for inner in ("", prefix):
        names = {name: "model_ema." + (inner + name).replace(".", "") for name in raw}
        averaged = {name: tensors[flat] for name, flat in names.items() if flat in tensors}
        if len(averaged) > len(raw) / 2:
            return {**raw, **averaged}
    return {}


def _matches(tensors: Mapping[str, Tensor], required: Sequence[str]) -> int:
    return sum(name in tensors for name in required)


def _taken(found: list[_Candidate], wanted: str | None, nameless: str | None, source: str) -> _Candidate:
    there = ", ".join(dict.fromkeys(one.label for one in found))
    kinds = {kind: [one for one in found if one.kind == kind] for kind in ("ema", "model")}
    pool = kinds["ema"] or kinds["model"]
    if wanted is not None:
        pool = kinds.get(wanted) or [one for one in found if one.label == wanted]
    if not pool:
        why = f" (its averaged weights, {nameless!r}, are a list without names)" if nameless else ""
        raise NoSuchWeightsError(f"--weights {wanted}: {source} does not contain these{why}; it has {there}")
    if any(not _same(*two) for two in pairwise(pool)):
        several = ", ".join(one.label for one in pool)
        raise ValueError(f"{source} holds several networks that fit: {several}; choose one with --weights")
    return pool[0]


def _same(one: _Candidate, other: _Candidate) -> bool:
    names = one.tensors.keys() == other.tensors.keys()
    return names and all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def _note(taken: _Candidate, found: list[_Candidate], wanted: str | None, nameless: str | None) -> str | None:
    others = {one.kind for one in found} - {taken.kind}
    words = {"ema": ", the averaged weights", "model": ", the weights that are not averaged"}
    parts = [f"took {taken.label!r}{words[taken.kind] if others or taken.kind == 'ema' else ''}"]
    if others and wanted is None:
        parts.append(f"--weights {others.pop()} selects the others")
    if nameless and taken.kind == "model":
        parts.append(f"the averaged weights, {nameless!r}, are a list without names and cannot be used")
    if taken.left_out:
        parts.append(f"ignored {len(taken.left_out)} tensors that only training uses, such as {taken.left_out[0]!r}")
    plain = not taken.path and not taken.prefix and not others
    return None if plain and len(parts) == 1 else "; ".join(parts)


def _checked(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors, checked to be dense and of a common dtype; float64 becomes float32."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise ValueError(f"{source}: {name} is a sparse tensor; save it with .to_dense()")
        if tensor.is_meta or tensor.is_quantized or tensor.is_nested:
            what = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "nested"
            raise ValueError(f"{source}: {name} is a {what} tensor; save plain values, float32 for instance")
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in DTYPES:
            raise ValueError(f"{source}: {name} is {tensor.dtype}; save it as torch.float32 or torch.float16")
    return {name: tensor.float() if tensor.dtype == torch.float64 else tensor for name, tensor in tensors.items()}
