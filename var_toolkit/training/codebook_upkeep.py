"""Keeps a codebook in use: counts how often codes are chosen, and replaces those that are not.

Multi-scale VQ collapses easily (few codes win everything), most of all on coarse scales. Dead codes move onto residual
vectors of the current batch, drawn in proportion to how badly they are coded now, as k-means++ draws its centres.
Letters: S scales, V vocabulary, C channels, N vectors.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.tokenizers.raster_vq import RasterVQ
from var_toolkit.training.draws import Draws

INITIAL_ROUNDS = 8
Coded = MultiScaleVQ | RasterVQ


class CodebookHits(nn.Module):
    """How often each code was used at each scale since the last reset: a buffer, so that checkpoints hold it."""

    hits_SV: Tensor  # noqa: N815

    def __init__(self, scales: int, vocab_size: int) -> None:
        super().__init__()
        self.register_buffer("hits_SV", torch.zeros(scales, vocab_size, dtype=torch.int64))

    @torch.no_grad()
    def count(self, tokens: Sequence[Tensor]) -> None:
        for hits_V, tokens_BL in zip(self.hits_SV, tokens, strict=True):
            ids = tokens_BL.flatten()
            hits_V.scatter_add_(0, ids, torch.ones_like(ids))  # bincount makes the host wait for the device

    def take(self) -> Tensor:
        """The counts of all processes, (S, V); starts counting afresh."""
        hits_SV = self.hits_SV.clone()
        self.hits_SV.zero_()
        if dist.is_initialized():
            dist.all_reduce(hits_SV)
        return hits_SV


def usage(hits_SV: Tensor) -> dict[str, float]:
    """Share of the codebook in use, over all and at each scale, and its perplexity as a share of the vocabulary."""
    vocab_size = hits_SV.shape[1]
    share_V = hits_SV.sum(0).double() / hits_SV.sum().clamp(min=1)
    perplexity = torch.exp(-(share_V * share_V.clamp(min=1e-12).log()).sum())
    rows = {"codebook_used": hits_SV.sum(0)} | {f"codebook_used_scale_{s}": row for s, row in enumerate(hits_SV)}
    used = {name: float((row > 0).double().mean()) for name, row in rows.items()}
    return used | {"codebook_perplexity": float(perplexity) / vocab_size}


@torch.no_grad()
def residual_vectors(tokenizer: Coded, images: Tensor) -> tuple[Tensor, Tensor]:
    """What of the images has to be coded, (N, C), and how far the nearest code is from it, squared, (N,)."""
    return tokenizer.quantize.targets_and_errors(tokenizer.features(images).float())


@torch.no_grad()
def revive(tokenizer: Coded, dead_V: Tensor, images: Tensor, draws: Draws) -> None:
    """Moves the codes marked in `dead_V` (bool) onto badly coded vectors of the first process's images."""
    codebook_VC = tokenizer.quantize.embedding.weight
    if bool(dead_V.any()):
        vectors_NC, error_N = residual_vectors(tokenizer, images)
        count = int(dead_V.sum())
        weight_N, generator = error_N.cpu().double() + 1e-12, draws.generator("revive")
        chosen = torch.multinomial(weight_N, count, replacement=count > len(weight_N), generator=generator)
        codebook_VC[dead_V] = vectors_NC[chosen.to(vectors_NC.device)].to(codebook_VC.dtype)
    if dist.is_initialized():
        dist.broadcast(codebook_VC, src=0)


@torch.no_grad()
def initialise_codebook(tokenizer: Coded, images: Tensor, draws: Draws) -> None:
    """Puts every code onto a residual vector of real images: random codes far from the data would never be used.

    In rounds, since what fine scales have to code shows only once coarse ones have useful codes.
    """
    codebook_VC = tokenizer.quantize.embedding.weight
    codebook_VC.zero_()
    for _ in range(INITIAL_ROUNDS):
        hits_V = torch.bincount(torch.cat(tokenizer.encode(images), dim=1).flatten(), minlength=len(codebook_VC))
        revive(tokenizer, hits_V == 0, images, draws)
