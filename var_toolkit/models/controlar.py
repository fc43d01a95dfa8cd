"""ControlAR (arXiv 2410.02705): LlamaGen steered by a control image, such as edges, depth or a segmentation.

Key-compatible with `canny_MR.safetensors`, `depth_base.safetensors` and their like. DINOv2 makes one feature of every
16 pixels, so that a control token belongs to each token of the image. Three MLPs of it are added to what predicts that
token, before the first layer and after a third and two thirds of them. A class is read as a text of one token.

Letters: B images, R rows (images, twice under guidance), L tokens, C width, E width of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.conditions.condition import Condition, Request
from var_toolkit.conditions.images import CONTROL, ImageInput
from var_toolkit.conditions.text import TextInput
from var_toolkit.conditions.text_encoders import EXTRA
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.llamagen_arguments import TEXT_ARGUMENTS
from var_toolkit.formats.state_dicts import Tensors, count, shape
from var_toolkit.models import llamagen, llamagen_t2i
from var_toolkit.models.family import Family
from var_toolkit.models.llamagen import ClassEmbedding, RasterTransformer
from var_toolkit.models.llamagen_t2i import TextEmbedding, TextMLP, TextPrefix, TextRasterGPT, TextRasterGPTConfig
from var_toolkit.tokenizers.raster_vq import FILES

PATCH = 14  # pixels of the encoder for each token along one side
FUSIONS = 3  # layers before which control is added
RESIZE: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest"},
    "bicubic": {"mode": "bicubic", "align_corners": True},
}
NEAREST = ("canny", "seg")  # published types of control that have no values between two others
ENCODER = "adapter.model."
# Names of DINOv2's tensors in later releases of transformers 5, and before, as published.
RENAMED = {f".attention.{part[0]}_proj.": f".attention.attention.{part}." for part in ("query", "key", "value")}
RENAMED[".attention.o_proj."] = ".attention.output.dense."


def published_name(name: str) -> str:
    """The published name of a tensor, which may have that of a later release of transformers."""
    if name.startswith("adapter."):
        for newer, published in RENAMED.items():
            name = name.replace(newer, published)
    return name


@dataclass(frozen=True)
class ControlARConfig(TextRasterGPTConfig):
    """Sizes of LlamaGen from text, or from classes if there are any, and of the encoder of control images."""

    num_classes: int | None = None  # None: it reads text
    encoder_width: int = field(default=384, metadata={"range": (1, 65_536)})
    encoder_depth: int = 12
    encoder_heads: int = field(default=6, metadata={"range": (1, 4096)})
    encoder_mlp_ratio: int = field(default=4, metadata={"range": (1, 1000)})
    encoder_side: int = field(default=37, metadata={"range": (1, 1024)})  # of its table of positions, in tokens
    control_resize: str = "bicubic"  # how a control image is scaled for the encoder; or nearest

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth % FUSIONS:
            raise ValueError(
                f"depth is {self.depth}; it must be a multiple of {FUSIONS}, between which control is added"
            )
        for name in ("encoder_width", "encoder_depth", "encoder_heads", "encoder_mlp_ratio", "encoder_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.encoder_width % self.encoder_heads:
            raise ValueError(
                f"encoder_width is {self.encoder_width}; it must be a multiple of {self.encoder_heads} heads"
            )
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; it must be a positive integer, or null for text")
        if self.control_resize not in RESIZE:
            raise ValueError(f"control_resize is {self.control_resize!r}; it must be {' or '.join(RESIZE)}")


class _Encoder(nn.Module):
    """DINOv2 without its class token: images (B, 3, 14 h, 14 w) -> features (B, h w, E).

    Its state dict has the published names, whatever names the release of transformers has.
    """

    def __init__(self, config: ControlARConfig) -> None:
        super().__init__()
        if find_spec("transformers") is None:
            raise ValueError(f"the control encoder of ControlAR needs transformers: {EXTRA}")
        from transformers import Dinov2Config, Dinov2Model  # late, since it is slow to import

        self.model = Dinov2Model(
            Dinov2Config(
                hidden_size=config.encoder_width,
                num_hidden_layers=config.encoder_depth,
                num_attention_heads=config.encoder_heads,
                mlp_ratio=config.encoder_mlp_ratio,
                image_size=config.encoder_side * PATCH,
                patch_size=PATCH,
            )
        )

        self.register_state_dict_post_hook(_with_published_names)
        self.register_load_state_dict_pre_hook(_with_installed_names)

    def forward(self, images_B3hw: Tensor) -> Tensor:
        return cast(Tensor, self.model(images_B3hw).last_hidden_state[:, 1:])


def _with_published_names(module: nn.Module, tensors: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in tensors if name.startswith(prefix)]:
        tensors[published_name(name)] = tensors.pop(name)


def _with_installed_names(module: nn.Module, tensors: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, _tensor in (*module.named_parameters(prefix[:-1]), *module.named_buffers(prefix[:-1])):
        if published_name(name) in tensors:
            tensors[name] = tensors.pop(published_name(name))


class _ConditionMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cap_proj = TextMLP(width, width)


class ControlAR(TextRasterGPT):
    """A text or a class, a control image and the tokens so far -> logits of the next token.

    Without a control image it is LlamaGen, with weights that were trained with one.
    """

    config: ControlARConfig
    image = ImageInput(CONTROL, weighed=True)

    def __init__(self, config: ControlARConfig) -> None:
        width, classes = config.embed_dim, config.num_classes
        if classes is None:
            embedding: nn.Module = TextEmbedding(config.text_channels, width, config.text_tokens)
        else:
            embedding = ClassEmbedding(classes + 1, width)
        RasterTransformer.__init__(self, config, embedding)
        self.adapter = _Encoder(config)
        self.adapter_mlp = TextMLP(config.encoder_width, width)
        self.condition_mlp = _ConditionMLP(width)
        self.condition_layers = nn.ModuleList(TextMLP(width, width) for _ in range(FUSIONS))

    @property
    def text(self) -> TextInput | None:  # type: ignore[override]
        """The text that it reads; None if it draws classes."""
        return super().text if self.config.num_classes is None else None

    def patched(self, images_B3hw: Tensor, size: tuple[int, int]) -> Tensor:
        """Control images of any size for a map (height, width): 14 pixels for each token."""
        height, width = size
        return F.interpolate(images_B3hw, size=(height * PATCH, width * PATCH), **RESIZE[self.config.control_resize])

    def fused(self, features_BLE: Tensor) -> dict[int, Tensor]:
        """Features of the encoder -> what is added before some layers, (B, L, C), by layer."""
        found_BLC = self.condition_mlp.cap_proj(self.adapter_mlp(features_BLE))
        apart = self.config.depth // FUSIONS
        return {apart * k: layer(found_BLC) for k, layer in enumerate(self.condition_layers)}

    def control(self, images_B3hw: Tensor, size: tuple[int, int]) -> dict[int, Tensor]:
        """Control images in [-1, 1] for a map (height, width) -> what is added before some layers, (B, L, C)."""
        return self.fused(self.adapter(self.patched(images_B3hw.to(self.output.weight.dtype), size)))

    def image_request(self, images_B3hw: Tensor, tokenizer: Any, schedule: Schedule) -> Request:
        """What control images in [-1, 1] add; nothing in the null half, for which the control is zero."""
        with torch.no_grad():
            additions = self.control(images_B3hw, schedule.maps[0])
        nothing = {layer: torch.zeros_like(added) for layer, added in additions.items()}
        return Request(Condition(additions=additions), Condition(additions=nothing))

    def condition(self, given: Condition) -> TextPrefix:
        """Read a text or a class, and what a control image adds. ValueError for a condition of another kind."""
        if self.config.num_classes is None:
            return super().condition(given)
        if given.labels is None:
            raise ValueError(f"{type(self).__name__} takes class labels as its condition here")
        x_R1C = cast(ClassEmbedding, self.cls_embedding).embedding_table(given.labels).unsqueeze(1)
        return self.read(x_R1C, torch.ones_like(given.labels, dtype=torch.bool).unsqueeze(1), given.additions)

    def require_schedule(self, schedule: Schedule) -> None:
        """ValueError unless it is one map, of no more tokens than there are positions."""
        if len(schedule) != 1 or schedule.total > self.config.tokens:
            raise ValueError(
                f"schedule is {schedule}; {type(self).__name__} draws one map of any shape, "
                f"of at most {self.config.tokens} tokens here"
            )

    def schedule_for(self, height: int, width: int) -> Schedule:
        """The schedule of a map of this size. ValueError if it has more tokens than there are positions.

        As published, positions are those of the square table in its own order, whatever the shape of the map.
        """
        schedule = Schedule(((height, width),))
        self.require_schedule(schedule)
        return schedule


def sizes(tensors: Tensors) -> dict[str, Any]:
    """The sizes of a ControlAR."""
    if "cls_embedding.embedding_table.weight" in tensors:
        found = llamagen.sizes(tensors)
    else:
        found = llamagen_t2i.sizes(tensors)
    table = "condition_mlp.uncond_embedding"  # zeros, one row for each position
    if table in tensors:
        found["side"] = isqrt(shape(tensors, table, 2)[0])
    width, hidden = (
        shape(tensors, f"{ENCODER}{name}", 1)[0] for name in ("layernorm.bias", "encoder.layer.0.mlp.fc1.bias")
    )
    positions = shape(tensors, f"{ENCODER}embeddings.position_embeddings", 3)[1] - 1  # without that of the class token
    return {
        **found,
        "encoder_width": width,
        "encoder_depth": count(tensors, f"{ENCODER}encoder.layer."),
        "encoder_mlp_ratio": hidden // width,
        "encoder_side": isqrt(positions),
    }


def completed(settings: dict[str, Any], tensors: Tensors, source: str) -> dict[str, Any]:
    """The sizes completed by those that no tensor determines: heads and MLP width."""
    heads = max(settings["encoder_width"] // 64, 1)
    return llamagen.completed({"encoder_heads": heads, **settings}, tensors, source)


def _prepared(given: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Published arguments: the type of control says how its images are scaled; classes are read by `sizes`."""
    used = dict(given)
    if "condition_type" in used:
        used["control_resize"] = "nearest" if used.pop("condition_type") in NEAREST else "bicubic"
    if used.get("model_type") == "c2i":
        used = {
            name: value for name, value in used.items() if name not in ("model_type", "cls_token_num", "caption_dim")
        }
    return TEXT_ARGUMENTS.prepared(used, source)


