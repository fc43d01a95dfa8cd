"""Small networks that draft for a larger GPT (`models.llamagen`) from the features it has already computed.

EAGLE (arXiv 2401.15077) predicts the features of the next position from those of the current one and its sampled token.
Kangaroo (arXiv 2404.18911) exits the target after its first layers through one block that replaces the others. Both use
the target's embeddings, last norm and output layer, which are not part of their own weights.

Letters: R rows (images, twice under guidance), L tokens, C width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from var_toolkit.core.cache import KVCache, RaggedCache, cache_of
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.raster_positions import Branches, rotation_and_attend, rotation_with_class
from var_toolkit.models.layers.rotary import Rotation
from var_toolkit.models.llamagen import RasterBlock, RasterGPT, RasterGPTConfig, RasterSizes, RasterTransformer

AnyRaster = TypeVar("AnyRaster", bound=RasterTransformer)


@dataclass(frozen=True)
class EagleHeadConfig:
    """Sizes of the single block; `embed_dim`, `side` and `vocab_size` equal those of the target."""

    embed_dim: int = 768
    num_heads: int = 12
    mlp_hidden: int | None = None  # None: as published for the target
    side: int = 16
    vocab_size: int = 16384

    def __post_init__(self) -> None:
        _ = self.block  # raises ValueError for impossible sizes

    @property
    def block(self) -> RasterGPTConfig:
        """The block as the config of a network of one layer."""
        sizes = {name: getattr(self, name) for name in ("embed_dim", "num_heads", "mlp_hidden", "side", "vocab_size")}
        return RasterGPTConfig(depth=1, **sizes)


@dataclass(frozen=True)
class ExitHeadConfig(EagleHeadConfig):
    """Sizes of the block, all equal to the target's, and the number of target layers before the exit."""

    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise ValueError(f"layers is {self.layers}; it must be a positive integer")


class EagleHead(nn.Module):
    """Tokens and the features that predicted them -> estimates of the features that predict the next tokens.

    The published block has no norm before its attention and reads features after the target's last norm. Here the
    block has the target's layout, norms included, and reads features before that norm (`RasterGPT.next_hidden`).
    """

    def __init__(self, config: EagleHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.fuse = Linear(2 * config.embed_dim, config.embed_dim)
        self.block = RasterBlock(config.block)

    def require_fit(self, target: RasterGPT) -> None:
        """ValueError if the head was built for a target of other sizes."""
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
        """Estimated features at the positions of tokens that follow those in the cache, (R, L, C).

        `features` predicted each token: the target's own features at the position before it, or estimates of them.
        `target.next_logits` of the result gives the logits of the tokens that follow. The tokens are added to the
        cache. `branches` are as in `RasterGPT.next_hidden`: the position of token i is 1 + i, and the cache has no
        slot for the class.
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
        """`next_features` from token embeddings (R, L, C)."""
        x_RLC = self.fuse(torch.cat((embeddings_RLC, features_RLC), dim=-1))
        if branches is not None:
            branches = branches._replace(positions=branches.positions - 1)  # the table below starts with token 0
        on_map = Rotation(*(table[1:] for table in _rotation(self.config, x_RLC.device)))
        rotation, attend = rotation_and_attend(on_map, cache, x_RLC.shape[1], branches)
        x_RLC = self.block(x_RLC, rotation, attend, cache, 0)
        if cache is not None:
            cache.advance(x_RLC.shape[1])
        return x_RLC


class ExitHead(nn.Module):
    """Features after the first layers of a target -> features for its last norm and output layer.

    The published adapter has attention and norms only; here it is a block like the target's, MLP included.
    """

    def __init__(self, config: ExitHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.block = RasterBlock(config.block)

    def forward(self, features_RLC: Tensor) -> Tensor:
        """The training pass: features of the class and all tokens -> features for the output layer, (R, L, C)."""
        rotation, attend = rotation_and_attend(_rotation(self.config, features_RLC.device), None, features_RLC.shape[1])
        return self.block(features_RLC, rotation, attend, None, 0)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise the block to the identity, so that training starts from the plain exit."""
        for layer in (self.block.attention.wo, self.block.feed_forward.w2):
            nn.init.zeros_(layer.weight)


def early_exit(target: AnyRaster, layers: int, head: ExitHead | None = None) -> AnyRaster:
    """The first `layers` layers of a target, the block of `head` if given, and the output layer, as one network.

    It shares the modules of both and adds no weights. ValueError unless `layers` is 1 to depth - 1 and the head was
    built for that many layers of a target of these sizes.
    """
    last = target.config.depth - 1
    if not 1 <= layers <= last:
        raise ValueError(f"layers is {layers}; an early exit from {last + 1} layers takes 1 to {last}")
    blocks: list[nn.Module] = list(target.blocks[:layers])
    if head is not None:
        if head.config.layers != layers:
            raise ValueError(
                f"layers is {layers}, but the head was trained for an exit after {head.config.layers} layers"
            )
        _require_same(head.config.block, target.config, ("embed_dim", "num_heads", "hidden", "side", "vocab_size"))
        blocks.append(head.block)
    with torch.device("meta"):
        shallow = cast(Any, type(target))(replace(target.config, depth=len(blocks)))
    shallow.layers = nn.ModuleList(blocks)
    for name in ("cls_embedding", "tok_embeddings", "tok_dropout", "norm", "output"):
        setattr(shallow, name, getattr(target, name))
    return cast(AnyRaster, shallow.train(target.training))


def _rotation(config: EagleHeadConfig, device: torch.device) -> Rotation:
    return rotation_with_class(config.side, config.embed_dim // config.num_heads, device)


def _require_same(head: RasterSizes, target: RasterSizes, names: Iterable[str]) -> None:
    for name in names:
        ours, theirs = getattr(head, name), getattr(target, name)
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours} in the head but {theirs} in the target; use a head trained for this target"
            )


NETWORKS = {"EagleHead": "draft_head", "ExitHead": "draft_head"}
MODELS = {
    "stilllife-gpt-eagle": {
        "summary": "EAGLE's head, drafts for stilllife-gpt",
        "embedded": {"draft_head": "stilllife-gpt-eagle"},
    },
    "stilllife-gpt-exit": {
        "summary": "drafts after 2 layers of stilllife-gpt",
        "embedded": {"draft_head": "stilllife-gpt-exit"},
    },
}  # fmt: skip
