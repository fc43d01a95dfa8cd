"""Feature extractors, registered with torch-fidelity: its Inception with spatial features, the still-life classifier.

Both give three features: "pooled" for FID, KID, precision and recall, "spatial" for spatial FID, "logits" for the
Inception Score. Importing this module imports torch-fidelity, which takes seconds.
"""

from __future__ import annotations

import io
import sys
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from var_toolkit.formats.weight_files import read_weights
from var_toolkit.still_life.quality import load_judge, normalised

LAYERS = ("pooled", "spatial", "logits")
SPATIAL_CHANNELS = 7  # as the ADM evaluator takes of its map


class Extractor(FeatureExtractorBase, ABC):
    """What both extractors share. Images come as uint8 (B, 3, h, w)."""

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The names of the features."""
        return LAYERS

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Which of them a metric of torch-fidelity takes."""
        return "logits" if metric == "isc" else "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        """Compiling may change the digits."""
        return False

    @abstractmethod
    def all_features(self, images_B3hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled (B, C), spatial (B, S) and logits (B, classes), float32."""

    def forward(self, images_B3hw: Tensor) -> tuple[Tensor, ...]:
        """The requested features, in the order of the request."""
        found = dict(zip(LAYERS, self.all_features(images_B3hw), strict=True))
        return tuple(found[name] for name in self.features_list)


class InceptionExtractor(Extractor):
    """torch-fidelity's Inception, and the spatial features of the ADM evaluator.

    Those are the first 7 channels of `mixed_6/conv`, which torch-fidelity calls `Mixed_6d.branch1x1`, flattened rows
    first and channels last (17 * 17 * 7 = 2023), so that `mu_s` and `sigma_s` of a reference file fit.
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(name, features_list)
        path = feature_extractor_weights_path
        tensors = _downloaded() if path is None else read_weights(path)
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError(f"{path} holds weights that are not finite; it is damaged")
        # torch-fidelity unpickles whatever it is given, so it is given only what was written here.
        copy = io.BytesIO()
        torch.save(tensors, copy)
        copy.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3(name, ["2048", "logits_unbiased"], copy)
        except RuntimeError as error:  # of load_state_dict, a line for each tensor
            detail = str(error).splitlines()[1:2] or [str(error)]
            raise ValueError(
                f"{path} holds no weights of torch-fidelity's Inception: {detail[0].strip()[:120]}"
            ) from None

    def all_features(self, images_B3hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled 2048, spatial 2023, logits 1008 without their bias, as both evaluators take them."""
        seen: list[Tensor] = []
        hook = self.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, made: seen.append(made))
        try:
            pooled, logits = self.network(images_B3hw)
        finally:
            hook.remove()
        spatial = seen[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()
        return pooled, spatial, logits


class StillLifeExtractor(Extractor):
    """The embedded classifier of still lifes, 64 px; needs no download.

    Its feature vector (128); the first 7 channels of its 8 x 8 map (448), which correspond to the spatial
    features of Inception above; and the logarithm of the probability of each of the 1000 classes, joined from the three
    answers, so that the Inception Score is at most 1000.
    """

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.judge = load_judge()

    def all_features(self, images_B3hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled 128, spatial 448, logits 1000."""
        maps = self.judge.levels(normalised(images_B3hw))
        pooled = self.judge.pool(maps[-1])
        spatial = maps[-2][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        solid, colour, ground = (answer.log_softmax(1) for answer in self.judge.answers(pooled))
        joint = solid[:, :, None, None] + colour[:, None, :, None] + ground[:, None, None, :]
        return pooled, spatial, joint.flatten(1)


@dataclass(frozen=True)
class Kind:
    """One kind of features: how torch-fidelity calls it, and how long the vectors are."""

    registered: str
    network: type[Extractor]
    pooled: int
    spatial: int
    side: int | None  # of the images that it takes, in pixels; None: any
    summary: str


KINDS = {
    "inception": Kind("var-toolkit-inception", InceptionExtractor, 2048, 2023, None, "Inception of torch-fidelity"),
    "stilllife": Kind("var-toolkit-stilllife", StillLifeExtractor, 128, 448, 64, "embedded still-life classifier"),
}


def create(kind: str, weights: Path | None = None, *, cuda: bool = False) -> Extractor:
    """An extractor by its kind, "inception" or "stilllife"; `weights` is a file for Inception.

    ValueError in one line if the weights cannot be had or are not Inception's.
    """
    facts = KINDS[kind]
    if facts.registered not in FEATURE_EXTRACTORS_REGISTRY:  # where a second registration is an error
        register_feature_extractor(facts.registered, facts.network)
    return create_feature_extractor(
        facts.registered, list(LAYERS), cuda=cuda, feature_extractor_weights_path=weights, verbose=False
    )


def _downloaded() -> dict[str, Tensor]:
    """torch-fidelity's own file, in the place where torch-fidelity keeps it, checked by its hash, as tensors alone."""
    try:
        with redirect_stdout(sys.stderr):  # where torch tells of the download
            return torch.hub.load_state_dict_from_url(
                URL_INCEPTION_V3, map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
    except Exception as error:  # no network, a proxy that answers with a page, a full disk, a damaged file
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"the weights of Inception cannot be downloaded ({reason}); connect once, give a file with "
            "--inception-weights, or use --features stilllife"
        ) from None
