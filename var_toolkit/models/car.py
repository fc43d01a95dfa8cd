"""CAR (arXiv 2410.04671): VAR with a branch of layers that read a control image, such as edges.

Key-compatible with `car_canny_d16.pth` and its like, which hold the branch alone, beside the weights of `var_d16.pth`.
Each scale has a control image of its own, of 16 pixels per token. Half as many blocks as VAR's read it with the inputs;
what they find is merged into the second half of VAR's blocks, the last first. A light branch, which is ours, has no
blocks: what the convolutions find is added before the last blocks of VAR.
Letters: B images, R rows (images, twice under guidance), L tokens, C width, c latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.conditions.condition import Request
from var_toolkit.conditions.images import CONTROL, ImageInput
from var_toolkit.core.cache import KVCache, cache_of, token_span
from var_toolkit.core.layers import Layers
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.state_dicts import Tensors, count, shape
from var_toolkit.models import var
from var_toolkit.models.family import Family
from var_toolkit.models.layers.attention import Attend
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.next_scale import Block, Modulation, drop_rates, modulations, through_layers
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.tokenizers.multiscale_vq import FILES

STRIDE = 16  # pixels of a control image for each token along one side
CHANNELS = (64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class CARConfig(VARConfig):
    """Sizes of VAR, and of the convolutions that read a control image: one width for each halving, and the first.

    With a `light_width` the branch is light: features of so many channels, added before the last `light_layers` blocks.
    """

    control_channels: tuple[int, ...] = field(default=CHANNELS, metadata={"range": (1, 65_536)})
    light_width: int | None = field(default=None, metadata={"range": (1, 65_536)})
    light_layers: int | None = field(default=None, metadata={"range": (1, 1000)})

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "control_channels", tuple(self.control_channels))
        if (self.light_width is None) != (self.light_layers is None):
            raise ValueError("light_width and light_layers go together; give both for a light branch, or neither")
        if self.light_width is not None and self.light_width < 1:
            raise ValueError(f"light_width is {self.light_width}; it must be a positive integer")
        if self.light_layers is not None and not 1 <= self.light_layers <= self.depth:
            raise ValueError(f"light_layers is {self.light_layers}; it must be from 1 to the depth, {self.depth}")
        if self.light_width is None and self.depth % 2:
            raise ValueError(f"depth is {self.depth}; it must be even: the branch has half as many layers")
        if 2 ** (len(self.control_channels) - 1) != STRIDE:
            raise ValueError(f"control_channels is {list(self.control_channels)}; it must have {len(CHANNELS)} widths")


class Condition(NamedTuple):
    """What VAR makes of the labels, and for the branch, if there is a control image, its modulation and features."""

    labels: var.Condition
    branch: list[Modulation]
    control_RLC: Tensor | None  # noqa: N815

    def of_rows(self, rows: Tensor | slice) -> Condition:
        """The condition of some of the rows."""
        branch = [block.of_rows(rows) for block in self.branch]
        return Condition(
            self.labels.of_rows(rows), branch, None if self.control_RLC is None else self.control_RLC[rows]
        )


class ControlConvs(nn.Module):
    """Control images (B, 3, 16 h, 16 w) in [-1, 1] -> features (B, C, h, w)."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in pairwise(channels):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, after, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(channels[-1], width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv_in(x))
        for conv in self.blocks:
            x = F.silu(conv(x))
        found: Tensor = self.conv_out(x)
        return found


