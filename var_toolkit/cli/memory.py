"""Errors that mean that memory ran out, on any device, and the way out."""

from __future__ import annotations

REMEDY = (
    "out of memory; use a smaller batch (--batch-size, or batch_size of a recipe), fewer images at once (-n, where "
    "--grid, --trace or --save-tokens hold them all), or --dtype bfloat16"
)
# What torch says on processors (its allocator, then oneDNN's) and on MPS, and of cuBLAS and cuDNN; its own allocator on
# CUDA has a class of its own.
_WORDS = (
    "DefaultCPUAllocator", "not enough memory", "could not create a memory", "out of memory", "STATUS_ALLOC_FAILED",
)  # fmt: skip


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so. torch is not imported: there may be no memory for it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"}:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
