"""All models with a name: description, location of the weights, default sampling settings.

To add a model, add an entry. Sizes are known without the weights, so that lists and plans need no download.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

from var_toolkit.core.schedule import SCHEDULES

VAR_TOKENIZER = ("FoundationVision/var", "vae_ch160v4096z32.pth")
KL16_TOKENIZER = ("xwen99/mar-vae-kl16", "kl16.ckpt")
VQ16_TOKENIZER = ("FoundationVision/LlamaGen", "vq_ds16_c2i.pt")
# Commits of hub repositories, so that later uploads do not change a model; other repositories follow `main`.
PINNED = {"FoundationVision/var": "6d0ee6598a42f75079aa79e58b012b57b284c91b"}
VAR_PARAMETERS = {16: 310_000_000, 20: 600_000_000, 24: 1_030_000_000, 30: 2_010_000_000, 36: 2_350_000_000}
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
CARD = "README.md"


@dataclass(frozen=True)
class Sampling:
    """Default settings of a model, with VAR's meaning of guidance (see `sampling.plan.Stage`)."""

    guidance_scale: float = 1.5
    top_k: int = 900
    top_p: float = 0.96
    temperature: float | tuple[float, ...] = 1.0  # one, or one per scale
    smooth: bool = False  # codes are mixed instead of sampled: smoother images
    subnet: int | None = None  # layers for the scales from `full_scales` on (VARiant)
    full_scales: int | None = None
    refine: str = "off"  # which scales are drawn in several masked passes (HMAR): a name, or lists as in `--refine`
    refine_clean: bool = False
    solver: str = "published"  # of continuous tokens (FlowAR): see `sampling.flow.Flow`
    steps: int = 25
    guidance_interval: tuple[float, float] = (0.0, 0.9)
    guided_tokens: int | None = None  # of next-token models: how many, from the first; None for all


@dataclass(frozen=True)
class Embedded:
    """Weights that come with the package: folders under `embedded`."""

    tokenizer: str | None = None
    backbone: str | None = None
    refiner: str | None = None
    classifier: str | None = None
    draft_head: str | None = None

    @staticmethod
    def folder(part: str) -> Path:
        """Where an embedded part lies."""
        return Path(str(files("var_toolkit"))) / "embedded" / part

    def parts(self) -> dict[str, Path]:
        """The folders of the parts this model has."""
        return {part: self.folder(folder) for part, folder in vars(self).items() if folder}


@dataclass(frozen=True)
class Hub:
    """Published files on a model hub, and the sizes of the networks in them, by part."""

    files: Mapping[str, tuple[str, str]]  # repository and file
    configs: Mapping[str, Mapping[str, Any]]
    parameters: int  # about, of the backbones
    family: str = "var"  # of the backbones
    license: str | None = None  # of the backbones, as their authors state it; None where they state none

    def at(self, part: str) -> tuple[str, str, str | None]:
        """Repository, file and, where it is pinned, the commit of a part."""
        repository, file = self.files[part]
        return repository, file, PINNED.get(repository)


@dataclass(frozen=True)
class Training:
    """How the backbone of an embedded model was trained, and its samples judged at the default settings, in float32."""

    recipes: tuple[str, ...]  # of configs/, in order
    images: int | None = None  # seen, over all of them
    judged: int = 0  # samples that the figures are of; 0 if there are none
    agreement: float = 0.0  # percent of them whose class the classifier recognises
    distance: float | None = None  # Fréchet distance of the classifier's features to as many fresh renderings

    def figures(self) -> dict[str, str]:
        """The figures that were measured, each with what it is."""
        if not self.judged:
            return {}
        of = f"{self.judged:,} images, float32"
        found = {f"class agreement by the classifier of still lifes, {of}": f"{self.agreement} %"}
        if self.distance is not None:
            found[f"Fréchet distance of that classifier's features to fresh renderings, {of}"] = f"{self.distance:g}"
        return found


@dataclass(frozen=True)
class Entry:
    """One name of the zoo."""

    name: str
    summary: str
    resolution: int
    source: Embedded | Hub
    class_names: str  # a data set's name; "none" where the classes have no names
    sampling: Sampling = Sampling()
    published: Mapping[str, float] = field(default_factory=dict)  # as the authors report: FID on 50k images
    draft_scales: int = 0  # of a drafter and a refiner (CoDe): how many scales the drafter draws
    draft_models: Mapping[str, str] = field(default_factory=dict)  # by what speculates: what drafts if nothing is named
    training: Training | None = None  # of an embedded model

    @property
    def draws(self) -> bool:
        """Whether the model draws images from class labels; a tokenizer or a classifier alone does not."""
        return isinstance(self.source, Hub) or self.source.backbone is not None


