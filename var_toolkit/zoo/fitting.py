"""Whether a tokenizer and a backbone belong together, and the tokenizer as the backbone needs it."""

from __future__ import annotations

from typing import Any

from torch import nn

from var_toolkit.sampling.plan import is_continuous
from var_toolkit.tokenizers.kl import KLTokenizer
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ

VQ, KL = "a MultiScaleVQ", "an AutoencoderKL"


def fitted(tokenizer: nn.Module, backbone: Any, sources: tuple[str, str]) -> MultiScaleVQ | KLTokenizer:
    """A MultiScaleVQ as it is; an AutoencoderKL with the scales of the backbone.

    ValueError in one line if the two do not belong together; `sources` say where tokenizer and backbone are from.
    """
    discrete = isinstance(tokenizer, MultiScaleVQ)
    if discrete == is_continuous(backbone):
        kind, wanted, found = ("continuous", KL, VQ) if discrete else ("discrete", VQ, KL)
        raise ValueError(f"{sources[1]} draws {kind} tokens and needs {wanted}; {sources[0]} holds {found}")
    if isinstance(tokenizer, MultiScaleVQ):
        _require_equal(backbone.config.vocab_size, tokenizer.config.vocab_size, "codes", sources)
        _require_equal(backbone.config.latent_channels, tokenizer.config.z_channels, "latent channels", sources)
        return tokenizer
    config: Any = tokenizer.config
    _require_equal(backbone.config.latent_channels, config.latent_channels, "latent channels", sources)
    return KLTokenizer(tokenizer, backbone.scales, backbone.config.input_side)


def _require_equal(expected: int, found: int, what: str, sources: tuple[str, str]) -> None:
    if expected != found:
        raise ValueError(
            f"{sources[1]} expects {expected} {what}, {sources[0]} has {found}: they do not belong together"
        )
