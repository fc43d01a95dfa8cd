"""Published code beside ours: the same random weights, the same classes and settings, rounds in turns.

The code is read from a checkout that the user gives; it is imported and run in this process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from var_toolkit.devices import find_device, has_units
from var_toolkit.evaluation.bench.peer_rows import Peer
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.pipeline import Pipeline
from var_toolkit.precision import precision_of
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig

Draw = Callable[[int], object]  # images from a seed, on the CPU or complete on the device
SETTINGS: dict[str, Any] = {"cfg": 1.5, "top_k": 900, "top_p": 0.95}
CLASS = 207


def compare(folder: Path, peers: list[Peer], rounds: int, on_turn: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure each comparison. One row each: seconds of every round, and the ratios published / ours."""
    rows, device = [], find_device("auto")
    for peer in peers:
        with _published(folder, peer.depth, device) as (tokenizer, network):
            both = {
                "ours": _ours(tokenizer, network, peer, device),
                "published": _theirs(tokenizer, network, peer, device),
            }

            def told(what: str, name: str = peer.name) -> None:
                on_turn(f"{name}: {what}")

            seconds = in_turns(both, rounds, told)
        rows.append({"row": peer.name, "device": str(device), **summary(seconds)})
    return rows


def in_turns(draws: Mapping[str, Draw], rounds: int, on_turn: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each function in every round, after one call each to warm up; its seed is the round."""
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    for number in range(rounds + 1):
        for name, draw in draws.items():
            on_turn(name)
            begun = time.perf_counter()
            draw(number)
            if number > 0:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def summary(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """The median of each, and the median, the smallest and the largest of the ratios of the rounds."""
    ratios = [other / own for own, other in zip(seconds["ours"], seconds["published"], strict=True)]
    return {
        **{name: round(median(times), 4) for name, times in seconds.items()},
        "ratio": round(median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "seconds": {name: [round(one, 4) for one in times] for name, times in seconds.items()},
    }


def as_text(rows: list[dict[str, Any]]) -> str:
    """The table: how many times as fast as the published code each row is, and between what bounds."""
    lines = [f"{'row':28} {'ours, s':>9} {'published, s':>13} {'ratio':>7}  lowest to highest"]
    for row in rows:
        spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        lines.append(f"{row['row']:28} {row['ours']:9.2f} {row['published']:13.2f} {row['ratio']:7.2f}  {spread}")
    return "\n".join(lines)


@contextmanager
def _published(folder: Path, depth: int, device: torch.device) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The published tokenizer and network with random weights, which their own initialisation takes minutes for."""
    kinds = (nn.Linear, nn.LayerNorm, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d,
             nn.ConvTranspose2d)  # fmt: skip
    before, known = [(kind, kind.reset_parameters) for kind in kinds], set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        with redirect_stdout(StringIO()), patch.object(nn.init, "trunc_normal_", lambda tensor, **settings: tensor):
            tokenizer, network = import_module("models").build_vae_var(device=device, depth=depth)
        for module in (tokenizer, network):
            _fill(module.eval())
        yield tokenizer, network
    finally:
        sys.path.remove(str(folder))
        for kind, reset in before:  # the published code replaces them for good
            kind.reset_parameters = reset  # type: ignore[method-assign]
        for name in set(sys.modules) - known:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def _fill(module: nn.Module) -> None:
    some = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for parameter in module.parameters():
        for part in parameter.data.view(-1).split(len(some)):
            part.copy_(some[: len(part)])


def _ours(tokenizer: nn.Module, network: nn.Module, peer: Peer, device: torch.device) -> Draw:
    """Our networks with the weights of the published ones."""
    with torch.device("meta"):
        backbone = VAR(VARConfig.published(peer.depth))
    own = MultiScaleVQ(MultiScaleVQConfig())
    for module, weights in ((backbone, network.state_dict()), (own, tokenizer.state_dict())):
        module.load_state_dict({name: weights[name].clone() for name in module.state_dict()}, assign=module is backbone)
        module.eval().requires_grad_(False)
    precision = precision_of("auto" if peer.dtype == "best" else peer.dtype, device)
    pipe = Pipeline(own, backbone).to(device, precision.wide)
    pipe = (pipe.quantize("int8") if precision.quantized else pipe).pack()

    def draw(seed: int) -> object:
        seeds = range(seed * peer.batch, (seed + 1) * peer.batch)
        return pipe([CLASS] * peer.batch, seeds=seeds, batch_size=peer.batch, output_type="pt", **SETTINGS)

    return draw


def _theirs(tokenizer: nn.Module, network: nn.Module, peer: Peer, device: torch.device) -> Draw:
    """The published sampler as its demonstration calls it, which decodes the images too."""
    half = has_units("bfloat16") if device.type == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)
    autocast = half if peer.dtype == "best" else peer.dtype != "float32"

    @torch.inference_mode()
    def draw(seed: int) -> object:
        labels = torch.full((peer.batch,), CLASS, device=device)
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            return network.autoregressive_infer_cfg(B=peer.batch, label_B=labels, g_seed=seed, **SETTINGS).cpu()  # type: ignore[operator]

    return draw