def _still_life(
    name: str,
    summary: str,
    sampling: Sampling = Sampling(),
    draft_scales: int = 0,
    draft_models: Mapping[str, str] | None = None,
    training: Training | None = None,
    **parts: str,
) -> Entry:
    rest = {"draft_scales": draft_scales, "draft_models": draft_models or {}, "training": training}
    return Entry(name, summary, 64, Embedded(**parts), "still-lifes", sampling, **rest)  # type: ignore[arg-type]


def _var(depth: int, fid: float, side: int = 256, name: str = "", **config: Any) -> Entry:
    source = Hub(
        {"tokenizer": VAR_TOKENIZER, "backbone": ("FoundationVision/var", f"var_d{depth}.pth")},
        {"tokenizer": {"patch_nums": SCHEDULES[str(side)]}, "backbone": _var_sizes(depth, side, **config)},
        VAR_PARAMETERS[depth],
        license="mit",
    )
    summary = f"VAR, {depth} layers, ImageNet"
    return Entry(name or f"var-d{depth}", summary, side, source, "imagenet", published={"fid": fid})


def _code(draft_scales: int, fid: float) -> Entry:
    """CoDe's pairs, fine-tuned for one number of drafted scales each, with the settings of its scripts."""
    files = {"backbone": f"drafter_{draft_scales}.pth", "refiner": f"refiner_{draft_scales}.pth"}
    source = Hub(
        {"tokenizer": VAR_TOKENIZER, **{part: ("Zigeng/VAR_CoDe", file) for part, file in files.items()}},
        {"tokenizer": {"patch_nums": SCHEDULES["256"]}, "backbone": _var_sizes(30), "refiner": _var_sizes(16)},
        VAR_PARAMETERS[30] + VAR_PARAMETERS[16],
        license="mit",
    )
    summary = f"CoDe, VAR with 30 layers for {draft_scales} scales, then 16, ImageNet"
    sampling = Sampling(top_k=600, temperature=(1.1,) * 7 + (1.0,) * 3)
    name, published = f"code-{draft_scales}", {"fid": fid}
    return Entry(name, summary, 256, source, "imagenet", sampling, published, draft_scales)


def _hmar(depth: int, parameters: int, **published: float) -> Entry:
    """HMAR with the settings of its evaluation, which differ from those of its demo at 30 layers alone."""
    source = Hub(
        {"tokenizer": VAR_TOKENIZER, "backbone": ("nvidia/HMAR", f"hmar-d{depth}.pth")},
        {"tokenizer": {"patch_nums": SCHEDULES["256"]}, "backbone": _var_sizes(depth)},
        parameters,
        family="hmar",
        license="nvidia-non-commercial",
    )
    summary = f"HMAR, {depth} layers and 8 for masked passes, ImageNet"
    return Entry(f"hmar-d{depth}", summary, 256, source, "imagenet", hmar_sampling(depth), published)


def hmar_sampling(depth: int) -> Sampling:
    """The published settings of HMAR, which differ with the depth; those of 16 layers if none are known."""
    guidance_scale, top_k = {20: (1.9, 950), 24: (2.1, 900), 30: (1.6, 650)}.get(depth, (1.7, 1000))
    return Sampling(guidance_scale, top_k, top_p=0.99, refine="published")


def _flowar(
    size: str, parameters: int, fid: float, *, width: int, depth: int, heads: int, head: tuple[int, int]
) -> Entry:
    """FlowAR with two stacks of `depth` layers; `head` is depth and width of the head that draws the maps."""
    sizes = {"embed_dim": width, "encoder_depth": depth, "decoder_depth": depth, "num_heads": heads}
    sizes |= {"head_depth": head[0], "head_width": head[1], "cross_attention": size != "S"}
    source = Hub(
        {"tokenizer": KL16_TOKENIZER, "backbone": ("OliverRen/FlowAR", f"FlowAR-{size}.pth")},
        {"tokenizer": {}, "backbone": {**sizes, "input_side": 16}},
        parameters,
        family="flowar",
    )
    name, summary = f"flowar-{size.lower()}", f"FlowAR, {2 * depth} layers, continuous tokens, ImageNet"
    return Entry(name, summary, 256, source, "imagenet", flowar_sampling(width), {"fid": fid})


