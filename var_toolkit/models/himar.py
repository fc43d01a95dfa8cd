"""Hi-MAR (arXiv 2505.20288): pivots of a small image first, then the tokens of the image, given the pivots' features.

Key-compatible with `checkpoint-last.pth` of Hi-MAR-B, L and H. One transformer serves both phases: its sequence is a
buffer of class rows, the pivots, the tokens. Tables have two halves, and blocks a modulation, for each phase. Phase 1
is MAR's loop over the pivots; the hidden rows of all tokens take part in its decoder. Phase 2 reads each pivot as the
features with which it was drawn, of the conditional half in both halves of guidance. Its head is a DiT that denoises
the whole map in every iteration.

Letters: B images, R rows (images, twice under guidance), L tokens of a phase, N asked for, S positions of both phases,
C width, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.core.plan import Group
from var_toolkit.core.schedule import Schedule
from var_toolkit.core.sketch import Sketch
from var_toolkit.formats.state_dicts import Arguments, Tensors, count, shape
from var_toolkit.heads.diffusion import PREDICTIONS, Diffusion
from var_toolkit.heads.head import Head, Setting
from var_toolkit.models.family import Family
from var_toolkit.models.layers.diffusion_head import DiffusionMLP, TokenDenoiser, under
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.map_head import MapDenoiser, MapHead
from var_toolkit.models.layers.masked_order import Condition, RandomOrder, block_work, cosine_groups, taken
from var_toolkit.models.layers.starting import init_linears_and_norms
from var_toolkit.models.layers.vit_block import EPS, ViTBlock
from var_toolkit.tokenizers.kl16 import FILES

PIVOT_ITERATIONS = 4  # for each row of pivots, as published
MAP_STEPS = 2.5  # steps of the map head for each of the pivots' head, as published: 250 and 100


@dataclass(frozen=True)
class HiMARConfig:
    """Sizes of Hi-MAR; the defaults are those of Hi-MAR-B at 256 px."""

    embed_dim: int = 768
    encoder_depth: int = 12
    decoder_depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    side: int = 16  # of the map of tokens
    pivot_side: int = field(default=8, metadata={"range": (4, 1024)})
    latent_channels: int = 16
    buffer_size: int = field(default=64, metadata={"range": (1, 4096)})
    head_depth: int = 6
    head_width: int = 1024
    map_depth: int = field(default=6, metadata={"range": (1, 1000)})
    map_width: int = field(default=512, metadata={"range": (4, 65_536)})
    map_heads: int = field(default=8, metadata={"range": (1, 4096)})
    map_ratio: float = field(default=4.0, metadata={"range": (1e-3, 1000)})
    prediction: str = "epsilon"  # of both heads; or "velocity"
    dropout: float = 0.0  # of attention weights and of the outputs of attention and MLP, in training

    def __post_init__(self) -> None:
        for name in (
            "embed_dim", "encoder_depth", "decoder_depth", "num_heads", "num_classes", "latent_channels", "buffer_size",
            "head_depth", "head_width", "map_depth", "map_heads",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        for width, heads in (("embed_dim", "num_heads"), ("map_width", "map_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{width} is {getattr(self, width)}; it must be a multiple of {heads}")
        if self.map_width % 4:
            raise ValueError(f"map_width is {self.map_width}; it must be a multiple of 4")
        if not PIVOT_ITERATIONS <= self.pivot_side < self.side:
            raise ValueError(
                f"pivot_side is {self.pivot_side}; it must be from {PIVOT_ITERATIONS} to below side, {self.side}"
            )
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {self.prediction!r}; it must be one of {', '.join(PREDICTIONS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def depth(self) -> int:
        """Number of layers of both stacks."""
        return self.encoder_depth + self.decoder_depth


class Masked(NamedTuple):
    """What the training pass asks of a phase: data of which the first `known` of an order are given, and noisy states.

    `states` are M copies, at training `steps`: (M, B, N, c) of the hidden pivots, with (M, B, N), or (M, B, L, c) of
    the whole map by position, with (M, B, 1).
    """

    data_BLc: Tensor  # noqa: N815
    order_BL: Tensor  # noqa: N815
    known: int
    states: Tensor
    steps: Tensor


class PivotFeatures:
    """The features with which each pivot was drawn, (B, L, C): what grows during decoding and phase 2 reads."""

    def __init__(self) -> None:
        self.z_BLC: Tensor | None = None

    def put(self, positions_BN: Tensor, z_BNC: Tensor, pivots: int) -> None:
        """Enter those of some pivots."""
        known = self.z_BLC
        known = z_BNC.new_zeros(len(z_BNC), pivots, z_BNC.shape[2]) if known is None else known
        self.z_BLC = known.scatter(1, positions_BN.unsqueeze(-1).expand_as(z_BNC), z_BNC)

    def keep_rows(self, count: int) -> None:
        """Nothing: there is one row for each image."""

    def resize(self, capacities: Any) -> None:
        """Nothing: the size is that of the pivots."""

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return 0 if self.z_BLC is None else self.z_BLC.numel() * self.z_BLC.element_size()


class PhaseBlock(ViTBlock):
    """A block whose norms and residuals are scaled by factors of each phase."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__(width, heads, mlp_ratio, dropout)
        self.adaLN_scale = nn.Parameter(torch.zeros(2, 1, 1, 4 * width))
        self.adaLN_shift = nn.Parameter(torch.zeros(2, 1, 1, 4 * width))

    def forward(  # type: ignore[override]
        self, x_RLC: Tensor, task_4C: Tensor, phase: int, queries: slice = slice(None)
    ) -> Tensor:
        """All tokens, or some that attend to all."""
        factors = task_4C * self.adaLN_scale[phase] + self.adaLN_shift[phase]
        scale1, gate1, scale2, gate2 = factors.chunk(4, dim=-1)
        x = torch.addcmul(x_RLC[:, queries], gate1, self.attn(self.norm1(x_RLC) * (1 + scale1), queries))
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x) * (1 + scale2)))


