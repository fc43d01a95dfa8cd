"""The decoder of a tokenizer, and a step of VAR, as programs that run without this package: torch.export or ONNX.

A program is traced from the modules that draw images here, so there is no second implementation. The numbers of images
and rows are dynamic; all other sizes are those of the model. The caller of these programs implements guidance, filters,
sampling, and the computation of the next scale's inputs from tokens.

Letters: B images, R rows (images, twice under guidance), N layers, H heads, L tokens, D head width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from var_toolkit.conditions.condition import Condition
from var_toolkit.files import check_writable, write_whole
from var_toolkit.formats.fitting import AnyTokenizer
from var_toolkit.models.var import VAR
from var_toolkit.tokenizers.kl import KLTokenizer

ENDINGS = (".pt2", ".onnx")
KL_IMAGES = 63  # images; from 64 on diffusers copies its inputs before upsampling, which gives another program
LARGEST_ONNX = 2**31  # bytes, of one protobuf file


def export_decoder(tokenizer: AnyTokenizer, path: Path | str) -> None:
    """Write the decoder: `latent` (B, C, side, side), float32 -> `images` (B, 3, h, w), float32 in [-1, 1].

    The decoder of an AutoencoderKL accepts up to 63 images. A path ends in .pt2 (`torch.export.load`) or .onnx.
    ValueError in one line if the export is not possible.
    """
    side, device = tokenizer.scales.finest, next(tokenizer.parameters()).device
    latent = torch.zeros(2, tokenizer.channels, side, side, device=device)
    most = KL_IMAGES if isinstance(tokenizer, KLTokenizer) else None
    _export(_Decoder(tokenizer), {"latent": latent}, {"latent": 0}, ["images"], Path(path), most)


def export_step(backbone: VAR, scale: int, path: Path | str) -> None:
    """Write what VAR computes at one scale, counted from 0: one program per scale, as the numbers of tokens differ.

    `labels` (R), int64; `inputs` (R, L, C), float32, the tokenizer's of this scale (no tokens at scale 0); `keys` and
    `values` (N, R, H, L, D) of all scales before -> `logits` (R, L, V), float32; `new_keys`, `new_values` of this one.
    ValueError in one line if the export is not possible.
    """
    if not isinstance(backbone, VAR):
        raise ValueError(f"the backbone is a {type(backbone).__name__}; only steps of a VAR can be exported")
    if not 0 <= scale < len(backbone.scales):
        raise ValueError(f"scale is {scale}; this backbone has the scales 0 to {len(backbone.scales) - 1}")
    config, begin = backbone.config, backbone.scales.offsets[scale]
    weight = backbone.head.bias
    shape = (config.depth, 2, config.num_heads, begin, config.embed_dim // config.num_heads)
    inputs = weight.new_zeros(2, backbone.scales.lengths[scale] if scale else 0, config.latent_channels)
    given = {
        "labels": torch.zeros(2, dtype=torch.int64, device=weight.device),
        "inputs": inputs.float(),
        "keys": weight.new_zeros(shape),
        "values": weight.new_zeros(shape),
    }
    rows = {"labels": 0, "inputs": 0, "keys": 1, "values": 1}
    _export(_Step(backbone, scale), given, rows, ["logits", "new_keys", "new_values"], Path(path))


class _Decoder(nn.Module):
    def __init__(self, tokenizer: AnyTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, latent: Tensor) -> Tensor:
        return self.tokenizer.decode(latent)


class _Step(nn.Module):
    def __init__(self, backbone: VAR, scale: int) -> None:
        super().__init__()
        self.backbone, self.scale = backbone, scale

    def forward(self, labels: Tensor, inputs: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The calls of the decoding engine, with a cache that is filled from tensors and read back."""
        backbone, begin, layers = self.backbone, keys.shape[3], range(keys.shape[0])
        end = begin + backbone.scales.lengths[self.scale]
        cache = backbone.new_cache(labels.shape[0], [end] * len(layers))
        for layer in layers:
            cache.append(layer, keys[layer], values[layer])
        cache.advance(begin)
        condition = backbone.condition(Condition(labels=labels))
        hidden = backbone.hidden(condition, inputs, scales=range(self.scale, self.scale + 1), cache=cache)
        held = [cache.contents(layer) for layer in layers]
        new_keys, new_values = (torch.stack([one[:, :, begin:] for one in kind]) for kind in zip(*held, strict=True))
        return backbone.logits(condition, hidden), new_keys, new_values


def _export(
    module: nn.Module,
    given: Mapping[str, Tensor],
    rows: Mapping[str, int],
    told: list[str],
    path: Path,
    most: int | None = None,
) -> None:
    """Trace a module and write the program.

    `rows` says which dimension of each input may have any size, up to `most`; `told` are the names of the outputs.
    """
    _check(module, path)
    size = torch.export.Dim("rows", min=1, max=most)
    # A copy, because a program cannot hold packed weights, and a network in training mode must stay in it.
    traced = deepcopy(module).eval().to(memory_format=torch.contiguous_format)
    # With gradients enabled, linear layers use torch's operators; without, those of oneDNN, which only x86 CPUs have.
    with torch.inference_mode(False), torch.enable_grad():
        shapes = {name: {dim: size} for name, dim in rows.items()}
        program = torch.export.export(traced, (), dict(given), dynamic_shapes=shapes)
    if path.suffix == ".pt2":
        write_whole(path, lambda temporary: _save(program, temporary))
        return
    onnx: Any = torch.onnx.export(program, (), kwargs=dict(given), output_names=told, dynamo=True, verbose=False)
    write_whole(path, lambda temporary: onnx.save(str(temporary), external_data=False))


def _save(program: torch.export.ExportedProgram, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file)


def _check(module: nn.Module, path: Path) -> None:
    """Raise ValueError before the work if the file cannot be written."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} must end in {' or '.join(ENDINGS)}")
    check_writable(path.parent)
    if path.suffix == ".pt2":
        return
    if find_spec("onnxscript") is None:
        raise ValueError(f"{path} needs the package onnxscript: pip install 'var-toolkit[onnx]', or write a .pt2")
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    if size >= LARGEST_ONNX:
        raise ValueError(f"{path} would hold {size / 2**30:.1f} GiB, and an ONNX file at most 2; write a .pt2")
