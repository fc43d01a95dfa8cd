"""The features of prompts: joined, padded, and written to files.

Letters: B prompts, T text tokens, C text channels, P pooled channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.formats.directory import write_tensors
from var_toolkit.formats.safetensors_files import read_safetensors

TENSORS = ("features", "mask", "pooled")


@dataclass(frozen=True, eq=False, repr=False)
class PromptEmbeds:
    """The features of prompts, those of shorter ones padded at the end. ValueError if the shapes do not fit."""

    features: Tensor  # (B, T, C), floating point
    mask: Tensor  # (B, T), bool: true for the tokens of the prompt, which come first
    pooled: Tensor | None = None  # (B, P)
    prompts: tuple[str, ...] = ()  # the texts, where they are known
    encoder: str = ""  # the name of what encoded them, where it is known

    def __post_init__(self) -> None:
        rows, tokens = self.features.shape[:2] if self.features.ndim == 3 else (0, 0)
        if rows == 0 or tokens == 0 or not self.features.is_floating_point():
            raise ValueError(f"prompt_embeds: features are {_told(self.features)}; they must be floats (B, T, C)")
        if self.mask.shape != (rows, tokens) or self.mask.dtype != torch.bool:
            raise ValueError(f"prompt_embeds: mask is {_told(self.mask)}; it must be bool ({rows}, {tokens})")
        if self.pooled is not None and (self.pooled.ndim != 2 or len(self.pooled) != rows):
            raise ValueError(f"prompt_embeds: pooled is {_told(self.pooled)}; it must be ({rows}, P)")
        if self.prompts and len(self.prompts) != rows:
            raise ValueError(f"prompt_embeds: there are {len(self.prompts)} prompts for {rows} rows")

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        return f"PromptEmbeds({_told(self.features)}, {self.encoder or 'of an unknown encoder'})"

    def of_rows(self, rows: slice | Sequence[int]) -> PromptEmbeds:
        """The features of some of the prompts, without tokens that none of them has."""
        numbers = list(range(len(self))[rows]) if isinstance(rows, slice) else list(rows)
        mask = self.mask[numbers]
        tokens = max(1, int(mask.sum(dim=1).max()))
        return PromptEmbeds(
            self.features[numbers, :tokens],
            mask[:, :tokens],
            None if self.pooled is None else self.pooled[numbers],
            tuple(self.prompts[row] for row in numbers) if self.prompts else (),
            self.encoder,
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PromptEmbeds:
        """The same on a device, the features in a dtype."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return replace(self, features=self.features.to(device, dtype), mask=self.mask.to(device), pooled=pooled)

    def padded(self, tokens: int) -> PromptEmbeds:
        """The same with zeros up to a number of tokens, which is not below theirs."""
        more = tokens - self.mask.shape[1]
        return replace(self, features=F.pad(self.features, (0, 0, 0, more)), mask=F.pad(self.mask, (0, more)))

    def left_padded(self, tokens: int) -> PromptEmbeds:
        """As `padded`, with the padding before the tokens of each prompt."""
        whole = self.padded(tokens)
        missing_B1 = tokens - whole.mask.sum(dim=1, keepdim=True)
        from_BT = (torch.arange(tokens, device=whole.mask.device) - missing_B1) % tokens
        features = whole.features.gather(1, from_BT.unsqueeze(-1).expand_as(whole.features))
        return replace(whole, features=features, mask=whole.mask.gather(1, from_BT))

    @classmethod
    def join(cls, parts: Sequence[PromptEmbeds]) -> PromptEmbeds:
        """Several as one, padded to the longest. ValueError if they are of different encoders."""
        kinds = {(one.features.shape[-1], one.pooled is None, one.encoder) for one in parts}
        if len(kinds) != 1:
            raise ValueError(f"prompt_embeds of different encoders cannot be joined: {', '.join(map(repr, parts))}")
        tokens = max(one.mask.shape[1] for one in parts)
        whole = [one.padded(tokens) for one in parts]
        pooled = [one.pooled for one in whole if one.pooled is not None]
        return cls(
            torch.cat([one.features for one in whole]),
            torch.cat([one.mask for one in whole]),
            torch.cat(pooled) if pooled else None,
            tuple(text for one in whole for text in one.prompts) if all(one.prompts for one in whole) else (),
            parts[0].encoder,
        )

    def write(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all, with the prompts and the encoder in its header."""
        tensors = {name: getattr(self, name) for name in TENSORS if getattr(self, name) is not None}
        write_tensors(Path(path), tensors, {"prompts": json.dumps(self.prompts), "encoder": self.encoder})

    @classmethod
    def read(cls, path: str | Path) -> PromptEmbeds:
        """What `write` wrote. ValueError of one line for any other file, none of which runs code."""
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist; `vargen embed` writes such a file")
        tensors = read_safetensors(Path(path))
        if odd := sorted(tensors.keys() ^ set(TENSORS[: 2 + ("pooled" in tensors)])):
            what = "has the unexpected" if odd[0] in tensors else "lacks the"
            raise ValueError(f"{path} {what} tensor {odd[0]!r}: it holds no prompts as `vargen embed` writes them")
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
            prompts = tuple(map(str, json.loads(told.get("prompts", "[]"))))
            found = cls(**tensors, prompts=prompts, encoder=told.get("encoder", ""))
        except (ValueError, TypeError, SafetensorError) as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
        if not all(bool(part.isfinite().all()) for name, part in tensors.items() if name != "mask"):
            raise ValueError(f"{path} holds values that are not finite; encode the prompts again")
        return found


def _told(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
