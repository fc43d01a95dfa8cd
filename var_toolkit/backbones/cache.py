"""Keys and values of one decoding run. The caller makes it, passes it in and drops it; networks never hold one.

Letters: R rows (pictures, twice under guidance), H heads, L tokens, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values of every layer, (R, H, length, D) each, filled from the front."""

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        heads: int,
        length: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (rows, heads, length, head_dim)
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.capacity = length
        self.length = 0

    def append(self, layer: int, k_RHLD: Tensor, v_RHLD: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind what is there; return views of everything so far.

        The length moves only with `advance`, once all layers have written, so an error in between leaves it right.
        """
        end = self.length + k_RHLD.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {end} were asked of it")
        self._keys[layer][:, :, self.length : end] = k_RHLD
        self._values[layer][:, :, self.length : end] = v_RHLD
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as cached, after every layer has appended them."""
        self.length += tokens

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a cache of {self.length} tokens to {length}")
        self.length = length

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values, in bytes."""
        return sum(t.numel() * t.element_size() for t in (*self._keys, *self._values))
