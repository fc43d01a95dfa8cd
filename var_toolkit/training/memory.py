"""What one process of a run holds, without running it: from the sizes of its networks, and a measured forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from var_toolkit.kernels.pyramid_attention import known_mask
from var_toolkit.models import dar, star
from var_toolkit.models.layers.blocks import blocks_within, checkpoint_blocks
from var_toolkit.models.layers.lora import require_peft, target_layers
from var_toolkit.models.layers.raster_positions import known_rotation
from var_toolkit.training.adapters import train_adapter
from var_toolkit.training.optimisers import hidden_matrices
from var_toolkit.training.parallel import units
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective_class
from var_toolkit.training.state import AUTOCAST

FLOAT32, HALF, GIB = 4, 2, 2**30
CARDS = (24, 48, 80)  # GiB
USED = 0.9  # of a card; the rest is for the context, kernels and fragmentation


@dataclass(frozen=True)
class Memory:
    """Bytes of the process that holds the most, by what they are for."""

    weights: int
    gradients: int
    optimiser: int
    average: int
    copies: int  # gathered units, or copies of gradients that are averaged; weights in the dtype of autocast
    activations: int | None  # of the images that are computed together; None where the objective tells no inputs

    @property
    def total(self) -> int:
        """All that is known of them."""
        return sum(each for each in asdict(self).values() if each is not None)


def outline(recipe: Recipe) -> dict[str, nn.Module]:
    """The networks that a recipe trains, on the meta device, with the adapter of the main one if that is trained."""
    objective = objective_class(recipe.objective, recipe.family)
    with torch.device("meta"):
        networks: dict[str, nn.Module] = objective.outline(recipe)
        if recipe.adapter is not None:
            require_peft()
            main = next(iter(networks.values()))
            part = objective.adapted(main)
            train_adapter(main, part, target_layers(part, recipe.adapter.targets), recipe.adapter)
    return networks


def memory_of(recipe: Recipe, processes: int) -> Memory:
    """What the first of some processes holds; FSDP deals the first dimension of a weight, of which it has the most."""
    networks = list(outline(recipe).values())
    every = [_states(network, recipe, processes, averaged=network is networks[0]) for network in networks]
    each, casts = _activations(recipe) or (None, 0)
    if processes > 1 and recipe.parallel == "fsdp" and recipe.precision == "bf16":
        casts = 0  # blocks are gathered in bf16
    weights, gradients, optimiser, average, copies = (sum(parts) for parts in zip(*every, strict=True))
    activations = None if each is None else each * (recipe.at_a_time // processes)
    return Memory(weights, gradients, optimiser, average, copies + casts, activations)


def _states(network: nn.Module, recipe: Recipe, processes: int, *, averaged: bool) -> tuple[int, ...]:
    """Bytes of weights, gradients, the optimiser's numbers, the average, and what is gathered."""
    parts = processes if recipe.parallel == "fsdp" else 1
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = hidden_matrices(network) if recipe.optimiser.kind == "muon" else set()
    weights, gradients = (
        FLOAT32 * sum(_numbers(one, parts) for one in some) for some in (network.parameters(), learned)
    )
    optimiser = FLOAT32 * sum(_numbers(one, parts) * (1 if id(one) in matrices else 2) for one in learned)
    gathered = 0 if processes == 1 else gradients if parts == 1 else _gathered(network, recipe.precision)
    return weights, gradients, optimiser, weights * (averaged and recipe.ema is not None), gathered