class HiMAR(RandomOrder, nn.Module):
    """Class and known pivots -> features of hidden pivots; class, pivots and known tokens -> those of the map.

    `forward` is the training pass of both phases; decoding calls `condition` once, then `group_hidden` and `denoiser`
    group by group.
    """

    preserves = None  # the release leaves open what a pivot that was not drawn is to pass on

    def __init__(self, config: HiMARConfig) -> None:
        super().__init__()
        self.config, self.scales = config, Schedule((config.pivot_side, config.side))
        width, both = config.embed_dim, self.scales.total
        self.fake_latent = nn.Parameter(torch.zeros(1, width))  # the null class
        self.class_emb = nn.Embedding.from_pretrained(torch.zeros(config.num_classes, width), freeze=False)
        self.cond_tokens = nn.Parameter(torch.zeros(1, config.pivot_side**2, self.channels))  # of training alone
        self.z_proj, self.z_proj_ln = Linear(self.channels, width), nn.LayerNorm(width, eps=EPS)
        self.cond_z_proj, self.cond_proj = Linear(width, width), Linear(self.channels, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 2 * both, width))
        for stack, depth in (("encoder", config.encoder_depth), ("decoder", config.decoder_depth)):
            table = nn.Parameter(torch.zeros(1, 2 * (config.buffer_size + both), width))
            setattr(self, f"{stack}_pos_embed_learned", table)
            blocks = (PhaseBlock(width, config.num_heads, config.mlp_ratio, config.dropout) for _ in range(depth))
            setattr(self, f"{stack}_blocks", nn.ModuleList(blocks))
            setattr(self, f"{stack}_task_emb", nn.Embedding.from_pretrained(torch.zeros(2, width), freeze=False))
            setattr(self, f"{stack}_blocks_ada", nn.Sequential(nn.SiLU(), Linear(width, 4 * width)))
            setattr(self, f"{stack}_norm", nn.LayerNorm(width, eps=EPS))
        self.decoder_embed = Linear(width, width)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, both, width))
        self.diffloss = under(DiffusionMLP(self.channels, config.head_width, config.head_depth, width))
        sizes = (config.map_width, config.map_depth, config.map_heads, config.map_ratio)
        self.cond_diffloss = under(MapHead(self.channels, *sizes, width))

    @property
    def channels(self) -> int:
        """Channels of a token."""
        return self.config.latent_channels

    @property
    def blocks(self) -> list[PhaseBlock]:
        """The layers of both stacks, in order."""
        return [*self._stack("encoder")[1], *self._stack("decoder")[1]]

    def groups(self, schedule: Schedule, iterations: int) -> tuple[Group, ...]:
        """The groups of both phases; `iterations` are those of the second."""
        pivots, tokens = schedule.lengths
        first = cosine_groups(0, pivots, PIVOT_ITERATIONS * self.config.pivot_side)
        return (*first, *cosine_groups(1, tokens, iterations))

    def places(self, schedule: Schedule) -> tuple[Group, ...]:
        """The groups of the published number of iterations."""
        return self.groups(schedule, 4)

    def head_at(self, head: Head, schedule: Schedule, scale: int) -> Head:
        """The solver of the authors where that is asked for; with it the map head takes more steps, as published."""
        if not isinstance(head, Diffusion):
            return head
        found = head.published_as("ddpm")
        if scale == 0 or found.solver != "ddpm" or not isinstance(found.denoising_steps, int):
            return found
        return found.with_steps(min(1000, round(MAP_STEPS * found.denoising_steps)))

    def new_cache(self, rows: int, capacities: Any = None) -> Any:
        """The features of the pivots, none so far."""
        return PivotFeatures()

    def layer_work(self, new: int, context: int) -> int:
        """Multiply-adds per layer and row of `new` tokens that attend to `context` tokens."""
        return block_work(self.config.embed_dim, self.config.mlp_ratio, new, context)

    def group_work(self, group: Group, schedule: Schedule) -> int:
        """Multiply-adds of both stacks for the features of a group, a row."""
        c, pivots = self.config, schedule.lengths[0]
        seen = c.buffer_size + group.first + pivots * group.index
        every, asked = c.buffer_size + schedule.total, group.count if group.index == 0 else schedule.lengths[1]
        most = c.encoder_depth * self.layer_work(seen, seen) + (c.decoder_depth - 1) * self.layer_work(every, every)
        return most + self.layer_work(asked, every) + (2 * (every - asked) + seen) * c.embed_dim**2

    def head_work(self, drawn: int) -> int:
        """Multiply-adds of one evaluation of the pivots' head for `drawn` of them."""
        c, width = self.config, self.config.head_width
        return drawn * ((5 * c.head_depth + 2) * width**2 + 3 * width * self.channels)

    def group_head_work(self, group: Group, schedule: Schedule) -> int:
        """Multiply-adds of one evaluation of the head of a group: the map head computes the whole map."""
        if group.index == 0:
            return self.head_work(group.count)
        c, tokens, width = self.config, schedule.lengths[1], self.config.map_width
        each = block_work(width, c.map_ratio, tokens, tokens) + 6 * tokens * width**2
        return c.map_depth * each + tokens * 2 * (width**2 + width * self.channels)

    def group_hidden(self, condition: Condition, sketch: Sketch, end: int, *, scale: int, cache: Any) -> Tensor:
        """Features of the pivots that a group draws, (R, N, C), or of the whole map, by position, (R, L, C)."""
        images = len(sketch.order_BL)
        copies = len(condition.rows_RC) // images
        order, tokens = sketch.order_BL.repeat(copies, 1), sketch.tokens_BLc.repeat(copies, 1, 1)
        if scale == 0:
            hidden = self.pivot_features(condition, tokens, order, sketch.known, slice(sketch.known, end))
            cache.put(sketch.asked(end), hidden[:images], order.shape[1])
            return hidden
        return self.token_features(condition, cache.z_BLC.repeat(copies, 1, 1), tokens, order, sketch.known)

    def pivot_features(
        self, condition: Condition, pivots_RLc: Tensor, order_RL: Tensor, known: int, asked: slice
    ) -> Tensor:
        """What conditions the first head at some ranks of an order of which the first `known` pivots are given."""
        pivots, both = order_RL.shape[1], self.scales.total
        rest = torch.arange(pivots, both, device=order_RL.device).expand(len(order_RL), -1)
        seen = self.cond_proj(taken(pivots_RLc, order_RL[:, :known]).to(self.cond_proj.weight.dtype))
        x = self._decoded(condition, seen, torch.cat((order_RL, rest), dim=1), 0, asked)
        return x + self.diffusion_pos_embed_learned[0][order_RL[:, asked]]

    def token_features(
        self, condition: Condition, z_RLC: Tensor, tokens_RLc: Tensor, order_RL: Tensor, known: int
    ) -> Tensor:
        """What conditions the map head at every position, given all pivots' features and the first `known` tokens."""
        return self._map_features(condition, self.cond_z_proj(z_RLC), tokens_RLc, order_RL, known)

    def _map_features(
        self, condition: Condition, pivots_RPC: Tensor, tokens_RLc: Tensor, order_RL: Tensor, known: int
    ) -> Tensor:
        pivots = pivots_RPC.shape[1]
        first = torch.arange(pivots, device=order_RL.device).expand(len(order_RL), -1)
        tokens = self.z_proj(taken(tokens_RLc, order_RL[:, :known]).to(self.z_proj.weight.dtype))
        seen = torch.cat((pivots_RPC, tokens), dim=1)
        x = self._decoded(condition, seen, torch.cat((first, pivots + order_RL), dim=1), 1, slice(pivots, None))
        by_position = torch.zeros_like(x).scatter(1, order_RL.unsqueeze(-1).expand_as(x), x)
        return by_position + self.diffusion_pos_embed_learned[:, pivots:]

    def encoded(self, condition: Condition, seen_RKC: Tensor, places_RS: Tensor, phase: int) -> Tensor:
        """The encoder's output for the buffer and what is seen, whose positions come first, (R, buffer + K, C)."""
        table, blocks, task = self._stack("encoder")
        buffer = table[phase][: self.config.buffer_size] + condition.rows_RC.unsqueeze(1)
        own = table[phase][self.config.buffer_size :][places_RS[:, : seen_RKC.shape[1]]]
        x = self.z_proj_ln(torch.cat((buffer, seen_RKC + own), dim=1))
        for block in blocks:
            x = block(x, task[phase], phase)
        return cast(Tensor, self.encoder_norm(x))  # type: ignore[operator]

    def _decoded(self, condition: Condition, seen_RKC: Tensor, places_RS: Tensor, phase: int, asked: slice) -> Tensor:
        """The decoder's output at some ranks, of all positions in the order in which they are known."""
        table, (*most, last), task = self._stack("decoder")
        buffer, seen = self.config.buffer_size, seen_RKC.shape[1]
        shown = self.decoder_embed(self.encoded(condition, seen_RKC, places_RS, phase))
        masks = self.mask_token.view(2, self.scales.total, -1)[phase][places_RS[:, seen:]]
        own = torch.cat((table[phase][:buffer].expand(len(shown), -1, -1), table[phase][buffer:][places_RS]), dim=1)
        x = torch.cat((shown, masks), dim=1) + own
        for block in most:
            x = block(x, task[phase], phase)
        first, end, _ = asked.indices(places_RS.shape[1])
        x = last(x, task[phase], phase, slice(buffer + first, buffer + end))
        return cast(Tensor, self.decoder_norm(x))  # type: ignore[operator]

    def _stack(self, name: str) -> tuple[Tensor, list[PhaseBlock], Tensor]:
        """Positions of each phase (2, buffer + S, C), blocks, and what modulates them in each phase (2, 4C)."""
        table = getattr(self, f"{name}_pos_embed_learned")[0].unflatten(0, (2, -1))
        steer = getattr(self, f"{name}_blocks_ada")[1]
        return table, list(getattr(self, f"{name}_blocks")), steer(F.silu(getattr(self, f"{name}_task_emb").weight))

    @property
    def head(self) -> DiffusionMLP:
        """The denoising network of pivots."""
        return cast(DiffusionMLP, self.diffloss["net"])

    @property
    def map_head(self) -> MapHead:
        """The denoising network of the map."""
        return cast(MapHead, self.cond_diffloss["net"])

    def denoiser(self, hidden: Tensor, at: Setting) -> TokenDenoiser | MapDenoiser:
        """The denoiser of some pivots, or of the map."""
        if at.scale == 0:
            return TokenDenoiser(self.head, hidden, self.config.prediction)
        return MapDenoiser(self.map_head, hidden, at, self.config.prediction)

    def forward(self, labels_B: Tensor, pivots: Masked, tokens: Masked, passed_B: Tensor) -> tuple[Tensor, Tensor]:
        """The training pass: what the heads say of the hidden pivots, (M, B, N, 2c), and of the map, (M, B, L, c).

        Phase 2 reads the features of hidden pivots without their gradients, and a placeholder for visible ones; where
        `passed_B` is false, for all of them.
        """
        condition = self.condition(Given(labels=labels_B))
        hidden = slice(pivots.known, pivots.order_BL.shape[1])
        z = self.pivot_features(condition, pivots.data_BLc, pivots.order_BL, pivots.known, hidden)
        first = self.head(pivots.states, pivots.steps, self.head.cond_embed(z))
        own = self.cond_z_proj(z.detach())
        places = pivots.order_BL[:, hidden].unsqueeze(-1).expand_as(own)
        empty = self.cond_proj(self.cond_tokens).to(own.dtype).expand(len(z), -1, -1)
        shown = torch.where(passed_B.view(-1, 1, 1), empty.scatter(1, places, own), empty)
        features = self._map_features(condition, shown, tokens.data_BLc, tokens.order_BL, tokens.known)
        copies, rows = tokens.states.shape[:2]
        embedded = self.map_head.c_embedder(features).repeat(copies, 1, 1)
        second = self.map_head(tokens.states.flatten(0, 1), tokens.steps.flatten(0, 1), embedded)
        return cast(Tensor, first), second.unflatten(0, (copies, rows))

    @torch.no_grad()
    def init_weights(self) -> None:
        """As MAR's; phases begin equal, with gates of 1, and what modulates the map head begins at 0."""
        init_linears_and_norms(self)
        for stack in ("encoder", "decoder"):
            nn.init.normal_(getattr(self, f"{stack}_pos_embed_learned"), std=0.02)
            nn.init.normal_(getattr(self, f"{stack}_task_emb").weight, std=0.02)
        for table in (
            self.class_emb.weight, self.fake_latent, self.mask_token, self.cond_tokens,
            self.diffusion_pos_embed_learned,
        ):  # fmt: skip
            nn.init.normal_(table, std=0.02)
        for block in self.blocks:
            nn.init.ones_(block.adaLN_scale)
            scales, gates = block.adaLN_shift.unflatten(-1, (2, 2, -1)).unbind(-2)
            nn.init.zeros_(scales)
            nn.init.ones_(gates)
        self.head.init_weights()
        self.map_head.init_weights()


