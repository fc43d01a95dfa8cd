"""The HMAR transformer (arXiv 2506.04421): each scale attends only to itself and may take several masked passes.

Key-compatible with `hmar-d16.pth` ... `hmar-d30.pth`. Coarser scales reach a scale only through its input, the
latent so far. So nothing is cached, and any scale can be computed on its own.

Letters: R rows (images, twice under guidance), L tokens, C width, V vocabulary, c latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.conditions.condition import labels_of
from var_toolkit.core.cache import KVCache
from var_toolkit.core.layers import Layers
from var_toolkit.core.pruning import PrunedPass, sublayers
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats import next_scale_files as files
from var_toolkit.formats.state_dicts import Tensors, count
from var_toolkit.models.family import Family
from var_toolkit.models.layers.attention import Attend, to_all, within_pyramid
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
)
from var_toolkit.tokenizers.multiscale_vq import FILES


@dataclass(frozen=True)
class HMARConfig(NextScaleConfig):
    """Sizes of HMAR: `depth` layers predict a scale; masked passes have their own copy of the last `branch_depth`."""

    branch_depth: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.branch_depth <= self.depth:
            raise ValueError(f"branch_depth is {self.branch_depth}; it must be from 1 to the depth, {self.depth}")


class Branch(NamedTuple):
    """Class modulation of one of the two branches."""

    blocks: list[Modulation]
    head_scale: Tensor  # one plus scale, (R, 1, C)
    head_shift: Tensor


class Condition(NamedTuple):
    """Everything that depends only on the labels: computed once per run, used at every scale."""

    start_RC: Tensor  # noqa: N815
    modulation_input: Tensor  # input of `Block.modulation`
    next_scale: Branch

    def of_rows(self, rows: Tensor | slice) -> Condition:
        """The condition of some of the rows."""
        blocks, scale, shift = self.next_scale
        branch = Branch([block.of_rows(rows) for block in blocks], scale[rows], shift[rows])
        return Condition(self.start_RC[rows], self.modulation_input[rows], branch)


class HMAR(NextScaleTransformer):
    """Labels and the tokenizer's inputs -> logits for the tokens of each scale, and for masked tokens.

    Both branches share the base layers: `hidden` and `logits` go through the next-scale one, `refined` through the
    masked one. `forward` is the packed training pass of either.
    """

    config: HMARConfig
    markov = True

    def __init__(self, config: HMARConfig) -> None:
        super().__init__(config, word_bias=False)
        width, rates = config.embed_dim, drop_rates(config.depth, config.drop_path)
        shared = config.depth - config.branch_depth
        self.word_embed_bias = nn.Parameter(torch.zeros(width))
        self.mask_embed = nn.Embedding.from_pretrained(torch.zeros(1, width), freeze=False)
        self.base_blocks = nn.ModuleList(Block(config, rate) for rate in rates[:shared])
        self.ns_blocks = nn.ModuleList(Block(config, rate) for rate in rates[shared:])
        self.mask_blocks = nn.ModuleList(Block(config, rate) for rate in rates[shared:])
        self.ns_head_nm, self.ns_head = HeadNorm(width), Linear(width, config.vocab_size)
        self.mask_head_nm, self.mask_head = HeadNorm(width), Linear(width, config.vocab_size)

    @property
    def blocks(self) -> list[Block]:
        """The layers of the next-scale branch."""
        return [cast(Block, block) for block in (*self.base_blocks, *self.ns_blocks)]

    @property
    def masked_path(self) -> list[Block]:
        """The layers of the masked branch."""
        return [cast(Block, block) for block in (*self.base_blocks, *self.mask_blocks)]

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> KVCache:
        """A cache without layers, since HMAR caches nothing."""
        c, weight = self.config, self.ns_head.weight
        shape = {"rows": rows, "heads": c.num_heads, "head_dim": c.embed_dim // c.num_heads}
        return KVCache((), **shape, dtype=weight.dtype, device=weight.device)

    def cache_values(self, tokens: int) -> int:
        """Number of cached values: 0 for any number of tokens."""
        return 0

    def condition(self, given: Given) -> Condition:
        """Labels (`num_classes` is the null class) -> the modulation of every block and of the heads."""
        start_RC = self.class_emb(labels_of(given, type(self).__name__))
        modulation_input = self._modulation_input(start_RC)
        return Condition(
            start_RC, modulation_input, Branch(modulations(self.blocks, modulation_input), *self.ns_head_nm(start_RC))
        )

    def _masked_branch(self, condition: Condition, rows: int) -> Branch:
        """Modulation of the first `rows` rows. Computed on demand, since many runs have no masked pass."""
        shared = condition.next_scale.blocks[: len(self.base_blocks)]
        base = [block.of_rows(slice(rows)) for block in shared]
        own = modulations(_each(self.mask_blocks), condition.modulation_input[:rows])
        return Branch(base + own, *self.mask_head_nm(condition.start_RC[:rows]))

    def hidden(
        self,
        condition: Condition,
        inputs_RLc: Tensor | None,
        *,
        scales: range,
        schedule: Schedule | None = None,
        cache: KVCache | None = None,
        layers: Layers | None = None,
        pruned: PrunedPass | None = None,
    ) -> Tensor:
        """Features (R, L, C) of the tokens of `scales`, each scale on its own; of the cache only outputs are used.

        `inputs_RLc` are the tokenizer's inputs of these scales; scale 0 has none, since it starts from the class.
        In a `pruned` pass layers compute some tokens.
        """
        words = None if inputs_RLc is None else self._words(inputs_RLc) + self.word_embed_bias
        x_RLC = self._embed(condition.start_RC, words, scales)
        return self._run(self.blocks, condition.next_scale, x_RLC, scales, pruned)

    def logits(self, condition: Condition, hidden_RLC: Tensor) -> Tensor:
        """Features -> logits (R, L, V), float32."""
        branch = condition.next_scale
        return self._head_logits(self.ns_head, hidden_RLC, branch.head_scale, branch.head_shift)

    def refined(
        self, condition: Condition, inputs_RLc: Tensor, current_RLc: Tensor, masked_RL: Tensor, *, scales: range
    ) -> Tensor:
        """Logits (R, L, V), float32, of `scales` in the masked branch; `masked_RL` (bool) marks the tokens to predict.

        `current_RLc` is the contribution of the current tokens of a scale to the latent, downsampled to that scale.
        Scale 0, which is the class alone, is not allowed. The condition may have more rows; the first R are used.
        """
        rows = len(inputs_RLc)
        branch = self._masked_branch(condition, rows)
        seen = torch.where(masked_RL.unsqueeze(-1), self.mask_embed.weight, self._words(current_RLc))
        words = self._words(inputs_RLc) + seen + self.word_embed_bias
        x_RLC = self._embed(condition.start_RC[:rows], words, scales)
        hidden = self._run(self.masked_path, branch, x_RLC, scales)
        return self._head_logits(self.mask_head, hidden, branch.head_scale, branch.head_shift)

    def forward(
        self,
        labels_B: Tensor,
        inputs_BLc: Tensor,
        current_BLc: Tensor | None = None,
        masked_BL: Tensor | None = None,
    ) -> Tensor:
        """The packed training pass: labels (B), inputs of scales 1 .. K-1 -> logits (B, L, V), float32.

        With `current_BLc` and `masked_BL` of the same scales, the logits are those of the masked branch.
        """
        condition = self.condition(Given(labels=labels_B))
        scales = range(self.scales.offsets.index(inputs_BLc.shape[1] + self.scales.lengths[0]))
        if current_BLc is not None and masked_BL is not None:
            return self.refined(condition, inputs_BLc, current_BLc, masked_BL, scales=scales)
        return self.logits(condition, self.hidden(condition, inputs_BLc, scales=scales))

    def _words(self, inputs_RLc: Tensor) -> Tensor:
        return self.word_embed(inputs_RLc.to(self.word_embed.weight.dtype))

    def _embed(self, start_RC: Tensor, words_RLC: Tensor | None, scales: range) -> Tensor:
        start = [start_RC.unsqueeze(1) + self.pos_start] if scales.start == 0 else []
        words = [] if words_RLC is None else [words_RLC]
        return in_a_row([*start, *words]) + self._position_embeddings(scales, self.scales)

    def _run(
        self, blocks: Sequence[Block], branch: Branch, x_RLC: Tensor, scales: range, pruned: PrunedPass | None = None
    ) -> Tensor:
        attend: Attend = to_all
        if len(scales) > 1:
            attend = within_pyramid(Schedule(self.scales.patch_nums[scales.start : scales.stop]), "block-diagonal")
        for layer, (block, modulation) in enumerate(zip(blocks, branch.blocks, strict=True)):
            x_RLC = block(x_RLC, modulation, attend, None, layer, sublayers(pruned, layer))
        return x_RLC

    @torch.no_grad()
    def init_weights(self, *, adaln_gamma: float = 1e-3, head: float = 0.02) -> None:
        """VAR's published initialisation for both branches (see `VAR.init_weights`)."""
        heads = [(self.ns_head_nm, self.ns_head), (self.mask_head_nm, self.mask_head)]
        self._init_shared([*self.blocks, *_each(self.mask_blocks)], heads, adaln_gamma=adaln_gamma, head=head)


