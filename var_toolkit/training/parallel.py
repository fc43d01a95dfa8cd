"""One network over several processes: copies that average gradients (DDP), or shards of one network (FSDP2)."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit.processes import Team


def wrapped(network: nn.Module, parallel: str, team: Team) -> nn.Module:
    """The module that losses call: sharded in place (FSDP2), wrapped (DDP), or unchanged in a single process."""
    if team.size == 1 or not any(p.requires_grad for p in network.parameters()):
        return network
    if parallel == "fsdp":
        return shard(network)
    ids = [team.device.index] if team.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)


def shard(network: nn.Module) -> nn.Module:
    """FSDP2 in place: each transformer block is a unit, the flow head is one, and the rest is another."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # What is called before the forward pass of a unit and needs its weights, too: the class steers every block, and the
    # condition every token of the head.
    for name in ("modulation", "seen"):
        for unit in [module for module in network.modules() if hasattr(module, name)]:
            fully_shard(unit)
            register_fsdp_forward_method(unit, name)
    fully_shard(network)
    for name in ("condition", "hidden", "logits", "refined", "field"):  # what sampling calls instead of `forward`
        if hasattr(network, name):
            _gather_for(network, name)
    return network


def _gather_for(network: nn.Module, name: str) -> None:
    """Lets `name` be called from outside: its weights are gathered first.

    Not with gradients: training calls it within `forward`, where a second gathering would end with the inner call.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    plain = getattr(network, name)
    register_fsdp_forward_method(network, name)
    gathering = getattr(network, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (plain if torch.is_grad_enabled() else gathering)(*args, **kwargs)

    setattr(network, name, call)


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


def no_gradients(network: nn.Module) -> AbstractContextManager[Any]:
    """For looking at results. Shards first gathered in inference mode, as sampling is, can be gathered in no other."""
    return torch.inference_mode() if is_sharded(network) else torch.no_grad()


def reshard(network: nn.Module) -> None:
    """FSDP2 leaves weights gathered after a forward pass without a backward one; the average must be shards."""
    if is_sharded(network):
        from torch.distributed.fsdp import FSDPModule

        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


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
    if not is_sharded(network):
        return optimiser.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    return get_optimizer_state_dict(
        network, optimiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def load_optimiser_state(network: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    if not is_sharded(network):
        optimiser.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(network, optimiser, state, options=StateDictOptions(full_state_dict=True))


def whole(number: Tensor) -> Tensor:
    """A norm over sharded gradients as an ordinary tensor."""
    return number.full_tensor() if hasattr(number, "full_tensor") else number