ARGUMENTS = Arguments(
    renamed={
        "encoder_embed_dim": "embed_dim", "encoder_num_heads": "num_heads", "decoder_embed_dim": "embed_dim",
        "decoder_num_heads": "num_heads", "class_num": "num_classes", "vae_embed_dim": "latent_channels",
        "diffloss_d": "head_depth", "diffloss_w": "head_width", "cond_scale": "pivot_side",
        "cond_dim": "latent_channels", "gdm_d": "map_depth", "gdm_w": "map_width", "head": "map_heads",
        "ratio": "map_ratio",
    },
    ignored=frozenset({
        "attn_dropout", "cos", "diffusion_batch_mul", "global_dm", "grad_checkpointing", "img_size", "label_drop_prob",
        "mask_ratio_min", "norm_layer", "num_sampling_steps", "patch_size", "proj_dropout", "seq_len", "two_diffloss",
        "vae_stride",
    }),
)  # fmt: skip
HEADS = {768: 12, 1024: 16, 1280: 16}  # of the published widths,
MAP_HEADS = {512: 8, 768: 12}  # and of those of the map head


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a Hi-MAR. Tables have two halves, one for each phase."""
    width, channels = shape(tensors, "z_proj.weight", 2)
    shape(tensors, "decoder_embed.weight", 2)
    pivots, both = (shape(tensors, name, 3)[1] for name in ("cond_tokens", "diffusion_pos_embed_learned"))
    map_width = shape(tensors, "cond_diffloss.net.x_embedder.proj.weight", 4)[0]
    return {
        "embed_dim": width,
        "encoder_depth": count(tensors, "encoder_blocks."),
        "decoder_depth": count(tensors, "decoder_blocks."),
        "mlp_ratio": shape(tensors, "encoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
        "num_classes": shape(tensors, "class_emb.weight", 2)[0],
        "side": isqrt(both - pivots),
        "pivot_side": isqrt(pivots),
        "latent_channels": channels,
        "buffer_size": shape(tensors, "encoder_pos_embed_learned", 3)[1] // 2 - both,
        "head_depth": count(tensors, "diffloss.net.res_blocks."),
        "head_width": shape(tensors, "diffloss.net.input_proj.weight", 2)[0],
        "map_depth": count(tensors, "cond_diffloss.net.blocks."),
        "map_width": map_width,
        "map_ratio": shape(tensors, "cond_diffloss.net.blocks.0.mlp.fc1.weight", 2)[0] / map_width,
    }


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by the numbers of heads, which no tensor determines."""
    for name, width, known, asked in (
        ("num_heads", "embed_dim", HEADS, "encoder_num_heads"),
        ("map_heads", "map_width", MAP_HEADS, "head"),
    ):
        if name not in settings and settings[width] not in known:
            raise ValueError(f"{source} does not determine the number of heads; give {asked} by --config")
        settings.setdefault(name, known.get(settings[width]))
    return settings