def _each(blocks: Iterable[nn.Module]) -> list[Block]:
    return [cast(Block, block) for block in blocks]


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of an HMAR."""
    branch = count(tensors, "ns_blocks.")
    found = {"depth": count(tensors, "base_blocks.") + branch, "branch_depth": branch}
    return {**found, **files.next_scale_sizes(tensors, "ns_blocks.0", "ns_head")}


FAMILY = Family(
    network=HMAR,
    tokenizer=FILES,
    title="HMAR",
    paper="2506.04421",
    way="next-scale prediction: each token map is predicted from the latent accumulated so far",
    required=(*files.REQUIRED, "ns_head.weight", "mask_embed.weight", "word_embed_bias"),
    dropped=files.DROPPED,
    arguments=files.ARGUMENTS,
    sizes=sizes,
    completed=files.completed,
)
NETWORKS = {"HMAR": "backbone"}
# The settings of its evaluation, which differ from those of its demo at 30 layers alone.
MODELS = {
    "stilllife-hmar": {
        "summary": "HMAR, 6 layers and 2 for masked passes, still lifes",
        "embedded": {"tokenizer": "stilllife-tokenizer", "backbone": "stilllife-hmar"},
        "sampling": {"refine": "published"},
        "training": {
            "recipes": ("stilllife-hmar", "stilllife-hmar-mask"), "images": 176_000, "judged": 1000, "agreement": 86.4,
            "distance": 56.2,
        },
    },
    "hmar-d16": {
        "summary": "HMAR, 16 layers and 8 for masked passes, ImageNet",
        "parameters": 467_000_000, "license": "nvidia-non-commercial", "fid": 3.01,
        "files": {"tokenizer": "FoundationVision/var/vae_ch160v4096z32.pth", "backbone": "nvidia/HMAR/hmar-d16.pth"},
        "sizes": {"backbone": {"depth": 16, "embed_dim": 1024, "num_heads": 16}},
        "sampling": {"cfg": 1.7, "top_k": 1000, "top_p": 0.99, "refine": "published"},
    },
    "hmar-d20": {
        "like": "hmar-d16", "summary": "HMAR, 20 layers and 8 for masked passes, ImageNet",
        "parameters": 845_000_000, "fid": None,
        "files": {"backbone": "nvidia/HMAR/hmar-d20.pth"},
        "sizes": {"backbone": {"depth": 20, "embed_dim": 1280, "num_heads": 20}},
        "sampling": {"cfg": 1.9, "top_k": 950},
    },
    "hmar-d24": {
        "like": "hmar-d16", "summary": "HMAR, 24 layers and 8 for masked passes, ImageNet",
        "parameters": 1_384_000_000, "fid": 2.1,
        "files": {"backbone": "nvidia/HMAR/hmar-d24.pth"},
        "sizes": {"backbone": {"depth": 24, "embed_dim": 1536, "num_heads": 24}},
        "sampling": {"cfg": 2.1, "top_k": 900},
    },
    "hmar-d30": {
        "like": "hmar-d16", "summary": "HMAR, 30 layers and 8 for masked passes, ImageNet",
        "parameters": 2_556_000_000, "fid": 1.95,
        "files": {"backbone": "nvidia/HMAR/hmar-d30.pth"},
        "sizes": {"backbone": {"depth": 30, "embed_dim": 1920, "num_heads": 30}},
        "sampling": {"cfg": 1.6, "top_k": 650},
    },
}  # fmt: skip
