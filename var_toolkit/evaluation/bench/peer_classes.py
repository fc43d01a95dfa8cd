"""VAR and LlamaGen as published beside ours: the same random weights, the same class, images to the last pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from var_toolkit import registry
from var_toolkit.evaluation.bench.peer_rows import FAST, Peer
from var_toolkit.evaluation.bench.published_code import CLASS, Draw, importable, in_half, made
from var_toolkit.formats.fitting import fitted
from var_toolkit.formats.published import networks_from_tensors
from var_toolkit.pipeline import Pipeline
from var_toolkit.precision import precision_of

VAR_SETTINGS: dict[str, Any] = {"cfg": 1.5, "top_k": 900, "top_p": 0.95}
GPT_SETTINGS: dict[str, Any] = {"cfg": 2.0, "top_k": 2000}
SIDE, CODES, CODE_WIDTH = 16, 16384, 8  # LlamaGen's map of tokens for 256 px, and its codebook


@contextmanager
def var(folder: Path, peer: Peer, device: torch.device) -> Iterator[Mapping[str, Draw]]:
    """VAR, as its demonstration calls it."""
    depth = int(peer.model.removeprefix("var-d"))
    with importable(folder):
        tokenizer, network = _both(lambda: import_module("models").build_vae_var(device=device, depth=depth))
        half = in_half(peer.dtype, device)

        @torch.inference_mode()
        def theirs(seed: int) -> object:
            labels = torch.full((peer.batch,), CLASS, device=device)
            with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
                return network.autoregressive_infer_cfg(B=peer.batch, label_B=labels, g_seed=seed, **VAR_SETTINGS).cpu()

        yield {"ours": ours(tokenizer, network, peer, device, VAR_SETTINGS), "published": theirs}


@contextmanager
def llamagen(folder: Path, peer: Peer, device: torch.device) -> Iterator[Mapping[str, Draw]]:
    """LlamaGen, as its script of samples calls it, but uncompiled; its decoder is always float32."""
    with importable(folder):
        gpt, decoder, generate = (
            import_module(name)
            for name in (
                "autoregressive.models.gpt", "tokenizer.tokenizer_image.vq_model", "autoregressive.models.generate",
            )
        )  # fmt: skip
        build = gpt.GPT_models[f"GPT-{peer.model.removeprefix('llamagen-').upper()}"]
        network: Any = made(lambda: build(vocab_size=CODES, block_size=SIDE**2, num_classes=1000, cls_token_num=1))
        tokenizer: Any = made(lambda: decoder.VQ_models["VQ-16"](codebook_size=CODES, codebook_embed_dim=CODE_WIDTH))
        own = ours(tokenizer, network, peer, device, GPT_SETTINGS)
        tokenizer.to(device)
        network.to(device, torch.bfloat16 if in_half(peer.dtype, device) else torch.float32)

        @torch.inference_mode()
        def theirs(seed: int) -> object:
            torch.manual_seed(seed)
            labels = torch.full((peer.batch,), CLASS, device=device)
            scale, kept = GPT_SETTINGS["cfg"], GPT_SETTINGS["top_k"]
            drawn = generate.generate(network, labels, SIDE**2, cfg_scale=scale, top_k=kept)
            return tokenizer.decode_code(drawn, [peer.batch, CODE_WIDTH, SIDE, SIDE]).cpu()

        yield {"ours": own, "published": theirs}


def _both(build: Callable[[], tuple[nn.Module, nn.Module]]) -> Any:
    """The two networks that a function returns, with random weights."""
    return made(lambda: nn.ModuleList(build()))


def ours(tokenizer: nn.Module, network: nn.Module, peer: Peer, device: torch.device, settings: dict[str, Any]) -> Draw:
    """Our pipeline with the weights of the published networks, read as its files are."""
    source: Any = registry.entry(peer.model).source
    both = {"tokenizer": tokenizer, "backbone": network}
    tensors = {part: {name: t.cpu().clone() for name, t in each.state_dict().items()} for part, each in both.items()}
    named = {part: f"the published {part}" for part in both}
    parts = networks_from_tensors(source.family, tensors, source.configs, named)
    backbone = parts["backbone"]
    own = fitted(parts["tokenizer"], backbone, (named["tokenizer"], named["backbone"]))
    precision = precision_of("auto" if peer.dtype == "best" else peer.dtype, device, [backbone])
    pipe = Pipeline(own, backbone).to(device, precision.wide)
    pipe = pipe.quantize(precision.quantized) if precision.quantized else pipe
    if device.type == "cuda" and peer.dtype in FAST:
        with suppress(ValueError):  # networks that draw groups of tokens are not compiled
            pipe.compile()
    pipe.pack()

    def draw(seed: int) -> object:
        seeds = range(seed * peer.batch, (seed + 1) * peer.batch)
        return pipe([CLASS] * peer.batch, seeds=seeds, batch_size=peer.batch, output_type="pt", **settings)

    return draw
