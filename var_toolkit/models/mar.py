"""MAR (arXiv 2406.11838): continuous tokens in a random order, several at once, each drawn by a diffusion head.

Key-compatible with `checkpoint-last.pth` of MAR-B, L and H. The encoder sees the known tokens alone, behind a buffer of
rows that all hold the class; the decoder sees all positions, and its features condition the head.

Attention does not depend on the order of its rows. So the tokens are kept in the order in which they are drawn: buffer,
known, asked for, other hidden ones. What is asked for is then a slice, and the last block computes that slice alone.

Letters: B images, R rows (images, twice under guidance), L tokens, N asked for, C width, c channels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.core.plan import Group
from var_toolkit.core.schedule import Schedule
from var_toolkit.core.sketch import Sketch
from var_toolkit.formats.state_dicts import Arguments, Tensors, count, shape
from var_toolkit.heads.diffusion import PREDICTIONS
from var_toolkit.heads.head import Setting
from var_toolkit.models.family import Family
from var_toolkit.models.layers.diffusion_head import DiffusionMLP, TokenDenoiser, under
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.masked_order import Condition, RandomOrder, block_work, cosine_groups, taken
from var_toolkit.models.layers.starting import init_linears_and_norms
from var_toolkit.models.layers.vit_block import EPS, ViTBlock
from var_toolkit.tokenizers.kl16 import FILES

DEFAULT_ITERATIONS = 64


@dataclass(frozen=True)
class MARConfig:
    """Sizes of MAR; the defaults are those of MAR-B at 256 px."""

    embed_dim: int = 768
    encoder_depth: int = 12
    num_heads: int = 12
    decoder_embed_dim: int = field(default=768, metadata={"range": (1, 65_536)})
    decoder_depth: int = 12
    decoder_num_heads: int = field(default=12, metadata={"range": (1, 4096)})
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    side: int = 16  # of the map of tokens
    latent_channels: int = 16
    patch_size: int = field(default=1, metadata={"range": (1, 64)})  # latent positions along a side of a token
    buffer_size: int = field(default=64, metadata={"range": (1, 4096)})
    head_depth: int = 6
    head_width: int = 1024
    prediction: str = "epsilon"  # of the head; or "velocity"
    dropout: float = 0.0  # of attention weights and of the outputs of attention and MLP, in training

    def __post_init__(self) -> None:
        for name in (
            "embed_dim", "encoder_depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads",
            "num_classes", "side", "latent_channels", "patch_size", "buffer_size", "head_depth", "head_width",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{width} is {getattr(self, width)}; it must be a multiple of {heads}")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {self.prediction!r}; it must be one of {', '.join(PREDICTIONS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def depth(self) -> int:
        """Number of layers of both stacks."""
        return self.encoder_depth + self.decoder_depth


class MAR(RandomOrder, nn.Module):
    """Class and known tokens -> features of hidden tokens -> a denoiser of each.

    `forward` is the training pass; decoding calls `condition` once, then `group_hidden` and `denoiser` group by group.
    """

    preserves = "first"

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        self.config, self.scales = config, Schedule((config.side,))
        encoder, decoder, tokens = config.embed_dim, config.decoder_embed_dim, config.side**2
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder))  # the null class
        self.class_emb = nn.Embedding.from_pretrained(torch.zeros(config.num_classes, encoder), freeze=False)
        self.z_proj, self.z_proj_ln = Linear(self.channels, encoder), nn.LayerNorm(encoder, eps=EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, config.buffer_size + tokens, encoder))
        self.encoder_blocks = nn.ModuleList(
            ViTBlock(encoder, config.num_heads, config.mlp_ratio, config.dropout) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(encoder, eps=EPS)
        self.decoder_embed = Linear(encoder, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, config.buffer_size + tokens, decoder))
        self.decoder_blocks = nn.ModuleList(
            ViTBlock(decoder, config.decoder_num_heads, config.mlp_ratio, config.dropout)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder, eps=EPS)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, tokens, decoder))
        self.diffloss = under(DiffusionMLP(self.channels, config.head_width, config.head_depth, decoder))

    @property
    def channels(self) -> int:
        """Channels of a token."""
        return self.config.latent_channels * self.config.patch_size**2

    @property
    def head(self) -> DiffusionMLP:
        """The denoising network."""
        return cast(DiffusionMLP, self.diffloss["net"])

    @property
    def blocks(self) -> list[ViTBlock]:
        """The layers of both stacks, in order."""
        return [cast(ViTBlock, block) for stack in (self.encoder_blocks, self.decoder_blocks) for block in stack]

    def groups(self, schedule: Schedule, iterations: int) -> tuple[Group, ...]:
        """What each of some iterations draws. ValueError for more of them than tokens."""
        return tuple(cosine_groups(0, schedule.lengths[0], iterations))

    def places(self, schedule: Schedule) -> tuple[Group, ...]:
        """The groups of the default number of iterations."""
        return self.groups(schedule, min(DEFAULT_ITERATIONS, schedule.lengths[0]))

    def layer_work(self, new: int, context: int) -> int:
        """Multiply-adds per layer of the decoder and row of `new` tokens that attend to `context` tokens."""
        return block_work(self.config.decoder_embed_dim, self.config.mlp_ratio, new, context)

    def group_work(self, group: Group, schedule: Schedule) -> int:
        """Multiply-adds of both stacks for the features of a group, a row."""
        c, seen, every = self.config, self.config.buffer_size + group.first, self.config.buffer_size + schedule.total
        encoder = c.encoder_depth * block_work(c.embed_dim, c.mlp_ratio, seen, seen)
        decoder = (c.decoder_depth - 1) * self.layer_work(every, every) + self.layer_work(group.count, every)
        rest = 2 * (every - group.count) * c.decoder_embed_dim**2  # keys and values of the last block
        return encoder + decoder + rest + seen * c.embed_dim * c.decoder_embed_dim

    def head_work(self, drawn: int) -> int:
        """Multiply-adds of one evaluation of the head for `drawn` tokens."""
        c, width = self.config, self.config.head_width
        return drawn * ((5 * c.head_depth + 2) * width**2 + 3 * width * self.channels)

    def group_hidden(self, condition: Condition, sketch: Sketch, end: int, *, scale: int, cache: Any) -> Tensor:
        """Features of the tokens from the first unknown one up to rank `end`, (R, N, C)."""
        copies = len(condition.rows_RC) // len(sketch.order_BL)
        order, tokens = sketch.order_BL.repeat(copies, 1), sketch.tokens_BLc.repeat(copies, 1, 1)
        return self.features(condition, tokens, order, sketch.known, slice(sketch.known, end))

    def encoded(self, condition: Condition, tokens_RLc: Tensor, order_RL: Tensor, known: int) -> Tensor:
        """The encoder's output for the buffer and the first `known` tokens of an order, (R, buffer + known, C)."""
        seen_RK, buffer = order_RL[:, :known], self.config.buffer_size
        x = self.z_proj(taken(tokens_RLc, seen_RK).to(self.z_proj.weight.dtype))
        places, first = self.encoder_pos_embed_learned, condition.rows_RC.unsqueeze(1)
        x = torch.cat((first + places[:, :buffer], x + places[0, buffer:][seen_RK]), dim=1)
        x = self.z_proj_ln(x)
        for block in self.encoder_blocks:
            x = block(x)
        return cast(Tensor, self.encoder_norm(x))

    def features(self, condition: Condition, tokens_RLc: Tensor, order_RL: Tensor, known: int, asked: slice) -> Tensor:
        """What conditions the head at some ranks of an order of which the first `known` tokens are given, (R, N, C)."""
        buffer, places = self.config.buffer_size, self.decoder_pos_embed_learned
        seen = self.decoder_embed(self.encoded(condition, tokens_RLc, order_RL, known))
        hidden = self.mask_token.expand(len(order_RL), order_RL.shape[1] - known, -1)
        x = torch.cat((seen, hidden), dim=1)
        x = x + torch.cat((places[:, :buffer].expand(len(x), -1, -1), places[0, buffer:][order_RL]), dim=1)
        *most, last = self.decoder_blocks
        for block in most:
            x = block(x)
        first, end, _ = asked.indices(order_RL.shape[1])
        x = last(x, slice(buffer + first, buffer + end))
        return cast(Tensor, self.decoder_norm(x) + self.diffusion_pos_embed_learned[0][order_RL[:, asked]])

    def denoiser(self, hidden_RNC: Tensor, at: Setting) -> TokenDenoiser:
        """The denoiser of some tokens from their features."""
        return TokenDenoiser(self.head, hidden_RNC, self.config.prediction)

    def forward(
        self, labels_B: Tensor, tokens_BLc: Tensor, order_BL: Tensor, known: int, states: Tensor, steps: Tensor
    ) -> Tensor:
        """The training pass: outputs of the head for the hidden tokens of an order, (M, B, N, 2c).

        The first `known` tokens of the order are given. `states` (M, B, N, c) are noisy hidden tokens, M copies of
        each, at training `steps` (M, B, N).
        """
        condition = self.condition(Given(labels=labels_B))
        hidden = self.features(condition, tokens_BLc, order_BL, known, slice(known, None))
        return cast(Tensor, self.head(states, steps, self.head.cond_embed(hidden)))

    @torch.no_grad()
    def init_weights(self) -> None:
        """The published initialisation."""
        init_linears_and_norms(self)
        for table in (
            self.class_emb.weight, self.fake_latent, self.mask_token, self.encoder_pos_embed_learned,
            self.decoder_pos_embed_learned, self.diffusion_pos_embed_learned,
        ):  # fmt: skip
            nn.init.normal_(table, std=0.02)
        self.head.init_weights()


