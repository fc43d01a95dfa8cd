"""LlamaGen from text (arXiv 2406.06525): the GPT of `models.llamagen` after a prefix of T5 features.

Key-compatible with `t2i_XL_stage1_256.pt` and `t2i_XL_stage2_512.pt`. As published, the rotation of every text token
is zero, and so are its query and its key. A text token therefore averages the values of the text up to itself, and an
image token sees all n of them as one key of zeros that weighs n times: the text is read once, into one cache slot.

Letters: R rows, T text tokens, L image tokens, C width, N layers, H heads, D head width, X text channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition, Request
from var_toolkit.conditions.text import PromptEmbeds, TextInput
from var_toolkit.core.cache import KVCache
from var_toolkit.formats.llamagen_arguments import TEXT_ARGUMENTS
from var_toolkit.formats.state_dicts import Tensors, shape
from var_toolkit.models.family import Family
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.raster_positions import Branches
from var_toolkit.models.llamagen import RasterBlock, RasterSizes, RasterTransformer, completed, transformer_sizes
from var_toolkit.tokenizers.raster_vq import FILES


@dataclass(frozen=True)
class TextRasterGPTConfig(RasterSizes):
    """Sizes of the transformer, and of the text that it reads."""

    text_channels: int = field(default=2048, metadata={"range": (1, 65_536)})
    text_tokens: int = field(default=120, metadata={"range": (1, 4096)})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("text_channels", "text_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")


class TextMLP(nn.Module):
    """Two layers without biases."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(channels, width, bias=False), Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of `channels` -> features of `width`."""
        return self.fc2(self.fc1.gelu(x))


class TextEmbedding(nn.Module):
    """The MLP of text features, and the features of the null twin."""

    uncond_embedding: Tensor

    def __init__(self, channels: int, width: int, tokens: int) -> None:
        super().__init__()
        self.cap_proj = TextMLP(channels, width)
        self.register_buffer("uncond_embedding", torch.zeros(tokens, channels))  # published untrained, as noise


class TextPrefix(NamedTuple):
    """A text that was read: all that the tokens of the image need of it."""

    features: Tensor  # (R, 1, C): predict the first token of the image
    values: Tensor  # (R, N, H, D): the mean of the text's values in each layer
    log_count: Tensor  # (R,): the logarithm of the number of text tokens
    additions: Mapping[int, Tensor]  # (R, L, C) by layer: what is added to the features that predict each token

    @property
    def tokens(self) -> TextPrefix:
        """What `next_hidden` takes."""
        return self

    def of_rows(self, rows: Tensor | slice) -> TextPrefix:
        """The prefix of some of the rows."""
        additions = {layer: added[rows] for layer, added in self.additions.items()}
        return TextPrefix(self.features[rows], self.values[rows], self.log_count[rows], additions)


