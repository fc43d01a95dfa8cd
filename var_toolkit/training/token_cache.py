"""Token maps of the still lifes, computed once and kept beside the pictures.

There is no augmentation, so a picture's tokens never change for one tokenizer. Letters: N pictures, L tokens.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.training.batches import to_unit_range

CHUNK = 512


def weights_hash(network: MultiScaleVQ) -> str:
    """Ten hexadecimal digits that change with the schedule and with any weight that decides the tokens."""
    digest = hashlib.blake2b(repr(network.scales.patch_nums).encode(), digest_size=5)
    for name, tensor in sorted(network.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.", "quantize.embedding", "quantize.quant_resi")):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cached_tokens(
    tokenizer: MultiScaleVQ, pictures: np.ndarray, directory: Path, name: str, *, progress: bool = True
) -> np.ndarray:
    """Tokens of uint8 pictures (N, 3, h, w): a memory map (N, L), coarse to fine.

    `name` says which pictures these are (version, split); the file's name adds their number and the tokenizer's hash.
    A killed run goes on with the chunk after the last whole one; processes wait for one another.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"tokens-{name}-{len(pictures)}-{weights_hash(tokenizer)}.npy"
    with FileLock(final.with_suffix(".lock")):
        if not final.exists():
            _encode_all(tokenizer, pictures, final, progress)
    return np.load(final, mmap_mode="r")


def _encode_all(tokenizer: MultiScaleVQ, pictures: np.ndarray, final: Path, progress: bool) -> None:
    unfinished, mark = final.with_suffix(".unfinished"), final.with_suffix(".done")
    done = int(mark.read_text()) if mark.exists() and unfinished.exists() else 0
    if done:
        tokens = np.lib.format.open_memmap(unfinished, mode="r+")
    else:
        dtype = np.int16 if tokenizer.config.vocab_size <= 2**15 else np.int32
        tokens = open_memmap(unfinished, mode="w+", dtype=dtype, shape=(len(pictures), tokenizer.scales.total))
    bar = tqdm(total=len(pictures), initial=done, desc="encoding pictures", disable=None if progress else True)
    with bar:
        for start in range(done, len(pictures), CHUNK):
            part = torch.from_numpy(np.array(pictures[start : start + CHUNK]))
            tokens[start : start + len(part)] = encode_packed(tokenizer, part).cpu().numpy()
            tokens.flush()
            _write_mark(mark, start + len(part))
            bar.update(len(part))
    os.replace(unfinished, final)
    mark.unlink(missing_ok=True)


def _write_mark(mark: Path, done: int) -> None:
    unfinished = mark.with_suffix(".done.new")
    unfinished.write_text(str(done))
    os.replace(unfinished, mark)


def encode_packed(tokenizer: MultiScaleVQ, pictures_uint8: Tensor, step: int = 64) -> Tensor:
    """uint8 pictures (B, 3, h, w) -> tokens of all scales (B, L), computed in float32."""
    device = next(tokenizer.parameters()).device
    parts = [torch.cat(tokenizer.encode(to_unit_range(part.to(device))), dim=1) for part in pictures_uint8.split(step)]
    return torch.cat(parts)