ARGUMENTS = Arguments(
    renamed={
        "encoder_embed_dim": "embed_dim", "encoder_num_heads": "num_heads", "class_num": "num_classes",
        "vae_embed_dim": "latent_channels", "diffloss_d": "head_depth", "diffloss_w": "head_width",
    },
    ignored=frozenset({
        "attn_dropout", "diffusion_batch_mul", "grad_checkpointing", "img_size", "label_drop_prob", "mask_ratio_min",
        "norm_layer", "num_sampling_steps", "proj_dropout", "vae_stride",
    }),
)  # fmt: skip
HEADS = {768: 12, 1024: 16, 1280: 16}  # of the published widths


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a MAR. A table has a row for each token, another one also for the buffer."""
    width = shape(tensors, "z_proj.weight", 2)[0]
    decoder, _ = shape(tensors, "decoder_embed.weight", 2)
    tokens = shape(tensors, "diffusion_pos_embed_learned", 3)[1]
    return {
        "embed_dim": width,
        "decoder_embed_dim": decoder,
        "encoder_depth": count(tensors, "encoder_blocks."),
        "decoder_depth": count(tensors, "decoder_blocks."),
        "mlp_ratio": shape(tensors, "encoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
        "num_classes": shape(tensors, "class_emb.weight", 2)[0],
        "side": isqrt(tokens),
        "buffer_size": shape(tensors, "encoder_pos_embed_learned", 3)[1] - tokens,
        "head_depth": count(tensors, "diffloss.net.res_blocks."),
        "head_width": shape(tensors, "diffloss.net.input_proj.weight", 2)[0],
    }


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines: heads and patches."""
    found, channels = dict(settings), tensors["z_proj.weight"].shape[1]
    for name, width in (("num_heads", "embed_dim"), ("decoder_num_heads", "decoder_embed_dim")):
        if name not in found and settings[width] not in HEADS:
            asked = "encoder_num_heads" if name == "num_heads" else name
            raise ValueError(f"{source} does not determine the number of heads; give {asked} by --config")
        found.setdefault(name, HEADS.get(settings[width]))
    area = found.setdefault("patch_size", 1) ** 2
    if channels % area or found.setdefault("latent_channels", channels // area) * area != channels:
        raise ValueError(
            f"{source} has tokens of {channels} channels, which are not patches of side {found['patch_size']}"
        )
    return found


FAMILY = Family(
    network=MAR,
    tokenizer=FILES,
    title="MAR",
    paper="2406.11838",
    cfg_off=1.0,
    way="masked prediction of continuous tokens in a random order: each token is sampled by a diffusion head",
    required=(
        "fake_latent",
        "mask_token",
        "z_proj.weight",
        "encoder_pos_embed_learned",
        "diffloss.net.cond_embed.weight",
    ),
    arguments=ARGUMENTS,
    sizes=sizes,
    completed=completed,
)
NETWORKS = {"MAR": "backbone"}
MODELS = {
    "mar-base": {
        "summary": "MAR-B, 24 layers, continuous tokens in random order, ImageNet",
        "parameters": 208_000_000, "fid": 2.31,
        "files": {"tokenizer": "xwen99/mar-vae-kl16/kl16.ckpt", "backbone": "jadechoghari/mar/mar-base.safetensors"},
        "sizes": {
            "backbone": {
                "embed_dim": 768, "encoder_depth": 12, "num_heads": 12, "decoder_embed_dim": 768, "decoder_depth": 12,
                "decoder_num_heads": 12, "head_depth": 6, "head_width": 1024,
            },
        },
        "sampling": {"cfg": 2.9, "steps": 256, "denoising_steps": 100},
    },
    "mar-large": {
        "like": "mar-base", "summary": "MAR-L, 32 layers, continuous tokens in random order, ImageNet",
        "parameters": 478_000_000, "fid": 1.78,
        "files": {"backbone": "jadechoghari/mar/mar-large.safetensors"},
        "sizes": {
            "backbone": {
                "embed_dim": 1024, "encoder_depth": 16, "num_heads": 16, "decoder_embed_dim": 1024,
                "decoder_depth": 16, "decoder_num_heads": 16, "head_depth": 8, "head_width": 1280,
            },
        },
        "sampling": {"cfg": 3.0},
    },
    "mar-huge": {
        "like": "mar-base", "summary": "MAR-H, 40 layers, continuous tokens in random order, ImageNet",
        "parameters": 942_000_000, "fid": 1.55,
        "files": {"backbone": "jadechoghari/mar/mar-huge.safetensors"},
        "sizes": {
            "backbone": {
                "embed_dim": 1280, "encoder_depth": 20, "num_heads": 16, "decoder_embed_dim": 1280,
                "decoder_depth": 20, "decoder_num_heads": 16, "head_depth": 12, "head_width": 1536,
            },
        },
        "sampling": {"cfg": 3.2},
    },
}  # fmt: skip