class TextRasterGPT(RasterTransformer):
    """Text features and the tokens so far -> logits of the next token."""

    config: TextRasterGPTConfig
    cls_embedding: TextEmbedding

    def __init__(self, config: TextRasterGPTConfig) -> None:
        super().__init__(config, TextEmbedding(config.text_channels, config.embed_dim, config.text_tokens))

    @property
    def text(self) -> TextInput:
        """The text that it reads."""
        return TextInput(self.config.text_channels, self.config.text_tokens)

    def request(self, prompt: PromptEmbeds, null: PromptEmbeds | None = None) -> Request:
        """The prefixes (R, T, X) of prompts and their null twins, padded on the left.

        As published, the learned null twin has as many tokens as the prompt: its last ones.
        """
        tokens = max(one.mask.shape[1] for one in (prompt, null) if one is not None)
        prompt = prompt.left_padded(tokens)
        if null is not None:
            null = null.left_padded(tokens)
            twin = Condition(prefix=null.features, prefix_mask=null.mask)
        else:
            learned_TX = self.cls_embedding.uncond_embedding[-tokens:]
            twin = Condition(prefix=learned_TX.expand_as(prompt.features), prefix_mask=prompt.mask)
        return Request(Condition(prefix=prompt.features, prefix_mask=prompt.mask), twin)

    def condition(self, given: Condition) -> TextPrefix:
        """Read a text. ValueError for a condition of another kind."""
        if given.prefix is None or given.prefix_mask is None:
            raise ValueError(f"{type(self).__name__} takes text as its condition")
        return self.read(self.cls_embedding.cap_proj(given.prefix), given.prefix_mask, given.additions)

    def read(self, x_RTC: Tensor, mask_RT: Tensor, additions: Mapping[int, Tensor]) -> TextPrefix:
        """Read a prefix, padded on the left. Of `additions` its last token takes the first, as it predicts token 0."""
        mask_RT1, values = mask_RT.unsqueeze(-1), []
        count_RT1 = mask_RT1.cumsum(dim=1).clamp(min=1)
        for layer, block in enumerate(self.blocks):
            if layer in additions:
                x_RTC = torch.cat((x_RTC[:, :-1], x_RTC[:, -1:] + additions[layer][:, :1]), dim=1)
            x_RTC, last_RC = _read(block, x_RTC, mask_RT1, count_RT1)
            values.append(last_RC.unflatten(-1, (self.config.num_heads, -1)))
        return TextPrefix(x_RTC[:, -1:], torch.stack(values, dim=1), count_RT1[:, -1, 0].float().log(), additions)

    def next_hidden(
        self,
        prefix_RTC: TextPrefix | None,
        tokens_RL: Tensor,
        *,
        cache: KVCache | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """Features of the last text token, if the prefix is given, and of the tokens that follow, (R, 1 + L, C).

        The prefix is put into the empty cache first; otherwise as `RasterTransformer.next_hidden`.
        """
        if prefix_RTC is None:
            return super().next_hidden(None, tokens_RL, cache=cache, branches=branches)
        if cache is None:
            cache = self.new_cache(len(tokens_RL), [1 + tokens_RL.shape[1]] * self.config.depth)
        for layer in range(self.config.depth):
            values_RHLD = prefix_RTC.values[:, layer].unsqueeze(2)
            cache.append(layer, torch.zeros_like(values_RHLD), values_RHLD)
        cache.first, cache.additions = prefix_RTC.log_count, prefix_RTC.additions
        cache.advance(1)
        if tokens_RL.shape[1] == 0:
            return prefix_RTC.features
        rest = super().next_hidden(None, tokens_RL, cache=cache, branches=branches)
        return torch.cat((prefix_RTC.features, rest), dim=1)

    def forward(self, condition: Condition, tokens_BL: Tensor) -> Tensor:
        """A condition and all tokens but the last (B, L) -> logits of all tokens (B, L + 1, V)."""
        return self.next_logits(self.next_hidden(self.condition(condition), tokens_BL))


def _read(block: RasterBlock, x_RTC: Tensor, mask_RT1: Tensor, count_RT1: Tensor) -> tuple[Tensor, Tensor]:
    """One block over text tokens, each of which averages the values up to itself; and the average of all, (R, C)."""
    v_RTC = block.attention.wqkv(block.attention_norm(x_RTC)).chunk(3, dim=-1)[2]  # packed weights have no slices
    mean_RTC = ((v_RTC * mask_RT1).float().cumsum(dim=1) / count_RT1).to(v_RTC.dtype)
    x_RTC = x_RTC + block.attention.wo(mean_RTC)
    return x_RTC + block.feed_forward(block.ffn_norm(x_RTC)), mean_RTC[:, -1]


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a TextRasterGPT."""
    tokens, channels = shape(tensors, "cls_embedding.uncond_embedding", 2)
    return {"text_tokens": tokens, "text_channels": channels, **transformer_sizes(tensors)}


FAMILY = Family(
    network=TextRasterGPT,
    tokenizer=FILES,
    title="LlamaGen T2I",
    paper="2406.06525",
    cfg_off=1.0,
    way="next-token prediction from text: one token after another, row by row",
    required=("cls_embedding.cap_proj.fc1.weight", "tok_embeddings.weight", "output.weight"),
    dropped=("freqs_cis",),
    arguments=TEXT_ARGUMENTS,
    sizes=sizes,
    completed=completed,
)
NETWORKS = {"TextRasterGPT": "backbone"}
MODELS = {
    "llamagen-t2i-xl-256": {
        "summary": "LlamaGen, 36 layers, token by token, text (T5-XL)", "class_names": "none",
        "parameters": 779_000_000, "license": "mit",
        "files": {
            "tokenizer": "peizesun/llamagen_t2i/vq_ds16_t2i.pt",
            "backbone": "peizesun/llamagen_t2i/t2i_XL_stage1_256.pt",
        },
        "text_encoder": {"source": "google/flan-t5-xl", "license": "apache-2.0", "lowercase": True},
        "sizes": {"backbone": {"depth": 36, "num_heads": 20, "embed_dim": 1280, "side": 16}},
        "sampling": {"cfg": 7.5, "top_k": 1000, "top_p": 0.0},
    },
    "llamagen-t2i-xl-512": {
        "like": "llamagen-t2i-xl-256", "resolution": 512,
        "files": {"backbone": "peizesun/llamagen_t2i/t2i_XL_stage2_512.pt"},
        "sizes": {"backbone": {"depth": 36, "num_heads": 20, "embed_dim": 1280, "side": 32}},
    },
}  # fmt: skip
