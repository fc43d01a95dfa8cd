"""The VAR transformer (arXiv 2404.02905): next-scale prediction, key-compatible with `var_d16.pth` ... `var_d36.pth`.

Letters: R rows (images, twice under guidance), L tokens, C width, V vocabulary, K scales, c latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from var_toolkit.core.cache import KVCache, cache_of, token_span
from var_toolkit.core.subnet import Subnet
from var_toolkit.models.layers.attention import block_causal
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.next_scale import (
    Block,
    HeadNorm,
    Modulation,
    NextScaleConfig,
    NextScaleTransformer,
    drop_rates,
)


@dataclass(frozen=True)
class VARConfig(NextScaleConfig):
    """Sizes of VAR."""


class Condition(NamedTuple):
    """Everything that depends only on the labels: computed once per run, used at every scale."""

    start_RC: Tensor  # noqa: N815
    blocks: list[Modulation]
    head_scale: Tensor  # one plus scale, (R, 1, C)
    head_shift: Tensor

    def of_rows(self, rows: Tensor | slice) -> Condition:
        """The condition of some of the rows."""
        blocks = [Modulation(*(one[rows] for one in block)) for block in self.blocks]
        return Condition(self.start_RC[rows], blocks, self.head_scale[rows], self.head_shift[rows])


class VAR(NextScaleTransformer):
    """Labels and the tokenizer's inputs -> logits for the tokens of each scale.

    `forward` is the packed training pass; decoding calls `condition` once, then `hidden` and `logits` scale by scale
    with a cache. Both are the same computation.
    """

    config: VARConfig
    markov = False

    def __init__(self, config: VARConfig) -> None:
        super().__init__(config, word_bias=True)
        self.blocks = nn.ModuleList(Block(config, rate) for rate in drop_rates(config))
        self.head_nm = HeadNorm(config.embed_dim)
        self.head = Linear(config.embed_dim, config.vocab_size)

    @property
    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `rows` rows (`backbones.cache.cache_of`)."""
        return cache_of(self, rows, capacities)

    def cache_values(self, tokens: int) -> int:
        """Number of cached values per row for `tokens` tokens of one layer."""
        return 2 * tokens * self.config.embed_dim

    def condition(self, labels_R: Tensor) -> Condition:
        """Labels (R, int64; `num_classes` is the null class) -> the modulation of every block and of the head."""
        start_RC = self.class_emb(labels_R)
        modulation_input = self._modulation_input(start_RC)
        return Condition(
            start_RC, [block.modulation(modulation_input) for block in self._blocks], *self.head_nm(start_RC)
        )

    def hidden(
        self,
        condition: Condition,
        inputs_RLc: Tensor | None,
        *,
        scales: range,
        cache: KVCache | None = None,
        subnet: Subnet | None = None,
    ) -> Tensor:
        """Features (R, L, C) of the tokens of `scales`, computed in one block-causal pass.

        `inputs_RLc` are the tokenizer's inputs of these scales; scale 0 has none, since it starts from the class. A
        cache must hold exactly the scales before `scales`; these are appended. ValueError if it does not. With a
        `subnet`, skipped layers compute only the first scales; this needs no other mask, because coarse tokens never
        attend to finer ones.
        """
        begin, end = token_span(cache, self.scales, scales)
        x_RLC = self._embed(condition, inputs_RLc, scales)
        for layer, block in enumerate(self._blocks):
            deep = end - begin if subnet is None else subnet.depth_tokens(layer, self.scales, scales)
            computed = range(scales.start, self.scales.offsets.index(begin + deep))
            attend = block_causal(self.scales, computed, x_RLC.device)
            if deep == end - begin:
                x_RLC = block(x_RLC, condition.blocks[layer], attend, cache, layer)
            elif deep:
                deepened = block(x_RLC[:, :deep], condition.blocks[layer], attend, cache, layer)
                x_RLC = torch.cat((deepened, x_RLC[:, deep:]), dim=1)
        if cache is not None:
            cache.advance(end - begin)
        return x_RLC

    def logits(self, condition: Condition, hidden_RLC: Tensor) -> Tensor:
        """Features -> logits (R, L, V), float32."""
        return self._head_logits(self.head, hidden_RLC, condition.head_scale, condition.head_shift)

    def forward(self, labels_B: Tensor, inputs_BLc: Tensor, subnet: Subnet | None = None) -> Tensor:
        """The packed training pass: labels (B), teacher inputs of scales 1 .. K-1 -> logits (B, L, V), float32.

        Inputs of the first scales only give the logits of these.
        """
        condition = self.condition(labels_B)
        scales = range(self.scales.offsets.index(inputs_BLc.shape[1] + self.scales.lengths[0]))
        return self.logits(condition, self.hidden(condition, inputs_BLc, scales=scales, subnet=subnet))

    def _embed(self, condition: Condition, inputs_RLc: Tensor | None, scales: range) -> Tensor:
        parts = []
        if scales.start == 0:
            parts.append(condition.start_RC.unsqueeze(1) + self.pos_start)
        if inputs_RLc is not None:
            parts.append(self.word_embed(inputs_RLc.to(self.word_embed.weight.dtype)))
        return torch.cat(parts, dim=1) + self._position_embeddings(scales)

    @torch.no_grad()
    def init_weights(self, *, adaln_gamma: float = 1e-3, head: float = 0.02) -> None:
        """The published initialisation.

        `adaln_gamma` scales the gates of the residual branches; published 1e-3 for d16 down to 5e-6 for d36. `head`
        scales the last layer.
        """
        self._init_shared(self._blocks, [(self.head_nm, self.head)], adaln_gamma=adaln_gamma, head=head)
