"""MAR as published beside ours: the same random weights, the same class, images to the last pixel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from var_toolkit import registry
from var_toolkit.evaluation.bench.peer_classes import ours
from var_toolkit.evaluation.bench.peer_rows import Peer
from var_toolkit.evaluation.bench.published_code import CLASS, Draw, importable, in_half, made
from var_toolkit.tokenizers.kl16 import SCALING

SETTINGS: dict[str, Any] = {"cfg": 2.9, "steps": 64, "denoising_steps": 100}
KL16: dict[str, Any] = {"embed_dim": 16, "ch_mult": (1, 1, 2, 2, 4)}


@contextmanager
def mar(folder: Path, peer: Peer, device: torch.device) -> Iterator[Mapping[str, Draw]]:
    """MAR, as its evaluation calls it, in bfloat16 where that has float16, and on the CPU where it has CUDA."""
    source: Any = registry.entry(peer.model).source
    sizes, steps = source.configs["backbone"], SETTINGS["denoising_steps"]
    with importable(folder):
        build = getattr(import_module("models.mar"), peer.model.replace("-", "_"))
        head = {"diffloss_d": sizes["head_depth"], "diffloss_w": sizes["head_width"]}
        network: Any = made(lambda: build(num_sampling_steps=str(steps), **head))
        tokenizer: Any = made(lambda: import_module("models.vae").AutoencoderKL(**KL16))
        own = ours(tokenizer, network, peer, device, SETTINGS)
        network.to(device)
        tokenizer.to(device)
        half = in_half(peer.dtype, device)

        @torch.inference_mode()
        def theirs(seed: int) -> object:
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - the published orders come from it
            labels = torch.full((peer.batch,), CLASS, device=device)
            stay = patch.object(torch.Tensor, "cuda", lambda tensor: tensor) if device.type == "cpu" else nullcontext()
            with stay, torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
                drawn = network.sample_tokens(
                    peer.batch, num_iter=SETTINGS["steps"], cfg=SETTINGS["cfg"], labels=labels
                )
                return tokenizer.decode(drawn / SCALING).float().cpu()

        yield {"ours": own, "published": theirs}