def flowar_sampling(width: int) -> Sampling:
    """The published settings of FlowAR, which differ with the width; those of FlowAR-S if none are known.

    Guidance is published as the usual scale, 4.3 or 2.4, from which VAR's counting, and ours, differs by 1.
    """
    guidance_scale, steps, latest = {1024: (1.4, 25, 0.9), 1536: (1.4, 50, 0.7)}.get(width, (3.3, 25, 0.9))
    return Sampling(guidance_scale, steps=steps, guidance_interval=(0.0, latest))


def _llamagen(
    size: str, parameters: int, fid: float, *, depth: int, heads: int, width: int, side: int = 24, name: str = ""
) -> Entry:
    """LlamaGen for maps of `side` x `side` tokens; the published figures at 384 px are for images shrunk to 256."""
    file = f"c2i_{size}_{16 * side}.pt"
    source = Hub(
        {"tokenizer": VQ16_TOKENIZER, "backbone": ("FoundationVision/LlamaGen", file)},
        {"tokenizer": {}, "backbone": {"depth": depth, "num_heads": heads, "embed_dim": width, "side": side}},
        parameters,
        family="llamagen",
        license="mit",
    )
    name, summary = name or f"llamagen-{size.lower()}", f"LlamaGen, {depth} layers, token by token, ImageNet"
    return Entry(name, summary, 16 * side, source, "imagenet", llamagen_sampling(width), {"fid": fid})


def llamagen_sampling(width: int) -> Sampling:
    """The published settings of LlamaGen, which differ with the width; those of the small ones if none are known.

    Guidance is published as the usual scale, 2.0 to 1.65, from which ours differs by 1.
    """
    return Sampling({1280: 0.75, 1536: 0.75, 3200: 0.65}.get(width, 1.0), top_k=0, top_p=0.0)


def _var_sizes(depth: int, side: int = 256, **config: Any) -> dict[str, Any]:
    return {"depth": depth, "embed_dim": 64 * depth, "num_heads": depth, "patch_nums": SCHEDULES[str(side)], **config}


