"""What is known of a named model without its weights: where they are, the sizes, the default sampling settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from var_toolkit.strict_fields import build, convert, refuse_unknown_keys, shown

# Commits of hub repositories, so that later uploads do not change a model; other repositories follow `main`.
PINNED = {"FoundationVision/var": "6d0ee6598a42f75079aa79e58b012b57b284c91b"}


@dataclass(frozen=True)
class Sampling:
    """Default settings of a model."""

    cfg: float | None = None  # guidance as the authors of the model count it; None for 1.5 more than off
    top_k: int = 900
    top_p: float = 0.96
    temperature: float | tuple[float, ...] = 1.0  # one, or one per scale
    smooth: bool = False  # codes are mixed instead of sampled: smoother images
    subnet: int | None = None  # layers for the scales from `full_scales` on (VARiant)
    full_scales: int | None = None
    refine: str = "off"  # which scales are drawn in several masked passes (HMAR): a name, or lists as in `--refine`
    refine_clean: bool = False
    pivot_cfg: float | None = None  # of Hi-MAR's pivots, counted as `cfg`; None for that number
    first_cfg: float | None = None  # of next-token models: of the first token, counted as `cfg`; None for that number
    cfg_schedule: str = "linear"  # or "constant": the same guidance at all scales and groups of tokens
    solver: str = "published"  # of continuous tokens: see `heads.flow.Flow` and `heads.diffusion.Diffusion`
    steps: int = 25  # of FlowAR's solver at each scale; of MAR's iterations, at most one for each token
    denoising_steps: int = 100  # of a diffusion head's solver at each draw
    guidance_interval: tuple[float, float] = (0.0, 0.9)
    guided_tokens: int | None = None  # of next-token models: how many, from the first; None for all
    latent_scorer: str | None = None  # what scores candidates of coarse scales, where they are asked for


@dataclass(frozen=True)
class TextSource:
    """A text encoder of transformers, as a model uses it."""

    source: str  # a hub id user/name, with or without /folder, or a directory
    kind: str = "t5"  # or "clip"
    tokenizer: str = ""  # where its tokenizer is; the same place if empty
    license: str | None = None  # of its weights, as their authors state it
    lowercase: bool = False  # prompts are read in small letters

    def __post_init__(self) -> None:
        if self.kind not in ("t5", "clip"):
            raise ValueError(f"kind is {shown(self.kind)}; it must be t5 or clip")


@dataclass(frozen=True)
class Embedded:
    """Weights that come with the package: folders under `embedded`."""

    tokenizer: str | None = None
    backbone: str | None = None
    refiner: str | None = None
    classifier: str | None = None
    draft_head: str | None = None
    judge: str | None = None  # of drafts
    text_encoder: str | None = None
    decoder: str | None = None  # a small one, for a tokenizer

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

    files: dict[str, tuple[str, str]]  # repository and file
    configs: dict[str, dict[str, Any]]
    parameters: int  # about, of the backbones
    family: str = "var"  # of the backbones
    license: str | None = None  # of the backbones, as their authors state it; None where they state none
    text_encoder: TextSource | None = None  # of models that take prompts

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
    published: dict[str, float] = field(default_factory=dict)  # as the authors report: FID on 50k images
    draft_scales: int = 0  # of a drafter and a refiner (CoDe): how many scales the drafter draws
    draft_models: dict[str, str] = field(default_factory=dict)  # by what speculates: what drafts if nothing is named
    training: Training | None = None  # of an embedded model
    edits: bool = False  # whether it edits an image by an instruction, and draws nothing without one

    @property
    def takes_prompts(self) -> bool:
        """Whether the model draws what a prompt says, rather than classes."""
        return self.source.text_encoder is not None

    @property
    def draws(self) -> bool:
        """Whether the model draws images; a tokenizer or a classifier alone does not."""
        return isinstance(self.source, Hub) or self.source.backbone is not None


DRAWS = {"resolution": 256, "class_names": "imagenet"}  # of published models, unless told otherwise
STILL_LIFES = {"resolution": 64, "class_names": "still-lifes"}  # of embedded ones
ON_HUB = ("files", "sizes", "parameters", "license", "text_encoder")
OTHERS = ("summary", *DRAWS, "sampling", "fid", "draft_scales", "draft_models", "training", "edits", "embedded")


def entries_from(models: Mapping[str, Any], family: str, *, where: str) -> dict[str, Entry]:
    """The entries of a table MODELS. ValueError in one line for what does not fit.

    Published files are told by part: `files` as "user/name/file" on the hub, and `sizes`; embedded ones by folder. What
    an entry does not tell is as in the one that it is `like`.
    """
    return {name: _entry(_whole(models, name, where), name, family, f"{where}: {name}") for name in models}


def _whole(models: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """What is told of a model, completed by the one before it in the table that it is like."""
    told = models[name]
    if not isinstance(told, Mapping):
        raise ValueError(f"{where}: {name} is {shown(told)}; it must be a mapping of {', '.join((*ON_HUB, *OTHERS))}")
    refuse_unknown_keys(told, ("like", *ON_HUB, *OTHERS), where=f"{where}: {name}")
    own = {key: value for key, value in told.items() if key != "like"}
    if "like" not in told:
        return own
    before = list(models)[: list(models).index(name)]
    if told["like"] not in before:
        raise ValueError(f"{where}: {name}: like is {shown(told['like'])}, which is not a model before it in the table")
    base = _whole(models, told["like"], where)
    by_part = {key: {**base[key], **own[key]} for key in ("files", "sizes", "sampling") if key in base and key in own}
    merged = {**base, **own, **by_part}
    return {key: value for key, value in merged.items() if value is not None}


def _entry(told: Mapping[str, Any], name: str, family: str, where: str) -> Entry:
    facts = {key: value for key, value in told.items() if key not in (*ON_HUB, "embedded", "fid")}
    if "embedded" in told:
        source: Embedded | Hub = build(Embedded, told["embedded"], where=f"{where}: embedded")
        facts = {**STILL_LIFES, **facts}
    else:
        source = _hub(told, family, where)
        facts = {**DRAWS, **facts}
    published = {"fid": told["fid"]} if "fid" in told else {}
    return build(Entry, {"name": name, "source": source, "published": published, **facts}, where=where)


def _hub(told: Mapping[str, Any], family: str, where: str) -> Hub:
    files = convert(dict[str, str], told.get("files"), where=f"{where}: files")
    sizes = convert(dict[str, dict[str, Any]], told.get("sizes", {}), where=f"{where}: sizes")
    if odd := [text for text in files.values() if text.count("/") < 2]:
        raise ValueError(f"{where}: files: {odd[0]!r} must be written user/name/file")
    parts = {part: text.split("/", 2) for part, text in files.items()}
    source = {
        "files": {part: (f"{user}/{name}", file) for part, (user, name, file) in parts.items()},
        "configs": {part: sizes.get(part, {}) for part in files},
        "family": family,
        **{key: told[key] for key in ("parameters", "license", "text_encoder") if key in told},
    }
    return build(Hub, source, where=where)
