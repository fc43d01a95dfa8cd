"""Tiny runs: a few dozen images, networks of a few thousand weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.cases import fill
from PIL import Image
from safetensors.torch import load_file
from training import in_two

from var_toolkit.formats.directory import WEIGHTS, save_network
from var_toolkit.models import hmar, var
from var_toolkit.models.llamagen import RasterGPT, RasterGPTConfig
from var_toolkit.processes import Team
from var_toolkit.still_life.classifier import StillLifeClassifier, StillLifeClassifierConfig
from var_toolkit.still_life.scene_data import SCENE_EDITS, SCENES
from var_toolkit.tokenizers.bsq import MultiScaleBSQ, MultiScaleBSQConfig
from var_toolkit.tokenizers.kl import KLConfig
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig
from var_toolkit.tokenizers.raster_vq import RasterVQ, RasterVQConfig
from var_toolkit.training.batches import Batch
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import Recipe, recipe_from
from var_toolkit.training.registry import objective_class

TOKENIZER = {"vocab_size": 32, "z_channels": 4, "ch": 8, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1,
             "norm_groups": 1, "share_quant_resi": 2, "patch_nums": [1, 2, 8]}  # fmt: skip
VAR = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_nums": [1, 2, 8], "vocab_size": 32, "latent_channels": 4,
       "shared_aln": True}  # fmt: skip
DEEPER = VAR | {"depth": 3}
HMAR = VAR | {"branch_depth": 1}
KL = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 1,
      "sample_size": 64, "encoder_attention": False}  # fmt: skip
FLOWAR = {"embed_dim": 16, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "patch_nums": [1, 2, 8],
          "latent_channels": 4, "head_depth": 1, "head_width": 64, "dropout": 0.1}  # fmt: skip
MAR = {"embed_dim": 16, "encoder_depth": 1, "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1,
       "decoder_num_heads": 2, "side": 8, "latent_channels": 4, "buffer_size": 2, "head_depth": 1, "head_width": 16,
       "dropout": 0.1}  # fmt: skip
HIMAR = {"embed_dim": 16, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "side": 8, "pivot_side": 4,
         "latent_channels": 4, "buffer_size": 2, "head_depth": 1, "head_width": 16, "map_depth": 1, "map_width": 16,
         "map_heads": 2, "dropout": 0.1}  # fmt: skip
ACDIT = {"embed_dim": 64, "depth": 1, "side": 8, "block_side": 4, "latent_channels": 4}
XAR = {"embed_dim": 64, "depth": 1, "side": 8, "block_side": 4, "latent_channels": 4}
RASTER_VQ = {"vocab_size": 32, "code_dim": 4, "z_channels": 8, "ch": 8, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1,
             "side": 8, "norm_groups": 1}  # fmt: skip
BSQ = {"codebook_dim": 4, "ch": 8, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "norm_groups": 1, "patch_nums": [1, 2, 8],
       "unshuffle": 2}  # fmt: skip
INFINITY = {"depth": 2, "embed_dim": 16, "num_heads": 2, "token_bits": 4, "text_channels": 8, "text_longest": 40,
            "patch_nums": [1, 2, 4], "aspect_ratios": False, "reference_side": 4, "levels": 3}  # fmt: skip
SCENES_BSQ = BSQ | {"patch_nums": [1, 2, 4], "ch_mult": [1, 1, 1, 1], "unshuffle": 4}
RASTER_GPT = {
    "depth": 2,
    "embed_dim": 16,
    "num_heads": 2,
    "mlp_hidden": 32,
    "vocab_size": 32,
    "side": 8,
    "dropout": 0.1,
}
FLEXVAR = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_nums": [1, 2, 8], "vocab_size": 32,
           "latent_channels": 4, "position_side": 8, "shared_aln": True}  # fmt: skip
HEAD = {"embed_dim": 16, "num_heads": 2, "mlp_hidden": 32, "vocab_size": 32, "side": 8}
HEADS = {"embed_dim": 16, "vocab_size": 32, "heads": 2, "hidden": 12}
MODELS = {
    "tokenizer": TOKENIZER,
    "raster-tokenizer": RASTER_VQ,
    "bits-tokenizer": BSQ,
    "infinity": INFINITY,
    "varedit": INFINITY,
    "raster-gpt": RASTER_GPT,
    "raster-distil": RASTER_GPT | {"depth": 1},
    "flexvar": FLEXVAR,
    "sar": FLEXVAR,
    "eagle-head": HEAD,
    "exit-head": HEAD | {"layers": 1},
    **dict.fromkeys(("medusa-heads", "hydra-heads"), HEADS),
    "judge-head": {"embed_dim": 16},
    "kl": KL,
    "flowar": FLOWAR,
    "mar": MAR,
    "himar": HIMAR,
    "acdit": ACDIT,
    "xar": XAR,
    "ecar": FLOWAR | {"dropout": 0.0},
    "classifier": {"widths": [8, 8]},
    "scene-detector": {"widths": [8, 8, 8, 8]},
    "variant": DEEPER,
    "distilled-decoding": VAR | {"coded": 1, "jumps": [2]},
    "score-distillation": VAR | {"coded": 0, "jumps": []},
    "latent-scorer": {"scales": [1], "latent_channels": 4, "side": 8, "cells": 2, "width": 8},
    "small-decoder": {"latent_channels": 4, "widths": [8, 8, 8], "blocks": [1, 0, 0]},
    "hmar": HMAR,
    "hmar-mask": HMAR,
    "car": VAR | {"control_channels": [4] * 5, "light_width": 4, "light_layers": 1},
}  # VAR for the others
DRAFTERS = (
    "raster-distil",
    "eagle-head",
    "exit-head",
    "medusa-heads",
    "hydra-heads",
    "judge-head",
)  # of next-token models
# The multi-scale one for the others.
TOKENIZERS = {
    **dict.fromkeys(("flowar", "mar", "himar", "acdit", "xar", "ecar"), "kl"),
    **dict.fromkeys(("infinity", "varedit"), "bits-tokenizer"),
    **dict.fromkeys(("raster-gpt", "flexvar", "sar", *DRAFTERS), "raster-tokenizer"),
}
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
def noisy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with noise in place of scenes and of edited ones, which would be rendered for long."""
    folder, noise = tmp_path_factory.mktemp("noisy-cache"), np.random.default_rng(0)
    for kind in (SCENES, SCENE_EDITS):
        for split in ("train", "validation"):
            images = noise.integers(0, 256, (24, 3, kind.size, kind.size), dtype=np.uint8)
            np.save(folder / f"{kind.name}-{split}.npy", images)
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained networks by name: tokenizers, a classifier, backbones, and the teachers of two of them."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    tokenizer = MultiScaleVQ(MultiScaleVQConfig(**TOKENIZER))
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight)  # it starts at zero: every token would be the same
    save_network(tokenizer, folder / "tokenizer")
    save_network(StillLifeClassifier(StillLifeClassifierConfig(widths=(8, 8))), folder / "classifier")
    save_network(KLConfig(**KL).build(), folder / "kl")
    raster = RasterVQ(RasterVQConfig(**RASTER_VQ))
    torch.nn.init.normal_(raster.quantize.embedding.weight)
    save_network(raster, folder / "raster-tokenizer")
    save_network(MultiScaleBSQ(MultiScaleBSQConfig(**SCENES_BSQ)), folder / "bits-tokenizer")
    networks = {
        "var": var.VAR(var.VARConfig(**VAR)),
        "teacher": var.VAR(var.VARConfig(**DEEPER)),
        "hmar": hmar.HMAR(hmar.HMARConfig(**HMAR)),
    }
    save_network(fill(RasterGPT(RasterGPTConfig(**RASTER_GPT))), folder / "raster-teacher")
    for name, network in networks.items():
        network.init_weights(head=1.0)  # as the published 0.02 makes every token equally likely
        save_network(network, folder / name)
    return folder


