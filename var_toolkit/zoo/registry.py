"""Every model that has a name: what it is, where its weights are, how it is sampled by default.

Adding a model is adding an entry. Sizes are known without the weights, so that lists and plans need no download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

from var_toolkit.scales import SCHEDULES

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Sampling:
    """Default settings of a model, with VAR's meaning of guidance (see `sampling.plan.Stage`)."""

    guidance_scale: float = 1.5
    top_k: int = 900
    top_p: float = 0.96
    temperature: float = 1.0


@dataclass(frozen=True)
class Embedded:
    """Weights that come with the package: folders under `zoo/embedded`."""

    tokenizer: str | None = None
    backbone: str | None = None
    classifier: str | None = None

    @staticmethod
    def folder(part: str) -> Path:
        """Where an embedded part lies."""
        return Path(str(files("var_toolkit.zoo"))) / "embedded" / part

    def parts(self) -> dict[str, Path]:
        """The folders of the parts this model has."""
        named = {"tokenizer": self.tokenizer, "backbone": self.backbone, "classifier": self.classifier}
        return {part: self.folder(folder) for part, folder in named.items() if folder}


@dataclass(frozen=True)
class Hub:
    """Published files on a model hub, and the sizes of the networks in them."""

    repository: str
    tokenizer: str
    backbone: str
    tokenizer_config: Mapping[str, Any]
    backbone_config: Mapping[str, Any]
    parameters: int  # about, of the backbone


@dataclass(frozen=True)
class Entry:
    """One name of the zoo."""

    name: str
    summary: str
    resolution: int
    source: Embedded | Hub
    class_names: str
    sampling: Sampling = Sampling()
    published: Mapping[str, float] = field(default_factory=dict)  # as the authors report: FID on 50k pictures

    @property
    def draws(self) -> bool:
        """Whether the model draws pictures from class labels; a tokenizer or a classifier alone does not."""
        return isinstance(self.source, Hub) or self.source.backbone is not None


def _still_life(name: str, summary: str, sampling: Sampling = Sampling(), **parts: str) -> Entry:
    return Entry(name, summary, 64, Embedded(**parts), "still-lifes", sampling)


def _var(depth: int, fid: float, parameters: int, side: int = 256, name: str = "", **config: Any) -> Entry:
    patch_nums = SCHEDULES[str(side)]
    backbone = {"depth": depth, "embed_dim": 64 * depth, "num_heads": depth, "patch_nums": patch_nums, **config}
    files = ("vae_ch160v4096z32.pth", f"var_d{depth}.pth")
    source = Hub("FoundationVision/var", *files, {"patch_nums": patch_nums}, backbone, parameters)
    summary = f"VAR, {depth} layers, ImageNet"
    return Entry(name or f"var-d{depth}", summary, side, source, "imagenet", published={"fid": fid})


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _still_life(
            "stilllife-var",
            "VAR, 12 layers, still lifes (the default)",
            tokenizer="stilllife-tokenizer",
            backbone="stilllife-var",
        ),
        _still_life(
            "stilllife-var-small",
            "VAR, 6 layers, still lifes",
            tokenizer="stilllife-tokenizer",
            backbone="stilllife-var-small",
        ),
        _still_life("stilllife-tokenizer", "multi-scale VQ tokenizer of still lifes", tokenizer="stilllife-tokenizer"),
        _still_life(
            "stilllife-classifier", "judges which still life a picture shows", classifier="stilllife-classifier"
        ),
        _var(16, 3.55, 310_000_000),
        _var(20, 2.95, 600_000_000),
        _var(24, 2.33, 1_030_000_000),
        _var(30, 1.97, 2_010_000_000),
        _var(36, 2.63, 2_350_000_000, side=512, name="var-d36-512", shared_aln=True),
    )
}
DEFAULT = "stilllife-var"


def list_models(pattern: str = "*") -> list[str]:
    """The names of the zoo that match a shell pattern, such as "var*"."""
    return [name for name in ENTRIES if fnmatch(name, pattern)]


def entry(name: str) -> Entry:
    """The entry of a name; ValueError with the nearest and all names if there is none."""
    if name in ENTRIES:
        return ENTRIES[name]
    nearest = get_close_matches(name, ENTRIES, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(
        f"model {name!r} is not known; {hint}known are {', '.join(ENTRIES)}, a model directory, or a hub id user/name"
    )


def embedded_part(name: str) -> Path:
    """The folder of an embedded network by its name, such as "stilllife-tokenizer". ValueError if it is not there."""
    folder = Embedded.folder(name)
    if not folder.is_dir():
        raise ValueError(f"no weights named {name!r} come with the package; give a directory")
    return folder
