"""Linear layers in 8-bit floats on CUDA, by torchao: weights scaled by output channel, inputs by token."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from var_toolkit.models.layers.blocks import transformer_blocks

CAPABILITY = (8, 9)  # of the first GPUs that multiply in it
MULTIPLE = 16  # of both sizes of a weight that they multiply


def float8_missing(device: torch.device) -> str | None:
    """Why a device cannot multiply in float8, in one line; None if it can."""
    if device.type not in ("cuda", "meta"):
        return f"float8 is not supported on {device.type}; use device cuda, or int8"
    if find_spec("torchao") is None:
        return "float8 needs the package torchao: pip install 'var-toolkit[float8]'"
    if device.type == "meta" or not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_capability(device)
    if found >= CAPABILITY:
        return None
    has, needed = (".".join(map(str, each)) for each in (found, CAPABILITY))
    return f"float8 needs a GPU of compute capability {needed}; {device} has {has}; use int8 or bfloat16"


@contextmanager
def torchao_quietly() -> Iterator[None]:
    """Within it torchao can be imported without what torch would write about it to standard error."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def quantize_to_float8(network: nn.Module) -> None:
    """Quantise the weights of the linear layers of a network's transformer blocks in place; their biases get bfloat16.

    Layers whose sizes are no multiples of 16 stay as they are, and so does a network that is quantised already.
    ValueError if it has no others.
    """
    quantize = _shape_only if all(weight.is_meta for weight in network.parameters()) else _by_torchao
    for block in transformer_blocks(network):
        quantize(block)
    if not is_float8(network):
        raise ValueError(
            f"{type(network).__name__} has no linear layers in transformer blocks, with sizes that are multiples of "
            f"{MULTIPLE}, which float8 is for; use bfloat16"
        )


def _by_torchao(block: nn.Module) -> None:
    with torchao_quietly():
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    for layer in filter(_is_wide, block.modules()):
        if layer.weight.dtype != torch.bfloat16:  # all that torchao takes with a scale for each row
            layer.bfloat16()
    # The settings of the compiler are the caller's.
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    quantize_(block, config, filter_fn=lambda layer, _: _is_wide(layer))


def _shape_only(block: nn.Module) -> None:
    """Of a network without weights, whose size alone is asked for, without torchao, which would ask for a GPU."""
    for layer in filter(_is_wide, block.modules()):
        narrow = cast(Tensor, layer.weight).to(torch.float8_e4m3fn)
        layer.weight = nn.Parameter(narrow, requires_grad=False)


def is_float8(network: nn.Module) -> bool:
    """Whether a network has layers in float8."""
    return any(_in_float8(layer) for layer in network.modules())


def _is_wide(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Linear) or is_traceable_wrapper_subclass(layer.weight) or _is_narrow(layer.weight):
        return False
    return not any(size % MULTIPLE for size in layer.weight.shape)


def _in_float8(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and _is_narrow(layer.weight)


def bytes_of(weight: Tensor, wide: torch.dtype) -> int:
    """The memory of a weight in 8 bits, or of a wide one in another dtype than it has now."""
    return weight.numel() * (1 if weight.dtype == torch.int8 or _is_narrow(weight) else wide.itemsize)


def _is_narrow(weight: Tensor) -> bool:
    # A tensor of torchao, which is not imported to ask, has the dtype that it had before.
    return weight.dtype == torch.float8_e4m3fn or type(weight).__name__ == "Float8Tensor"