TWO_PHASES = ("stilllife-var", "stilllife-variant")  # recipes of the default model
NEXT_TOKEN = Sampling(guidance_scale=1.0, top_k=0, top_p=0.0)
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _still_life(
            "stilllife-var",
            "VAR, 12 layers, still lifes (the default)",
            tokenizer="stilllife-tokenizer",
            backbone="stilllife-var",
            training=Training(TWO_PHASES, 123_000, judged=10_000, agreement=93.5, distance=33.8),
        ),
        _still_life(
            "stilllife-variant",
            "VARiant: the same weights, 4 layers for the two finest scales",
            Sampling(subnet=4, full_scales=4),
            tokenizer="stilllife-tokenizer",
            backbone="stilllife-var",
            training=Training(TWO_PHASES, 123_000, judged=10_000, agreement=85.1, distance=81.2),
        ),
        _still_life(
            "stilllife-var-small",
            "VAR, 6 layers, still lifes",
            tokenizer="stilllife-tokenizer",
            backbone="stilllife-var-small",
            training=Training(("stilllife-var-small",), 38_000, judged=1_000, agreement=53.4, distance=244),
        ),
        _still_life(
            "stilllife-hmar",
            "HMAR, 6 layers and 2 for masked passes, still lifes",
            Sampling(refine="published"),
            tokenizer="stilllife-tokenizer",
            backbone="stilllife-hmar",
            training=Training(
                ("stilllife-hmar", "stilllife-hmar-mask"), 176_000, judged=1_000, agreement=86.4, distance=56.2
            ),
        ),
        _still_life(
            "stilllife-flowar",
            "FlowAR, 3 layers and 3 of the head, continuous tokens, still lifes",
            Sampling(guidance_scale=1.0),
            tokenizer="stilllife-kl",
            backbone="stilllife-flowar",
            training=Training(("stilllife-flowar",), 416_000, judged=1_000, agreement=92.6, distance=29.9),
        ),
        _still_life(
            "stilllife-code-4",
            "CoDe: the deep one for 4 scales, then a refiner it taught",
            draft_scales=4,
            tokenizer="stilllife-tokenizer",
            backbone="stilllife-var",
            refiner="stilllife-code-refiner-4",
            training=Training((*TWO_PHASES, "stilllife-code-refiner-4"), judged=10_000, agreement=88.2, distance=65.6),
        ),
        _still_life(
            "stilllife-gpt",
            "LlamaGen's GPT, 6 layers, token by token, still lifes",
            NEXT_TOKEN,
            tokenizer="stilllife-raster-vq",
            backbone="stilllife-gpt",
            draft_models={
                "draft": "stilllife-gpt-small",
                "early-exit": "stilllife-gpt-exit",
                "eagle": "stilllife-gpt-eagle",
            },
            training=Training(("stilllife-gpt",), 125_000, judged=500, agreement=56.8),
        ),
        _still_life(
            "stilllife-gpt-small",
            "the same with 2 layers, which drafts for it without guidance",
            Sampling(guidance_scale=0.0, top_k=0, top_p=0.0),
            tokenizer="stilllife-raster-vq",
            backbone="stilllife-gpt-small",
            training=Training(("stilllife-gpt-small",)),
        ),
        _still_life("stilllife-gpt-eagle", "EAGLE's head, drafts for stilllife-gpt", draft_head="stilllife-gpt-eagle"),
        _still_life("stilllife-gpt-exit", "drafts after 2 layers of stilllife-gpt", draft_head="stilllife-gpt-exit"),
        _still_life("stilllife-tokenizer", "multi-scale VQ tokenizer of still lifes", tokenizer="stilllife-tokenizer"),
        _still_life("stilllife-kl", "continuous tokenizer of still lifes, 8 x 8 x 8", tokenizer="stilllife-kl"),
        _still_life(
            "stilllife-raster-vq", "tokenizer of still lifes with one map, 16 x 16", tokenizer="stilllife-raster-vq"
        ),
        _still_life(
            "stilllife-classifier", "judges which still life an image shows", classifier="stilllife-classifier"
        ),
        _var(16, 3.55),
        _var(20, 2.95),
        _var(24, 2.33),
        _var(30, 1.97),
        _var(36, 2.63, side=512, name="var-d36-512", shared_aln=True),
        _hmar(16, 467_000_000, fid=3.01),
        _hmar(20, 845_000_000),
        _hmar(24, 1_384_000_000, fid=2.10),
        _hmar(30, 2_556_000_000, fid=1.95),
        _flowar("S", 172_000_000, 3.61, width=768, depth=6, heads=12, head=(2, 1024)),
        _flowar("L", 587_000_000, 1.90, width=1024, depth=8, heads=16, head=(12, 1024)),
        _flowar("H", 1_913_000_000, 1.65, width=1536, depth=15, heads=16, head=(12, 1536)),
        _llamagen("B", 111_000_000, 5.46, depth=12, heads=12, width=768, side=16),
        _llamagen("L", 343_000_000, 3.80, depth=24, heads=16, width=1024, side=16),
        _llamagen("B", 111_000_000, 6.09, depth=12, heads=12, width=768, name="llamagen-b-384"),
        _llamagen("L", 343_000_000, 3.07, depth=24, heads=16, width=1024, name="llamagen-l-384"),
        _llamagen("XL", 775_000_000, 2.62, depth=36, heads=20, width=1280),
        _llamagen("XXL", 1_411_000_000, 2.34, depth=48, heads=24, width=1536),
        _llamagen("3B", 3_097_000_000, 2.18, depth=24, heads=32, width=3200),
        _code(6, 2.27),
        _code(7, 2.11),
        _code(8, 1.98),
        _code(9, 1.94),
    )
}
DEFAULT = "stilllife-var"


WAYS = "a name that `vargen models` lists, a hub id user/name"


def list_models(pattern: str = "*") -> list[str]:
    """The names of the zoo that match a shell pattern, such as "var*"."""
    return [name for name in ENTRIES if fnmatch(name, pattern)]


def entry(name: str) -> Entry:
    """The entry of a name; ValueError with the nearest name of a model that draws, if it is unknown."""
    if name in ENTRIES:
        return ENTRIES[name]
    if os.sep in name or "/" in name or name.startswith((".", "~")):
        raise ValueError(f"{name}: this folder does not exist; give {WAYS}, or a model directory")
    nearest = nearest_drawing(name)
    hint = f"did you mean {nearest!r}? " if nearest else ""
    raise ValueError(f"model {name!r} is not known; {hint}give {WAYS}, or a model directory")


def nearest_drawing(name: str) -> str | None:
    """The model that draws images whose name begins so, or is nearest; None if no name is similar."""
    drawing = [known for known, other in ENTRIES.items() if other.draws]
    begun = [known for known in drawing if name and known.startswith(name.lower())]
    return next(iter(begun or get_close_matches(name.lower(), drawing, n=1)), None)


def embedded_part(name: str) -> Path:
    """The folder of an embedded network by its name, such as "stilllife-tokenizer". ValueError if it is not there."""
    folder = Embedded.folder(name)
    if not folder.is_dir():
        raise ValueError(f"no weights named {name!r} come with the package; give a directory")
    return folder
