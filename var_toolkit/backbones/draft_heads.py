"""Small networks that draft for a larger GPT (`backbones.raster_gpt`) by reading what it has computed already.

EAGLE (arXiv 2401.15077) guesses the features of the next place from those of this one and the token drawn there.
Kangaroo (arXiv 2404.18911) leaves the target after its first layers, through a block that makes up for the others. The
target's embeddings, last norm and output layer serve both, and are in the weights of neither.

Letters: R rows (images, twice under guidance), L tokens, C width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from var_toolkit.backbones.cache import KVCache, RaggedCache, cache_of
from var_toolkit.backbones.linear import Linear
from var_toolkit.backbones.raster_gpt import (
    Branches,
    RasterBlock,
    RasterGPT,
    RasterGPTConfig,
    rotation_and_attend,
    rotation_with_class,
)
from var_toolkit.backbones.rotary import Rotation


@dataclass(frozen=True)
class EagleHeadConfig:
    """Sizes of the one block; `embed_dim`, `side` and `vocab_size` are those of the target."""

    embed_dim: int = 768
    num_heads: int = 12
    mlp_hidden: int | None = None  # None: as published for the target
    side: int = 16
    vocab_size: int = 16384

    def __post_init__(self) -> None:
        _ = self.block  # which refuses sizes that cannot be

    @property
    def block(self) -> RasterGPTConfig:
        """The block as a network of one layer."""
        sizes = {name: getattr(self, name) for name in ("embed_dim", "num_heads", "mlp_hidden", "side", "vocab_size")}
        return RasterGPTConfig(depth=1, **sizes)


@dataclass(frozen=True)
class ExitHeadConfig(EagleHeadConfig):
    """The same, every size that of the target, and how many of its layers come before the exit."""

    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise ValueError(f"layers is {self.layers}; it must be a positive integer")


class EagleHead(nn.Module):
    """Tokens and the features that predicted them -> a guess of the features that predict the next tokens.

    The published block has no norm before its attention, and features are taken after the target's last norm; here the
    block is one of the target's, norms included, and features are those before the last norm (`RasterGPT.next_hidden`).
    """

    def __init__(self, config: EagleHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.fuse = Linear(2 * config.embed_dim, config.embed_dim)
        self.block = RasterBlock(config.block)

    def require_fit(self, target: RasterGPT) -> None:
        """ValueError if the head was made for another target than one of these sizes."""
        _require_same(self.config.block, target.config, ("embed_dim", "side", "vocab_size"))

    def new_ragged_cache(self, rows: int, capacity: int) -> RaggedCache:
        """An empty cache of `capacity` tokens per row; slot j is for token j of the image, at position 1 + j."""
        return cast(RaggedCache, cache_of(self, rows, [capacity], RaggedCache))

    def next_features(
        self,
        target: RasterGPT,
        tokens_RL: Tensor,
        features_RLC: Tensor,
        *,
        cache: KVCache | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """Guesses of the features at the places of tokens that follow what the cache holds, (R, L, C).

        `features` are those that predicted each token: the target's own, at the place before it, or guesses of them.
        `target.next_logits` of the guesses tells the tokens behind these. The cache holds these tokens too afterwards.
        `branches` are as in `RasterGPT.next_hidden`: the place of token i is 1 + i, and the cache has no slot for the
        class.
        """
        return self(target.tok_embeddings(tokens_RL), features_RLC, cache=cache, branches=branches)

    def forward(
        self,
        embeddings_RLC: Tensor,
        features_RLC: Tensor,
        *,
        cache: KVCache | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """The same from embeddings of the tokens."""
        x_RLC = self.fuse(torch.cat((embeddings_RLC, features_RLC), dim=-1))
        if branches is not None:
            branches = branches._replace(positions=branches.positions - 1)  # as the table below begins with token 0
        on_map = Rotation(*(table[1:] for table in _rotation(self.config, x_RLC.device)))
        rotation, attend = rotation_and_attend(on_map, cache, x_RLC.shape[1], branches)
        x_RLC = self.block(x_RLC, rotation, attend, cache, 0)
        if cache is not None:
            cache.advance(x_RLC.shape[1])
        return x_RLC


class ExitHead(nn.Module):
    """Features behind the first layers of a target -> features for its last norm and output layer.

    The published adapter has attention and norms alone; here it is a block like the target's, MLP included.
    """

    def __init__(self, config: ExitHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.block = RasterBlock(config.block)

    def forward(self, features_RLC: Tensor) -> Tensor:
        """The training pass: features of the class and the tokens behind it -> those for the output, (R, L, C)."""
        rotation, attend = rotation_and_attend(_rotation(self.config, features_RLC.device), None, features_RLC.shape[1])
        return self.block(features_RLC, rotation, attend, None, 0)

    @torch.no_grad()
    def init_weights(self) -> None:
        """A block that adds nothing yet: training begins at the plain exit."""
        for layer in (self.block.attention.wo, self.block.feed_forward.w2):
            nn.init.zeros_(layer.weight)


def early_exit(target: RasterGPT, layers: int, head: ExitHead | None = None) -> RasterGPT:
    """The first `layers` layers of a target, the block of a head if there is one, and the output, as one network.

    It shares the modules of both and adds no weights. ValueError unless 1 to depth - 1 layers are asked for, and the
    head was made for that many of such a target.
    """
    last = target.config.depth - 1
    if not 1 <= layers <= last:
        raise ValueError(f"layers is {layers}; an early exit of {last + 1} layers has from 1 to {last}")
    blocks: list[nn.Module] = list(target.blocks[:layers])
    if head is not None:
        if head.config.layers != layers:
            raise ValueError(f"layers is {layers}, but the head is for an exit behind {head.config.layers}")
        _require_same(head.config.block, target.config, ("embed_dim", "num_heads", "hidden", "side", "vocab_size"))
        blocks.append(head.block)
    with torch.device("meta"):
        shallow = RasterGPT(replace(target.config, depth=len(blocks)))
    shallow.layers = nn.ModuleList(blocks)
    for name in ("cls_embedding", "tok_embeddings", "tok_dropout", "norm", "output"):
        setattr(shallow, name, getattr(target, name))
    return shallow.train(target.training)


def _rotation(config: EagleHeadConfig, device: torch.device) -> Rotation:
    return rotation_with_class(config.side, config.embed_dim // config.num_heads, device)


def _require_same(head: RasterGPTConfig, target: RasterGPTConfig, names: Iterable[str]) -> None:
    for name in names:
        ours, theirs = getattr(head, name), getattr(target, name)
        if ours != theirs:
            raise ValueError(f"the head has {name} {ours}, but the target has {theirs}; use a head trained for it")