FAMILY = Family(
    network=HiMAR,
    tokenizer=FILES,
    title="Hi-MAR",
    paper="2505.20288",
    cfg_off=1.0,
    way="masked prediction of continuous tokens: pivots of a small image first, then the image",
    required=("fake_latent", "cond_tokens", "cond_z_proj.weight", "cond_diffloss.net.x_embedder.proj.weight"),
    dropped=("cond_diffloss.net.pos_embed", "c_pos_embed"),
    arguments=ARGUMENTS,
    sizes=sizes,
    completed=completed,
)
NETWORKS = {"HiMAR": "backbone"}
MODELS = {
    "himar-base": {
        "summary": "Hi-MAR-B, 24 layers, pivots first, continuous tokens, ImageNet",
        "parameters": 244_000_000, "fid": 1.93,
        "files": {
            "tokenizer": "xwen99/mar-vae-kl16/kl16.ckpt",
            "backbone": "HiDream-ai/Hi-MAR/Hi-MAR-B/checkpoint-last.pth",
        },
        "sizes": {
            "backbone": {
                "embed_dim": 768, "encoder_depth": 12, "decoder_depth": 12, "num_heads": 12, "head_depth": 6,
                "head_width": 1024, "map_depth": 6, "map_width": 512, "map_heads": 8,
            },
        },
        "sampling": {"cfg": 2.5, "pivot_cfg": 2.7, "steps": 4, "denoising_steps": 100},
    },
    "himar-large": {
        "like": "himar-base", "summary": "Hi-MAR-L, 32 layers, pivots first, continuous tokens, ImageNet",
        "parameters": 529_000_000, "fid": 1.66,
        "files": {"backbone": "HiDream-ai/Hi-MAR/Hi-MAR-L/checkpoint-last.pth"},
        "sizes": {
            "backbone": {
                "embed_dim": 1024, "encoder_depth": 16, "decoder_depth": 16, "num_heads": 16, "head_depth": 8,
                "head_width": 1280, "map_depth": 8, "map_width": 512, "map_heads": 8,
            },
        },
        "sampling": {"cfg": 3.5, "pivot_cfg": 3.5},
    },
    "himar-huge": {
        "like": "himar-base", "summary": "Hi-MAR-H, 40 layers, pivots first, continuous tokens, ImageNet",
        "parameters": 1_091_000_000, "fid": 1.52,
        "files": {"backbone": "HiDream-ai/Hi-MAR/Hi-MAR-H/checkpoint-last.pth"},
        "sizes": {
            "backbone": {
                "embed_dim": 1280, "encoder_depth": 20, "decoder_depth": 20, "num_heads": 16, "head_depth": 12,
                "head_width": 1536, "map_depth": 12, "map_width": 768, "map_heads": 12,
            },
        },
        "sampling": {"cfg": 3.2, "pivot_cfg": 5.5, "steps": 12},
    },
}  # fmt: skip
