"""Networks that a run starts from or leans on, by directory or by the name of a model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from var_toolkit.zoo.directory import CONFIG, load_network
from var_toolkit.zoo.registry import embedded_part

Network = TypeVar("Network", bound=nn.Module)
PARTS = {
    "MultiScaleVQ": "tokenizer",
    "StillLifeClassifier": "classifier",
}  # of a model directory; else the backbone


def network_from(name: str, cls: type[Network], *, what: str) -> Network:
    """The network in a directory, in a model directory, or embedded under that name; ValueError for anything else.

    `what` is the recipe's name for it, for complaints.
    """
    part = PARTS.get(cls.__name__, "backbone")
    nearby = [folder for folder in (Path(name), Path(name) / part) if (folder / CONFIG).is_file()]
    try:
        folder = nearby[0] if nearby else embedded_part(name)
    except ValueError as error:
        hint = f"{name!r} is no directory with {CONFIG}, such as the final/ of a run"
        raise ValueError(f"{what}: {hint}; {error}") from None
    network = load_network(folder)
    if not isinstance(network, cls):
        raise ValueError(f"{what}: {folder} holds a {type(network).__name__}; expected a {cls.__name__}")
    return network


def start_from(network: nn.Module, name: str | None) -> None:
    """Fills `network` with saved weights of the same configuration; nothing happens without a name."""
    if name is None:
        return
    saved = network_from(name, type(network), what="initial")
    if _sizes(saved) != _sizes(network):
        raise ValueError(f"initial: {name} has {saved.config}, but the recipe asks for {network.config}")
    network.load_state_dict(saved.state_dict())


def _sizes(network: nn.Module) -> dict[str, Any]:
    """What decides the shapes and the meaning of the weights; how a run drops paths does not."""
    return {name: value for name, value in asdict(network.config).items() if name != "drop_path"}  # type: ignore[call-overload]
