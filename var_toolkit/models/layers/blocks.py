"""The transformer blocks of a network, which training shards and computes again to save memory."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CALLED = ("modulation", "keys_and_values")  # of a block, or of a part of one, before its forward pass


def transformer_blocks(network: Any) -> Iterator[nn.Module]:
    """Each once: those of a backbone, of its masked or control branch, of a draft head."""
    found = [block for name in ("blocks", "masked_path", "car_blocks") for block in getattr(network, name, ())]
    found += [network.block] if hasattr(network, "block") else []
    yield from dict.fromkeys(found)


def blocks_within(network: nn.Module) -> list[nn.Module]:
    """Those of all networks of which one consists."""
    return list(dict.fromkeys(block for part in network.modules() for block in transformer_blocks(part)))


def checkpoint_blocks(network: nn.Module) -> None:
    """Let the backward pass compute the activations within blocks again, in place; only their inputs are kept.

    Dropout repeats, so no bit of losses and gradients changes. A copy of the network would call this one's blocks.
    """
    for block in blocks_within(network):
        block.forward = partial(_checkpointed, block.forward)


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