@pytest.fixture(scope="session")
def settings(parts: Path) -> Callable[..., dict[str, Any]]:
    """The settings of a tiny recipe by objective, with changes."""

    def make(objective: str, **changes: Any) -> dict[str, Any]:
        model, options = MODELS.get(objective, VAR), _options(parts).get(objective, {})
        values = copy.deepcopy({"objective": objective, "model": model, **COMMON, "objective_options": options})
        if objective in ("scene-detector", "infinity"):
            values["data"] = {"kind": "scenes", "count": 24, "validation_count": 8}
        if objective == "varedit":
            values["data"] = {"kind": "scene-edits", "count": 24, "validation_count": 8}
        if objective == "car":
            values["data"] = COMMON["data"] | {"control": "edges"}
        if objective in (*DRAFTERS, "distilled-decoding", "score-distillation", "latent-scorer"):
            values["data"] = {"kind": "samples", "count": 24, "validation_count": 8}
        if objective not in ("tokenizer", "raster-tokenizer", "bits-tokenizer", "kl", "classifier", "scene-detector"):
            values["tokenizer"] = str(parts / TOKENIZERS.get(objective, "tokenizer"))
        return values | changes

    return make


def _options(parts: Path) -> dict[str, dict[str, Any]]:
    drafter = {"draft_scales": 2, "initial": str(parts / "var")}
    return {
        "tokenizer": _all_terms(parts) | {"revive_every": 2},
        "raster-tokenizer": _all_terms(parts) | {"revive_every": 2},
        **dict.fromkeys(("kl", "bits-tokenizer", "small-decoder"), _all_terms(parts)),
        "drafter": drafter,
        "refiner": drafter | {"teacher": str(parts / "teacher")},
        "hmar-mask": {"initial": str(parts / "hmar")},
        "car": {"initial": str(parts / "var")},
        "cca": {"initial": str(parts / "var")},
        "distilled-decoding": {"teacher": str(parts / "var"), "solver": "euler", "flow_steps": 4},
        "score-distillation": {
            "teacher": str(parts / "var"),
            "pretrain": 1,
            "align": 1,
            "guidance_updates": 2,
            "head_width": 16,
            "head_depth": 1,
        },
        "latent-scorer": {"teacher": str(parts / "var"), "judge": str(parts / "classifier")},
        **{name: {"teacher": str(parts / "raster-teacher")} for name in DRAFTERS},
        **{name: {"text_heads": 2, "text_depth": 1} for name in ("infinity", "varedit")},
        "variant": {"subnets": [2], "full_scales": 1, "subnet_probability": [0.5, 0.5]},
    }


