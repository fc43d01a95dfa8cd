"""Codes that are computed once for every image and stored on disk: its tokens, or its latents or their moments.

Without augmentation an image's codes never change for one tokenizer. Letters: N images, L tokens, C channels.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.lib.format import open_memmap
from torch import Tensor

from var_toolkit.files import allocate
from var_toolkit.progress import Progress
from var_toolkit.tokenizers.bsq import MultiScaleBSQ
from var_toolkit.tokenizers.kl import KLTokenizer
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.tokenizers.raster_vq import RasterVQ
from var_toolkit.training.batches import to_unit_range

CHUNK = 512
STEP = 64  # images at a time on the device
ENCODING = (
    "encoder.", "quant_conv.", "quantize.embedding", "quantize.quant_resi",
    "patchify.", "query_", "encoder_layers.", "quant_in_conv.",  # D-AR
)  # fmt: skip
Chunks = Callable[[int], Iterator[Tensor]]  # from an image on: uint8 (CHUNK, 3, h, w), the last one shorter
Codes = Callable[[int], Iterator[Tensor]]  # from an image on: codes of a few images at a time, (n, *shape)


@dataclass(frozen=True)
class Stored:
    """The file of stored codes, and their shape and type for one image."""

    name: str  # of the file, with a hash of everything that determines its content
    shape: tuple[int, ...]
    dtype: type
    work: str = "encoding"  # what the progress bar says


def cached_tokens(
    tokenizer: MultiScaleVQ, images: np.ndarray, directory: Path, name: str, *, progress: bool = True
) -> np.ndarray:
    """Tokens of uint8 images (N, 3, h, w): a memory map (N, L), coarse to fine.

    `name` says which images these are (version, split); the file's name adds their number and the tokenizer's hash.
    After a kill, the computation resumes after the last complete chunk; processes wait for one another.
    """
    found = f"tokens-{name}-{len(images)}-{weights_hash(tokenizer)}"
    stored = Stored(found, (tokenizer.scales.total,), token_dtype(tokenizer.config.vocab_size))
    codes = codes_of(lambda part: torch.cat(tokenizer.encode(part), dim=1), array_chunks(images), _device(tokenizer))
    return cached(stored, len(images), codes, directory, progress=progress)


def cached_features(
    tokenizer: RasterVQ | MultiScaleBSQ, images: np.ndarray, directory: Path, name: str, *, progress: bool = True
) -> np.ndarray:
    """Latents of uint8 images before quantisation: a memory map (N, C, h, w), float16. Otherwise as `cached_tokens`."""
    side = tokenizer.latent_side
    found = f"features-{name}-{len(images)}-{hash_of(_encoding(tokenizer), repr(side))}"
    stored = Stored(found, (tokenizer.channels, side, side), np.float16)
    codes = codes_of(tokenizer.features, array_chunks(images), _device(tokenizer))
    return cached(stored, len(images), codes, directory, progress=progress)


def cached_moments(
    tokenizer: KLTokenizer, count: int, chunks: Chunks, directory: Path, name: str, *, progress: bool = True
) -> np.ndarray:
    """Means and log variances of the latents of `count` images: a memory map (N, 2C, h, w), float16, not scaled.

    Otherwise as `cached_tokens`.
    """
    side = tokenizer.scales.finest
    found = f"moments-{name}-{count}-{hash_of(_encoding(tokenizer.autoencoder), repr(side))}"
    stored = Stored(found, (2 * tokenizer.channels, side, side), np.float16)
    return cached(stored, count, codes_of(tokenizer.moments, chunks, _device(tokenizer)), directory, progress=progress)


def token_dtype(vocab_size: int) -> type:
    """The smallest type that holds the ids of a codebook and that torch can read."""
    return np.int16 if vocab_size <= 2**15 else np.int32


def array_chunks(images: np.ndarray) -> Chunks:
    """Images of an array, chunk by chunk."""

    def chunks(start: int) -> Iterator[Tensor]:
        for at in range(start, len(images), CHUNK):
            yield torch.from_numpy(np.array(images[at : at + CHUNK]))

    return chunks


def weights_hash(network: MultiScaleVQ) -> str:
    """Ten hexadecimal digits that change with the schedule and with any weight that determines the tokens."""
    return hash_of(_encoding(network), repr(network.scales.patch_nums))


def hash_of(weights: Mapping[str, Tensor], also: str = "") -> str:
    """Ten hexadecimal digits that change with any weight and with `also`."""
    digest = hashlib.blake2b(also.encode(), digest_size=5)
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encoding(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(ENCODING)}


def _device(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device


def codes_of(encode: Callable[[Tensor], Tensor], chunks: Chunks, device: torch.device) -> Codes:
    """Codes of images; `encode` takes float images (B, 3, h, w) in [-1, 1] to (B, *shape)."""

    def codes(start: int) -> Iterator[Tensor]:
        for part in chunks(start):
            yield encoded(encode, part, device)

    return codes


def cached(stored: Stored, count: int, codes: Codes, directory: Path, *, progress: bool = True) -> np.ndarray:
    """The codes of `count` images: a memory map (count, *shape), computed unless the file exists.

    After a kill, the computation resumes after the last codes written; processes wait for one another.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"{stored.name}.npy"
    with FileLock(final.with_suffix(".lock")):
        if not final.exists():
            _compute_all(stored, count, codes, final, progress)
    return np.load(final, mmap_mode="r")


def _compute_all(stored: Stored, count: int, codes: Codes, final: Path, progress: bool) -> None:
    unfinished, mark = final.with_suffix(".unfinished"), final.with_suffix(".done")
    done = int(mark.read_text()) if mark.exists() and unfinished.exists() else 0
    if done:
        written = open_memmap(unfinished, mode="r+")
    else:
        written = open_memmap(unfinished, mode="w+", dtype=stored.dtype, shape=(count, *stored.shape))
        allocate(unfinished)
    with Progress(count, "images", what=stored.work, done=done, active=progress) as bar:
        for part in codes(done):
            found: np.ndarray = part.cpu().numpy().astype(stored.dtype)
            if not np.isfinite(found).all():
                raise ValueError(f"the codes of images {done} to {done + len(part) - 1} are not finite")
            written[done : done + len(part)] = found
            written.flush()
            done += len(part)
            _write_mark(mark, done)
            bar.update(len(part))
    os.replace(unfinished, final)
    mark.unlink(missing_ok=True)


def _write_mark(mark: Path, done: int) -> None:
    unfinished = mark.with_suffix(".done.new")
    unfinished.write_text(str(done))
    os.replace(unfinished, mark)


@torch.no_grad()
def encoded(encode: Callable[[Tensor], Tensor], images_uint8: Tensor, device: torch.device) -> Tensor:
    """The result of `encode` for uint8 images (B, 3, h, w), a few at a time, computed in float32."""
    parts: Iterable[Tensor] = images_uint8.split(STEP)
    return torch.cat([encode(to_unit_range(part.to(device))) for part in parts])