class CAR(VAR):
    """Labels, a control image and the tokenizer's inputs -> logits; without a control image it is VAR."""

    config: CARConfig
    has_subnets = False
    sublayers = ()
    image = ImageInput(CONTROL)

    def __init__(self, config: CARConfig) -> None:
        super().__init__(config)
        width, half = config.embed_dim, config.depth // 2
        if config.light_width is not None:
            self.car_control_convs = ControlConvs(config.control_channels, config.light_width)
            layers = range(config.light_layers or 0)
            self.car_skip_norm = nn.ModuleList(nn.LayerNorm(config.light_width, eps=config.norm_eps) for _ in layers)
            self.car_skip_linear = nn.ModuleList(Linear(config.light_width, width) for _ in layers)
            self.car_blocks = nn.ModuleList()
            return
        self.car_control_convs = ControlConvs(config.control_channels, width)
        self.car_var_conv = nn.Conv2d(width, width, 3, padding=1)
        rates = drop_rates(config.depth, config.drop_path)[:half]
        self.car_blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.car_skip_norm = nn.ModuleList(nn.LayerNorm(2 * width, eps=config.norm_eps) for _ in range(half))
        self.car_skip_linear = nn.ModuleList(Linear(2 * width, width) for _ in range(half))

    @property
    def cached_layers(self) -> int:
        """Layers that cache keys and values: the blocks of VAR, then those of the branch."""
        return self.config.depth + len(self.car_blocks)

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `rows` rows (`core.cache.cache_of`)."""
        return cache_of(self, rows, [self.scales.total] * self.cached_layers if capacities is None else capacities)

    def control(self, images: Sequence[Tensor]) -> Tensor:
        """The control images of some scales, (B, 3, 16 h, 16 w) in [-1, 1] each -> features (B, L, C)."""
        dtype = self.car_control_convs.conv_in.weight.dtype
        found = [self.car_control_convs(one.to(dtype)).flatten(2).transpose(1, 2) for one in images]
        return torch.cat(found, dim=1)

    def image_request(self, images_B3hw: Tensor, tokenizer: Any, schedule: Schedule) -> Request:
        """The features of control images in [-1, 1], scaled to each map; guidance never drops them."""
        with torch.no_grad():
            features = self.control(control_images(images_B3hw, schedule))
        control = Given(additions={0: features})
        return Request(control, control)

    def condition(self, given: Given) -> Condition:  # type: ignore[override]
        """Labels (`num_classes` is the null class) and a control image -> what every block reads."""
        found = super().condition(Given(labels=given.labels) if given.labels is not None else given)
        control = given.additions.get(0)
        if control is None:
            return Condition(found, [], None)
        if not self.car_blocks:
            return Condition(found, [], control)
        modulation_input = self._modulation_input(found.start_RC)
        branch = modulations([cast(Block, block) for block in self.car_blocks], modulation_input)
        return Condition(found, branch, control)

    def hidden(  # type: ignore[override]
        self,
        condition: Condition,
        inputs_RLc: Tensor | None,
        *,
        scales: range,
        schedule: Schedule | None = None,
        cache: KVCache | None = None,
        layers: Layers | None = None,
    ) -> Tensor:
        """Features (R, L, C) of the tokens of `scales`, as those of VAR."""
        if condition.control_RLC is None:
            return super().hidden(condition.labels, inputs_RLc, scales=scales, schedule=schedule, cache=cache)
        schedule = schedule or self.scales
        begin, end = token_span(cache, schedule, scales)
        x_RLC = self._embed(condition.labels, inputs_RLc, scales, schedule)
        light, first = self.config.light_width is not None, self.config.depth - len(self.car_skip_linear)
        steering = [] if light else self._branch(condition, inputs_RLc, scales, schedule, cache)
        control_RLC = condition.control_RLC[:, begin:end]

        def merged(x_RLC: Tensor, number: int) -> Tensor:
            """The inputs of a steered block, by its number."""
            linear, norm = self.car_skip_linear[number], self.car_skip_norm[number]
            if light:
                return x_RLC + linear(norm(control_RLC))
            found: Tensor = linear(norm(torch.cat((x_RLC, steering.pop()), dim=-1)))  # the last one first
            return found

        def step(x_RLC: Tensor, layer: int, attend: Attend) -> Tensor:
            if layer >= first:
                x_RLC = merged(x_RLC, layer - first)
            found: Tensor = self.blocks[layer](x_RLC, condition.labels.blocks[layer], attend, cache, layer)
            return found

        x_RLC = through_layers(step, x_RLC, self.config.depth, scales, schedule, None)
        if cache is not None:
            cache.advance(end - begin)
        return x_RLC

    def logits(self, condition: Condition, hidden_RLC: Tensor) -> Tensor:  # type: ignore[override]
        """Features -> logits (R, L, V), float32."""
        return super().logits(condition.labels, hidden_RLC)

    def forward(  # type: ignore[override]
        self,
        labels_B: Tensor,
        inputs_BLc: Tensor,
        control: Tensor | Sequence[Tensor],
        schedule: Schedule | None = None,
    ) -> Tensor:
        """The packed pass: labels, teacher inputs of scales 1 .. K-1, control -> logits (B, L, V), float32.

        `control` are features (B, L, C), or the images that `control_images` makes for the scales.
        """
        schedule = schedule or self.scales
        control_BLC = control if isinstance(control, Tensor) else self.control(control)
        condition = self.condition(Given(labels=labels_B, additions={0: control_BLC}))
        return self.logits(
            condition, self.hidden(condition, inputs_BLc, scales=range(len(schedule)), schedule=schedule)
        )

    @torch.no_grad()
    def init_weights(self, *, adaln_gamma: float = 1e-3, head: float = 0.02) -> None:
        """The initialisation of VAR, for the branch too. A light one begins by adding nothing: the network is VAR."""
        blocks = [cast(Block, block) for block in (*self.blocks, *self.car_blocks)]
        self._init_shared(blocks, [(self.head_nm, self.head)], adaln_gamma=adaln_gamma, head=head)
        if self.config.light_width is not None:
            for linear in self.car_skip_linear:
                cast(nn.Linear, linear).weight.zero_()

    def _branch(
        self,
        condition: Condition,
        inputs_RLc: Tensor | None,
        scales: range,
        schedule: Schedule,
        cache: KVCache | None,
    ) -> list[Tensor]:
        """The features after each block of the branch, (R, L, C) each."""
        assert condition.control_RLC is not None
        span = slice(schedule.offsets[scales.start], schedule.offsets[scales.stop])
        maps = schedule.maps[scales.start : scales.stop]
        parts = self._tokens(condition.labels, inputs_RLc, scales).split([h * w for h, w in maps], dim=1)
        seen = [
            self.car_var_conv(part.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
            for part, size in zip(parts, maps, strict=True)
        ]
        x_RLC = torch.cat(seen, dim=1) + condition.control_RLC[:, span] + self._position_embeddings(scales, schedule)
        after: list[Tensor] = []

        def step(x_RLC: Tensor, layer: int, attend: Attend) -> Tensor:
            slot = self.config.depth + layer  # of the cache
            after.append(self.car_blocks[layer](x_RLC, condition.branch[layer], attend, cache, slot))
            return after[-1]

        through_layers(step, x_RLC, len(self.car_blocks), scales, schedule, None)
        return after


def control_images(images_B3hw: Tensor, schedule: Schedule) -> list[Tensor]:
    """Control images in [-1, 1] for each map of a schedule, (B, 3, 16 h, 16 w) each.

    As published they are scaled in 8 bits, by Pillow's bicubic filter.
    """
    return [_scaled(images_B3hw, (h * STRIDE, w * STRIDE)) for h, w in schedule.maps]


def _scaled(images_B3hw: Tensor, size: tuple[int, int]) -> Tensor:
    """Images in [-1, 1] of another size, with 256 levels."""
    if images_B3hw.shape[-2:] == size:
        return images_B3hw
    found = F.interpolate(images_B3hw.float(), size=size, mode="bicubic", antialias=True)
    return ((found.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a CAR."""
    stages = range(count(tensors, "car_control_convs.blocks.") // 2)
    channels = [shape(tensors, f"car_control_convs.blocks.{2 * i + 1}.weight", 4)[0] for i in stages]
    return {
        **var.sizes(tensors),
        "control_channels": (shape(tensors, "car_control_convs.conv_in.weight", 4)[0], *channels),
    }


FAMILY = Family(
    network=CAR,
    tokenizer=FILES,
    title="CAR",
    paper="2410.04671",
    way="next-scale prediction, steered by a control image at every scale",
    required=var.FAMILY.required,
    adapter=("car_control_convs.conv_in.weight", "car_var_conv.weight", "car_skip_linear.0.weight"),
    dropped=var.FAMILY.dropped,
    arguments=var.FAMILY.arguments,
    sizes=sizes,
    completed=var.FAMILY.completed,
)
NETWORKS = {"CAR": "backbone"}
MODELS = {
    "car-canny-d16": {
        "summary": "CAR, VAR with 16 layers, steered by Canny edges, ImageNet",
        "parameters": 506_000_000, "license": "mit",
        "files": {
            "tokenizer": "FoundationVision/var/vae_ch160v4096z32.pth", "backbone": "FoundationVision/var/var_d16.pth",
            "adapter": "MiracleDance/CAR/car_canny_d16.pth",
        },
        "sizes": {"backbone": {"depth": 16, "embed_dim": 1024, "num_heads": 16}},
        "sampling": {"cfg": 4.0, "top_k": 900, "top_p": 0.95},
    },
    "car-hed-d16": {
        "like": "car-canny-d16", "summary": "CAR, VAR with 16 layers, steered by HED edges, ImageNet",
        "files": {"adapter": "MiracleDance/CAR/car_hed_d16.pth"},
    },
    "car-depth-d16": {
        "like": "car-canny-d16", "summary": "CAR, VAR with 16 layers, steered by depth, ImageNet",
        "files": {"adapter": "MiracleDance/CAR/car_depth_d16.pth"},
    },
    "car-normal-d16": {
        "like": "car-canny-d16", "summary": "CAR, VAR with 16 layers, steered by normals, ImageNet",
        "files": {"adapter": "MiracleDance/CAR/car_normal_d16.pth"},
    },
    "car-sketch-d16": {
        "like": "car-canny-d16", "summary": "CAR, VAR with 16 layers, steered by sketches, ImageNet",
        "files": {"adapter": "MiracleDance/CAR/car_sketch_d16.pth"},
    },
}  # fmt: skip
