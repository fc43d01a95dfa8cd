"""Check that a tokenizer fits a backbone, and set its token maps as the backbone needs them."""

from __future__ import annotations

from typing import Any

from torch import nn

from var_toolkit.registry import family_of
from var_toolkit.tokenizers.kl import KLTokenizer
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.tokenizers.raster_vq import RasterVQ

AnyTokenizer = MultiScaleVQ | RasterVQ | KLTokenizer


def fitted(tokenizer: nn.Module, backbone: Any, sources: tuple[str, str]) -> AnyTokenizer:
    """A MultiScaleVQ as it is; a RasterVQ or an AutoencoderKL with the backbone's scales.

    ValueError in one line if the two do not fit; `sources` name tokenizer and backbone in errors.
    """
    needed, found = family_of(backbone).tokenizer, type(tokenizer).__name__
    if found != needed.network:
        raise ValueError(
            f"{sources[1]} draws {needed.tokens} and needs {_a(needed.network)}; {sources[0]} holds {_a(found)}"
        )
    if isinstance(tokenizer, RasterVQ):
        _require_equal(backbone.config.vocab_size, tokenizer.config.vocab_size, "codes", sources)
        channels = getattr(backbone.config, "latent_channels", tokenizer.config.code_dim)  # LlamaGen reads no codes
        _require_equal(channels, tokenizer.config.code_dim, "channels of codes", sources)
        return tokenizer.for_schedule(backbone.scales)
    if isinstance(tokenizer, MultiScaleVQ):
        _require_equal(backbone.config.vocab_size, tokenizer.config.vocab_size, "codes", sources)
        _require_equal(backbone.config.latent_channels, tokenizer.config.z_channels, "latent channels", sources)
        return tokenizer
    config: Any = tokenizer.config
    _require_equal(backbone.config.latent_channels, config.latent_channels, "latent channels", sources)
    return KLTokenizer(tokenizer, backbone.scales, backbone.config.input_side)


def _a(name: str) -> str:
    return f"an {name}" if name.startswith("A") else f"a {name}"


def _require_equal(expected: int, found: int, what: str, sources: tuple[str, str]) -> None:
    if expected != found:
        raise ValueError(
            f"{sources[1]} expects {expected} {what}, {sources[0]} has {found}; give the tokenizer of this backbone"
        )