def _all_terms(parts: Path) -> dict[str, Any]:
    return {"perceptual": 0.1, "perceptual_network": str(parts / "classifier"), "adversarial": 0.1,
            "adversarial_start": 2, "adaptive": True, "discriminator_width": 8}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(settings: Callable[..., dict[str, Any]]) -> Callable[..., Recipe]:
    """A tiny recipe by objective, with changes."""
    return lambda objective, **changes: recipe_from(settings(objective, **changes))


@pytest.fixture
def build(
    tiny: Callable[..., Recipe], settings: Callable[..., dict[str, Any]], cache: Path
) -> Callable[..., tuple[Any, Batch]]:
    """An objective with changed options, and the first batch of its data."""

    def make(name: str, **changes: Any) -> tuple[Any, Batch]:
        options = settings(name)["objective_options"] | changes
        recipe = tiny(name, objective_options=options, precision="fp32")
        objective = objective_class(name)(recipe, Workplace(cache, Team(0, 1, torch.device("cpu"))))
        return objective, next(iter(objective.source.batches([torch.arange(8)], 0)))

    return make


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """The tensors of a saved network, or of the backbone of a model directory."""
    return lambda folder: load_file((folder / "backbone" if (folder / "backbone").is_dir() else folder) / WEIGHTS)


@pytest.fixture
def image_folders(tmp_path: Path) -> Callable[..., str]:
    """Makes `name` with three images in each class folder; returns its path."""

    def make(name: str, classes: str, each: int = 3) -> str:
        noise = np.random.default_rng(0)
        for letter in classes:
            (tmp_path / name / letter).mkdir(parents=True)
            for number in range(each):
                pixels = noise.integers(0, 256, (80, 72, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / letter / f"{number}.png")
        return str(tmp_path / name)

    return make


@pytest.fixture
def train_in_two(tmp_path: Path, cache: Path) -> Callable[[Recipe, Path], Path]:
    """Trains in two processes; returns the final directory."""

    def run(recipe: Recipe, out: Path) -> Path:
        in_two.train_in_two(recipe, out, cache, tmp_path)
        return out / "final"

    return run
