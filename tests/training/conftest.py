"""Tiny runs: a few dozen pictures, networks of a few thousand weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from var_toolkit.evaluation.classifier import StillLifeClassifier, StillLifeClassifierConfig
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig
from var_toolkit.training.recipe import Recipe, recipe_from
from var_toolkit.zoo.directory import WEIGHTS, save_network

TOKENIZER = {"vocab_size": 32, "z_channels": 4, "ch": 8, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1,
             "norm_groups": 1, "share_quant_resi": 2, "patch_nums": [1, 2, 8]}  # fmt: skip
VAR = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_nums": [1, 2, 8], "vocab_size": 32, "latent_channels": 4,
       "shared_aln": True}  # fmt: skip
COMMON = {
    "data": {"kind": "still-lifes", "count": 24, "validation_count": 8},
    "optimiser": {"lr": 1e-3},
    "batch_size": 8,
    "steps": 6,
    "ema": 0.9,
    "log_every": 1,
    "sample_every": 3,
    "validate_every": 3,
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained `tokenizer` and `classifier`."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    save_network(MultiScaleVQ(MultiScaleVQConfig(**TOKENIZER)), folder / "tokenizer")
    save_network(StillLifeClassifier(StillLifeClassifierConfig(widths=(8, 8))), folder / "classifier")
    return folder


@pytest.fixture(scope="session")
def settings(parts: Path) -> Callable[..., dict[str, Any]]:
    """The settings of a tiny recipe by objective, with changes."""

    def make(objective: str, **changes: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"tokenizer": _all_terms(parts), "var": {}, "classifier": {}}[objective]
        model = {"tokenizer": TOKENIZER, "var": VAR, "classifier": {"widths": [8, 8]}}[objective]
        values = copy.deepcopy({"objective": objective, "model": model, **COMMON, "objective_options": options})
        if objective == "var":
            values["tokenizer"] = str(parts / "tokenizer")
        return values | changes

    return make


def _all_terms(parts: Path) -> dict[str, Any]:
    return {"perceptual": 0.1, "perceptual_network": str(parts / "classifier"), "adversarial": 0.1,
            "adversarial_start": 2, "adaptive": True, "discriminator_width": 8, "revive_every": 2}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(settings: Callable[..., dict[str, Any]]) -> Callable[..., Recipe]:
    """A tiny recipe by objective, with changes."""
    return lambda objective, **changes: recipe_from(settings(objective, **changes))


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """The tensors of a saved network."""
    return lambda directory: load_file(directory / WEIGHTS)
