"""One network over several processes: copies that average gradients (DDP), or shards of one network (FSDP2)."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit.models.layers.blocks import CALLED, blocks_within
from var_toolkit.models.layers.diffusion_head import InFloat32
from var_toolkit.models.layers.gated_mlp import RMSNorm
from var_toolkit.processes import Team

NORMS = (nn.LayerNorm, nn.RMSNorm, RMSNorm)


def wrapped(network: nn.Module, parallel: str, precision: str, team: Team) -> nn.Module:
    """The module that losses call: sharded in place (FSDP2), wrapped (DDP), or unchanged in a single process."""
    if team.size == 1 or not any(p.requires_grad for p in network.parameters()):
        return network
    if parallel == "fsdp":
        return shard(network, precision)
    ids = [team.device.index] if team.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)


def compile_(network: nn.Module, parallel: str, team: Team) -> None:
    """Compile a network in place: as a whole, or each block that is to be gathered by itself."""
    if parallel == "ddp" or team.size == 1:
        network.compile()
        return
    for block in blocks_within(network):
        block.forward = torch.compile(block.forward)


def shard(network: nn.Module, precision: str) -> nn.Module:
    """FSDP2 in place: each transformer block is a unit, and the rest is another.

    For bf16 blocks are gathered in bf16, in which autocast would compute with their matrices anyway. Their norms, heads
    that compute in float32, and what is outside of blocks, embeddings and thus the residual stream, remain float32.
    Gradients are averaged in float32. For fp16 all is gathered in float32, since small gates would vanish.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    exact = {part for head in network.modules() if isinstance(head, InFloat32) for part in head.modules()}
    whole, half = (
        MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for dtype in (None, torch.bfloat16 if precision == "bf16" else None)
    )
    for unit in units(network, precision):
        fully_shard(unit, mp_policy=whole if unit in exact or isinstance(unit, NORMS) else half)
        for name in CALLED:
            if hasattr(unit, name):
                register_fsdp_forward_method(unit, name)
    fully_shard(network, mp_policy=whole)
    return network


def units(network: nn.Module, precision: str) -> list[nn.Module]:
    """What is gathered together, inner units first: transformer blocks, and parts that are called on their own.

    For bf16 also the norms within blocks, which stay float32.
    """
    blocks = set(blocks_within(network)) - {network}
    parts = {
        part
        for block in blocks
        for part in block.modules()
        if isinstance(part, NORMS) and any(True for _ in part.parameters())
    }
    chosen = blocks | (parts if precision == "bf16" else set())
    return [one for one in network.modules() if one in chosen or any(hasattr(one, name) for name in CALLED)][::-1]


def without_averaging(networks: Iterable[nn.Module]) -> ExitStack:
    """Within it DDP leaves gradients to the process, to be averaged after the last micro-batch. Shards need no such."""
    stack = ExitStack()
    for network in networks:
        if isinstance(network, nn.parallel.DistributedDataParallel):
            stack.enter_context(network.no_sync())
    return stack


def is_sharded(network: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def reshard(network: nn.Module) -> None:
    """FSDP2 leaves weights gathered after a forward pass without a backward one, as they were then."""
    if is_sharded(network):
        from torch.distributed.fsdp import FSDPModule

        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def fill_from_shards(network: nn.Module, shards: nn.Module) -> None:
    """Give an ordinary network on the meta device the whole weights of a sharded one; every process must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(shards, options=StateDictOptions(full_state_dict=True))
    network.load_state_dict(weights, assign=True)


def network_state(network: nn.Module) -> dict[str, Any]:
    """The whole network's weights on the CPU; every process must call this."""
    if not is_sharded(network):
        return network.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_network_state(network: nn.Module, state: dict[str, Any]) -> None:
    if not is_sharded(network):
        network.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(network, state, options=StateDictOptions(full_state_dict=True))


def optimiser_state(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimiser, on the CPU if it is sharded; every process must call this."""
    if not is_sharded(network):
        return optimiser.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    return get_optimizer_state_dict(
        network, optimiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def load_optimiser_state(network: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Of shards or not, whichever wrote it."""
    if not is_sharded(network):
        optimiser.load_state_dict(_keyed(state, network, optimiser, by_name=False))
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    named = _keyed(state, network, optimiser, by_name=True)
    set_optimizer_state_dict(network, optimiser, named, options=StateDictOptions(full_state_dict=True))


def _keyed(
    state: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer, *, by_name: bool
) -> dict[str, Any]:
    """An optimiser's state by the names of parameters, as that of shards is, or by their numbers, as torch's own is."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    order = [names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
    keys: dict[Any, Any] = dict(enumerate(order)) if by_name else {name: number for number, name in enumerate(order)}
    groups = [group | {"params": [keys.get(key, key) for key in group["params"]]} for group in state["param_groups"]]
    return state | {"state": {keys.get(key, key): each for key, each in state["state"].items()}, "param_groups": groups}


def whole(number: Tensor) -> Tensor:
    """A norm over sharded gradients as an ordinary tensor."""
    return number.full_tensor() if hasattr(number, "full_tensor") else number
