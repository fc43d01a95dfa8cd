"""The VAR transformer (arXiv 2404.02905): next-scale prediction, key-compatible with `var_d16.pth` ... `var_d36.pth`.

Letters: R rows (images, twice under guidance), L tokens, C width, V vocabulary, K scales, c latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.conditions.condition import labels_of
from var_toolkit.core.cache import KVCache, cache_of, token_span
from var_toolkit.core.layers import Layers
from var_toolkit.core.pruning import PrunedPass, sublayers
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats import next_scale_files as files
from var_toolkit.formats.state_dicts import Tensors, count
from var_toolkit.models.family import Family
from var_toolkit.models.layers.attention import Attend
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.next_scale import (
    Block,
    HeadNorm,
    Modulation,
    NextScaleConfig,
    NextScaleTransformer,
    drop_rates,
    in_a_row,
    modulations,
    through_layers,
)
from var_toolkit.tokenizers.multiscale_vq import FILES


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
        blocks = [block.of_rows(rows) for block in self.blocks]
        return Condition(self.start_RC[rows], blocks, self.head_scale[rows], self.head_shift[rows])


class VAR(NextScaleTransformer):
    """Labels and the tokenizer's inputs -> logits for the tokens of each scale.

    `forward` is the packed training pass; decoding calls `condition` once, then `hidden` and `logits` scale by scale
    with a cache. Both are the same computation.
    """

    config: VARConfig
    markov = False
    has_subnets = True

    def __init__(self, config: VARConfig) -> None:
        super().__init__(config, word_bias=True)
        self.blocks = nn.ModuleList(Block(config, rate) for rate in drop_rates(config.depth, config.drop_path))
        self.head_nm = HeadNorm(config.embed_dim)
        self.head = Linear(config.embed_dim, config.vocab_size)

    @property
    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `rows` rows (`core.cache.cache_of`)."""
        return cache_of(self, rows, capacities)

    def cache_values(self, tokens: int) -> int:
        """Number of cached values per row for `tokens` tokens of one layer."""
        return 2 * tokens * self.config.embed_dim

    def condition(self, given: Given) -> Condition:
        """Labels (`num_classes` is the null class) -> the modulation of every block and of the head."""
        start_RC = self.class_emb(labels_of(given, type(self).__name__))
        modulation_input = self._modulation_input(start_RC)
        return Condition(start_RC, modulations(self._blocks, modulation_input), *self.head_nm(start_RC))

    def hidden(
        self,
        condition: Condition,
        inputs_RLc: Tensor | None,
        *,
        scales: range,
        schedule: Schedule | None = None,
        cache: KVCache | None = None,
        layers: Layers | None = None,
        open_prefill: bool = False,
        pruned: PrunedPass | None = None,
    ) -> Tensor:
        """Features (R, L, C) of the tokens of `scales`, computed in one block-causal pass.

        With `open_prefill` the pass has no mask, so that coarse tokens see finer ones.

        `inputs_RLc` are the tokenizer's inputs of these scales; scale 0 has none, since it starts from the class. A
        cache must hold exactly the scales before `scales`; these are appended. ValueError if it does not. Layers that
        `layers` skip compute only the first scales (`through_layers`); in a `pruned` pass layers compute some tokens.
        """
        schedule = schedule or self.scales
        begin, end = token_span(cache, schedule, scales)
        x_RLC = self._embed(condition, inputs_RLc, scales, schedule)

        def step(x_RLC: Tensor, layer: int, attend: Attend) -> Tensor:
            run = sublayers(pruned, layer)
            found: Tensor = self.blocks[layer](x_RLC, condition.blocks[layer], attend, cache, layer, run)
            return found

        x_RLC = through_layers(step, x_RLC, len(self.blocks), scales, schedule, layers, open_prefill)
        if cache is not None:
            cache.advance(end - begin)
        return x_RLC

    def logits(self, condition: Condition, hidden_RLC: Tensor) -> Tensor:
        """Features -> logits (R, L, V), float32."""
        return self._head_logits(self.head, hidden_RLC, condition.head_scale, condition.head_shift)

    def forward(
        self, labels_B: Tensor, inputs_BLc: Tensor, layers: Layers | None = None, schedule: Schedule | None = None
    ) -> Tensor:
        """The packed training pass: labels (B), teacher inputs of scales 1 .. K-1 -> logits (B, L, V), float32.

        Inputs of the first scales only give the logits of these. `schedule` is the network's own by default.
        """
        condition, schedule = self.condition(Given(labels=labels_B)), schedule or self.scales
        scales = range(schedule.offsets.index(inputs_BLc.shape[1] + schedule.lengths[0]))
        hidden = self.hidden(condition, inputs_BLc, scales=scales, schedule=schedule, layers=layers)
        return self.logits(condition, hidden)

    def _embed(self, condition: Condition, inputs_RLc: Tensor | None, scales: range, schedule: Schedule) -> Tensor:
        return self._tokens(condition, inputs_RLc, scales) + self._position_embeddings(scales, schedule)

    def _tokens(self, condition: Condition, inputs_RLc: Tensor | None, scales: range) -> Tensor:
        """The inputs of some scales as features, without their positions."""
        parts = []
        if scales.start == 0:
            parts.append(condition.start_RC.unsqueeze(1) + self.pos_start)
        if inputs_RLc is not None:
            parts.append(self.word_embed(inputs_RLc.to(self.word_embed.weight.dtype)))
        return in_a_row(parts)

    @torch.no_grad()
    def init_weights(self, *, adaln_gamma: float = 1e-3, head: float = 0.02) -> None:
        """The published initialisation.

        `adaln_gamma` scales the gates of the residual branches; published 1e-3 for d16 down to 5e-6 for d36. `head`
        scales the last layer.
        """
        self._init_shared(self._blocks, [(self.head_nm, self.head)], adaln_gamma=adaln_gamma, head=head)


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a VAR."""
    return {"depth": count(tensors, "blocks."), **files.next_scale_sizes(tensors, "blocks.0", "head")}


FAMILY = Family(
    network=VAR,
    tokenizer=FILES,
    title="VAR",
    paper="2404.02905",
    way="next-scale prediction: each token map is predicted from all coarser ones",
    required=(*files.REQUIRED, "head.weight"),
    dropped=files.DROPPED,
    arguments=files.ARGUMENTS,
    sizes=sizes,
    completed=files.completed,
)
NETWORKS = {"VAR": "backbone"}
MODELS = {
    "stilllife-var": {
        "summary": "VAR, 12 layers, still lifes (the default)",
        "embedded": {"tokenizer": "stilllife-tokenizer", "backbone": "stilllife-var"},
        "training": {
            "recipes": ("stilllife-var", "stilllife-variant"), "images": 123_000, "judged": 10_000, "agreement": 93.5,
            "distance": 33.8,
        },
    },
    "stilllife-variant": {
        "summary": "VARiant: the same weights, 4 layers for the two finest scales",
        "embedded": {"tokenizer": "stilllife-tokenizer", "backbone": "stilllife-var"},
        "sampling": {"subnet": 4, "full_scales": 4},
        "training": {
            "recipes": ("stilllife-var", "stilllife-variant"), "images": 123_000, "judged": 10_000, "agreement": 85.1,
            "distance": 81.2,
        },
    },
    "stilllife-var-small": {
        "summary": "VAR, 6 layers, still lifes",
        "embedded": {"tokenizer": "stilllife-tokenizer", "backbone": "stilllife-var-small"},
        "sampling": {"latent_scorer": "stilllife-latent-scorer"},
        "training": {
            "recipes": ("stilllife-var-small",), "images": 38_000, "judged": 1000, "agreement": 53.4, "distance": 244,
        },
    },
    "stilllife-code-4": {
        "summary": "CoDe: the deep one for 4 scales, then a refiner it taught",
        "embedded": {
            "tokenizer": "stilllife-tokenizer", "backbone": "stilllife-var", "refiner": "stilllife-code-refiner-4",
        },
        "draft_scales": 4,
        "training": {
            "recipes": ("stilllife-var", "stilllife-variant", "stilllife-code-refiner-4"), "judged": 10_000,
            "agreement": 88.2, "distance": 65.6,
        },
    },
    "var-d16": {
        "summary": "VAR, 16 layers, ImageNet",
        "parameters": 310_000_000, "license": "mit", "fid": 3.55,
        "files": {
            "tokenizer": "FoundationVision/var/vae_ch160v4096z32.pth", "backbone": "FoundationVision/var/var_d16.pth",
        },
        "sizes": {"backbone": {"depth": 16, "embed_dim": 1024, "num_heads": 16}},
    },
    "var-d20": {
        "like": "var-d16", "summary": "VAR, 20 layers, ImageNet",
        "parameters": 600_000_000, "fid": 2.95,
        "files": {"backbone": "FoundationVision/var/var_d20.pth"},
        "sizes": {"backbone": {"depth": 20, "embed_dim": 1280, "num_heads": 20}},
    },
    "var-d24": {
        "like": "var-d16", "summary": "VAR, 24 layers, ImageNet",
        "parameters": 1_030_000_000, "fid": 2.33,
        "files": {"backbone": "FoundationVision/var/var_d24.pth"},
        "sizes": {"backbone": {"depth": 24, "embed_dim": 1536, "num_heads": 24}},
    },
    "var-d30": {
        "like": "var-d16", "summary": "VAR, 30 layers, ImageNet",
        "parameters": 2_010_000_000, "fid": 1.97,
        "files": {"backbone": "FoundationVision/var/var_d30.pth"},
        "sizes": {"backbone": {"depth": 30, "embed_dim": 1920, "num_heads": 30}},
    },
    "var-d36-512": {
        "like": "var-d16", "summary": "VAR, 36 layers, ImageNet", "resolution": 512,
        "parameters": 2_350_000_000, "fid": 2.63,
        "files": {"backbone": "FoundationVision/var/var_d36.pth"},
        "sizes": {
            "tokenizer": {"patch_nums": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)},
            "backbone": {
                "depth": 36, "embed_dim": 2304, "num_heads": 36, "patch_nums": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
                "shared_aln": True,
            },
        },
    },
    "code-6": {
        "summary": "CoDe, VAR with 30 layers for 6 scales, then 16, ImageNet",
        "parameters": 2_320_000_000, "license": "mit", "fid": 2.27,
        "files": {
            "tokenizer": "FoundationVision/var/vae_ch160v4096z32.pth", "backbone": "Zigeng/VAR_CoDe/drafter_6.pth",
            "refiner": "Zigeng/VAR_CoDe/refiner_6.pth",
        },
        "sizes": {
            "backbone": {"depth": 30, "embed_dim": 1920, "num_heads": 30},
            "refiner": {"depth": 16, "embed_dim": 1024, "num_heads": 16},
        },
        "sampling": {"top_k": 600, "temperature": (1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.0, 1.0, 1.0)},
        "draft_scales": 6,
    },
    "code-7": {
        "like": "code-6", "summary": "CoDe, VAR with 30 layers for 7 scales, then 16, ImageNet",
        "fid": 2.11, "draft_scales": 7,
        "files": {"backbone": "Zigeng/VAR_CoDe/drafter_7.pth", "refiner": "Zigeng/VAR_CoDe/refiner_7.pth"},
    },
    "code-8": {
        "like": "code-6", "summary": "CoDe, VAR with 30 layers for 8 scales, then 16, ImageNet",
        "fid": 1.98, "draft_scales": 8,
        "files": {"backbone": "Zigeng/VAR_CoDe/drafter_8.pth", "refiner": "Zigeng/VAR_CoDe/refiner_8.pth"},
    },
    "code-9": {
        "like": "code-6", "summary": "CoDe, VAR with 30 layers for 9 scales, then 16, ImageNet",
        "fid": 1.94, "draft_scales": 9,
        "files": {"backbone": "Zigeng/VAR_CoDe/drafter_9.pth", "refiner": "Zigeng/VAR_CoDe/refiner_9.pth"},
    },
    "cca-var-d16": {
        "like": "var-d16", "summary": "CCA, VAR, 16 layers, needs no guidance, ImageNet", "fid": 4.03,
        "files": {"backbone": "ChenDRAG/CCA_VAR/CCA_VAR_Guidance_Free/VAR_d16_CCA.pth"},
        "sampling": {"cfg": 0.0},
    },
    "cca-var-d20": {
        "like": "var-d20", "summary": "CCA, VAR, 20 layers, needs no guidance, ImageNet", "fid": 3.02,
        "files": {"backbone": "ChenDRAG/CCA_VAR/CCA_VAR_Guidance_Free/VAR_d20_CCA.pth"},
        "sampling": {"cfg": 0.0},
    },
    "cca-var-d24": {
        "like": "var-d24", "summary": "CCA, VAR, 24 layers, needs no guidance, ImageNet", "fid": 2.63,
        "files": {"backbone": "ChenDRAG/CCA_VAR/CCA_VAR_Guidance_Free/VAR_d24_CCA.pth"},
        "sampling": {"cfg": 0.0},
    },
    "cca-var-d30": {
        "like": "var-d30", "summary": "CCA, VAR, 30 layers, needs no guidance, ImageNet", "fid": 2.54,
        "files": {"backbone": "ChenDRAG/CCA_VAR/CCA_VAR_Guidance_Free/VAR_d30_CCA.pth"},
        "sampling": {"cfg": 0.0},
    },
}  # fmt: skip