def _numbers(parameter: nn.Parameter, parts: int) -> int:
    """How many numbers of a parameter the first process holds."""
    if parts == 1 or not parameter.shape:
        return parameter.numel()
    return -(-parameter.shape[0] // parts) * prod(parameter.shape[1:])


def _gathered(network: nn.Module, precision: str) -> int:
    """The largest two units, of which one is gathered ahead, and what is in none, each with its gradients."""
    seen, sizes = set[int](), []
    for unit in units(network, precision):
        own = [one for one in unit.parameters() if id(one) not in seen]
        seen |= {id(one) for one in own}
        sizes.append(sum(one.numel() for one in own))
    rest = sum(one.numel() for one in network.parameters() if id(one) not in seen)
    return 2 * FLOAT32 * rest + sum(sorted(sizes)[-2:]) * ((HALF if precision == "bf16" else FLOAT32) + FLOAT32)


def _activations(recipe: Recipe) -> tuple[int, int] | None:
    """Bytes that the main network keeps of an image for its backward pass, and of weights for any number of images."""
    objective = objective_class(recipe.objective, recipe.family)
    if objective.example(recipe, 1) is None:
        return None
    one, two = (_kept(objective, recipe, rows) for rows in (1, 2))
    if not recipe.checkpoint_activations:
        return two - one, 2 * one - two
    plain = replace(recipe, checkpoint_activations=False)
    again = _kept(objective, plain, 2) - _kept(objective, plain, 1) - (two - one)
    blocks = len(blocks_within(next(iter(outline(recipe).values()))))
    return two - one + again // blocks, 2 * one - two  # one block at a time is computed again


def _kept(objective: Any, recipe: Recipe, rows: int) -> int:
    """Bytes of all tensors that a forward pass keeps beside the weights; no number is computed."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        held.append(tensor)  # so that no other has its address
        return tensor

    held: list[Tensor] = []
    dtype = AUTOCAST.get(recipe.precision)
    given = objective.example(recipe, rows)
    network = next(iter(outline(recipe).values())).train()
    with _no_numbers(), _FusedAttention():
        _imagine(network)
        given = tree_map_only(Tensor, lambda one: torch.empty(one.shape, dtype=one.dtype), given)
        if recipe.checkpoint_activations:
            checkpoint_blocks(network)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None), saved_tensors_hooks(keep, _as_it_is):
            found = [one for one in tree_leaves(network(*given)) if isinstance(one, Tensor)]
        own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    # A loss keeps what it reads, and makes as much again on the way there and back.
    return sum(size for key, size in storages.items() if key not in own) + 3 * sum(one.nbytes for one in found)


@contextmanager
def _no_numbers() -> Iterator[None]:
    """FakeTensorMode, into which and out of which no table goes that is made once a device."""
    tables = (known_mask, known_rotation, dar.known_rotation, star.known_rotation)
    for table in tables:
        table.cache_clear()
    try:
        with FakeTensorMode():
            yield
    finally:
        for table in tables:
            table.cache_clear()


def _imagine(network: nn.Module) -> None:
    """Put fake tensors on the CPU in place of those on the meta device."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype) if buffer is not None else None


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Attention(torch.autograd.Function):
    """Keeps what a fused kernel keeps: queries, keys, values and the result, but no scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, found)
        return found


class _FusedAttention(TorchFunctionMode):
    """Counts attention as a fused kernel, whatever torch would take on a CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def told(recipe: Recipe, processes: int) -> str:
    """The memory in a few lines of text."""
    memory = memory_of(recipe, processes)
    parameters = [one for network in outline(recipe).values() for one in network.parameters()]
    every = sum(one.numel() for one in parameters) / 1e6
    learned = sum(one.numel() for one in parameters if one.requires_grad) / 1e6
    how = {"fsdp": "FSDP2", "ddp": "DDP"}[recipe.parallel]
    who = f"each of {processes} processes ({how})" if processes > 1 else "a single process"
    found = {name: "unknown" if size is None else f"{size / GIB:.2f} GiB" for name, size in asdict(memory).items()}
    rows = [
        f"{every:,.1f} M parameters, {learned:,.1f} M of them trained",
        f"{who} holds, for {recipe.at_a_time // processes} images at a time:",
        *(f"  {name:<11}{size:>13}" for name, size in found.items()),
        f"  {'together':<11}{memory.total / GIB:>9.2f} GiB, beside tokenizer and teacher",
    ]
    return "\n".join([*rows, f"fits {fit(recipe, processes, memory)}"])


def fit(recipe: Recipe, processes: int, memory: Memory) -> str:
    """The cards that hold a process, in words; with micro-batches, if the objective takes them."""
    images = recipe.batch_size // processes
    counts = [count for count in range(1, images + 1) if images % count == 0]
    if memory.activations is None or "accumulate" in objective_class(recipe.objective, recipe.family).refused:
        counts = [recipe.accumulate]
    found = dict[int, int]()
    for card in CARDS:
        count = next((one for one in counts if _total(recipe, memory, one) <= USED * card * GIB), None)
        if count is not None and count not in found.values():
            found[card] = count
    if not found:
        return f"no card of up to {CARDS[-1]} GiB; take {' or '.join(_ways(recipe, processes)) or 'a smaller network'}"
    if len(counts) == 1 or found[min(found)] == recipe.accumulate:
        return f"cards of {min(found)} GiB" + (" before activations" if memory.activations is None else "")
    (card, count), *rest = found.items()
    first = f"cards of {card} GiB with accumulate: {count}"
    return ", ".join([first, *(f"{card} GiB with {count}" for card, count in rest)])


def _ways(recipe: Recipe, processes: int) -> list[str]:
    """What the recipe may still take to need less memory."""
    refused = objective_class(recipe.objective, recipe.family).refused
    found = ["more processes"] if recipe.batch_size > processes else []
    if recipe.parallel == "ddp" and "parallel" not in refused and recipe.optimiser.kind != "muon":
        found.append("parallel: fsdp")
    if not recipe.checkpoint_activations and "checkpoint_activations" not in refused:
        found.append("checkpoint_activations: true")
    return found


def _total(recipe: Recipe, memory: Memory, accumulate: int) -> float:
    held = memory.activations or 0
    return memory.total - held + held * recipe.accumulate / accumulate
