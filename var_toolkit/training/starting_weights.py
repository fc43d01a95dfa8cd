"""Networks that a run starts from or leans on, by directory or by the name of a model."""

from collections.abc import Set
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from var_toolkit.formats.directory import CONFIG, load_network
from var_toolkit.loading import tokenizer_network
from var_toolkit.registry import Embedded, find_entry, home_of

# Of the settings: weights may start with others.
FREE = {"drop_path", "dropout", "input_side", "scaling_factor", "tokenizer"}
CLASSES = "num_classes"
Network = TypeVar("Network", bound=nn.Module)


def network_from(name: str, cls: type[Network], *, what: str) -> Network:
    """The network in a directory, in a model directory, or embedded under that name; ValueError for anything else.

    A tokenizer may also be that of any model of the zoo, a published one too, or have a hub id.

    `what` is the recipe's name for it, for complaints.
    """
    home = home_of(cls.__name__)
    part = home.networks[cls.__name__] if home is not None else "backbone"
    nearby = [folder for folder in (Path(name), Path(name) / part) if (folder / CONFIG).is_file()]
    if nearby:
        network = load_network(nearby[0])
    elif (folder := _embedded(name, part)) is not None:
        network = load_network(folder)
    elif part == "tokenizer":
        try:
            network = tokenizer_network(name)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
    else:
        raise ValueError(
            f"{what}: {name!r} is not a directory with {CONFIG}, such as the final/ of a run, nor a network that comes "
            "with the package"
        )
    if not isinstance(network, cls):
        raise ValueError(f"{what}: {name} holds a {type(network).__name__}; expected a {cls.__name__}")
    return network


def _embedded(name: str, part: str) -> Path | None:
    """The folder of an embedded network by its own name, or as a part of the embedded model of that name."""
    known = find_entry(name)
    if known is not None and part == "tokenizer":
        return None  # a model of the zoo knows where its tokenizer is
    parts = known.source.parts() if known is not None and isinstance(known.source, Embedded) else {}
    folder = parts.get(part, Embedded.folder(name))
    return folder if folder.is_dir() else None


def start_from(network: nn.Module, name: str | None, *, same_classes: bool = False) -> None:
    """Fills `network` with saved weights of the same configuration; nothing happens without a name.

    Unless `same_classes`, a backbone may have learned another number of classes; those of `network` then begin as its
    null class.
    """
    if name is None:
        return
    saved = network_from(name, type(network), what="initial")
    require_same_sizes(network, saved, name, free=set() if same_classes else {CLASSES})
    weights = saved.state_dict()
    if _sizes(network).get(CLASSES) != _sizes(saved).get(CLASSES):
        _forget_classes(weights, network, saved)
    network.load_state_dict(weights)


def require_same_sizes(network: nn.Module, saved: nn.Module, name: str, *, free: Set[str]) -> None:
    """ValueError of one line if the weights of that name have other sizes than a network; `free` sizes may differ."""
    ours, theirs = _sizes(network), _sizes(saved)
    odd = [field for field in ours if ours[field] != theirs.get(field) and field not in free]
    if odd:
        found = ", ".join(f"{field} {theirs.get(field)}" for field in odd)
        asked = ", ".join(f"{field} {ours[field]}" for field in odd)
        raise ValueError(f"initial: {name} has {found}, but the recipe asks for {asked}")


def _forget_classes(weights: dict[str, Tensor], network: Any, saved: Any) -> None:
    """In `weights`, those of `saved`, let every class of the network begin as the null class."""
    learned_NC, own_NC = saved.class_emb.weight, network.class_emb.weight
    (name,) = (name for name, value in saved.named_parameters() if value is learned_NC)
    weights[name] = learned_NC.detach()[-1:].expand_as(own_NC).clone()


def _sizes(network: Any) -> dict[str, Any]:
    """What decides the shapes and the meaning of the weights; what only a run or the sampler does with them is left."""
    config: Any = network.config
    values = asdict(config) if is_dataclass(config) else dict(config)  # type: ignore[arg-type]  # of diffusers: a mapping
    kept = {name: value for name, value in values.items() if name not in FREE and not name.startswith("_")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