FAMILY = Family(
    network=ControlAR,
    tokenizer=FILES,
    title="ControlAR",
    paper="2410.02705",
    cfg_off=1.0,
    way="next-token prediction, steered by a control image at every token",
    required=("tok_embeddings.weight", "output.weight", "adapter_mlp.fc1.weight", "condition_layers.0.fc1.weight"),
    dropped=("freqs_cis", "condition_embeddings.weight", "condition_mlp.uncond_embedding", "condition_norm.weight"),
    renamed=published_name,
    arguments=replace(
        TEXT_ARGUMENTS,
        ignored=TEXT_ARGUMENTS.ignored - {"num_classes"} | {"adapter_size", "condition_token_num", "image_size"},
        prepared=_prepared,
    ),
    sizes=sizes,
    completed=completed,
)
NETWORKS = {"ControlAR": "backbone"}
MODELS = {
    "controlar-canny": {
        "summary": "ControlAR, text (T5-XL) and Canny edges, any size", "class_names": "none", "resolution": 768,
        "parameters": 816_000_000, "license": "apache-2.0",
        "files": {
            "tokenizer": "peizesun/llamagen_t2i/vq_ds16_t2i.pt",
            "backbone": "wondervictor/ControlAR/canny_MR.safetensors",
        },
        "text_encoder": {"source": "google/flan-t5-xl", "license": "apache-2.0", "lowercase": True},
        "sizes": {
            "backbone": {"depth": 36, "num_heads": 20, "embed_dim": 1280, "side": 48, "control_resize": "nearest"},
        },
        "sampling": {"cfg": 4.0, "top_k": 2000, "top_p": 0.0},
    },
    "controlar-depth": {
        "like": "controlar-canny", "summary": "ControlAR, text (T5-XL) and depth, any size",
        "files": {"backbone": "wondervictor/ControlAR/depth_MR.safetensors"},
        "sizes": {"backbone": {"depth": 36, "num_heads": 20, "embed_dim": 1280, "side": 48}},
    },
    "controlar-hed": {
        "like": "controlar-canny", "summary": "ControlAR, text (T5-XL) and HED edges", "resolution": 512,
        "files": {"backbone": "wondervictor/ControlAR/hed.safetensors"},
        "sizes": {"backbone": {"depth": 36, "num_heads": 20, "embed_dim": 1280, "side": 32}},
    },
    "controlar-seg": {
        "like": "controlar-hed", "summary": "ControlAR, text (T5-XL) and segmentations of COCO-Stuff",
        "files": {"backbone": "wondervictor/ControlAR/seg_cocostuff.safetensors"},
        "sizes": {
            "backbone": {"depth": 36, "num_heads": 20, "embed_dim": 1280, "side": 32, "control_resize": "nearest"},
        },
    },
    "controlar-edge-base": {
        "like": "controlar-hed", "summary": "ControlAR, text (T5-XL) and edges of any kind, a larger encoder",
        "parameters": 881_000_000,
        "files": {"backbone": "wondervictor/ControlAR/edge_base.safetensors"},
        "sizes": {
            "backbone": {
                "depth": 36, "num_heads": 20, "embed_dim": 1280, "side": 32, "encoder_width": 768, "encoder_heads": 12,
            },
        },
    },
    "controlar-depth-base": {
        "like": "controlar-edge-base", "summary": "ControlAR, text (T5-XL) and depth, a larger encoder",
        "files": {"backbone": "wondervictor/ControlAR/depth_base.safetensors"},
    },
}  # fmt: skip
