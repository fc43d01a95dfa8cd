"""Check that a tokenizer fits a backbone, and set its token maps as the backbone needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from var_toolkit.registry import family_of, published
from var_toolkit.tokenizers.bsq import MultiScaleBSQ
from var_toolkit.tokenizers.kl import KLTokenizer
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.tokenizers.pixel_flow import PixelFlowVQ
from var_toolkit.tokenizers.raster_vq import RasterVQ

AnyTokenizer = MultiScaleVQ | RasterVQ | PixelFlowVQ | MultiScaleBSQ | KLTokenizer
# Published tokenizers with the sizes of another one, by that: the backbones of the one draw noise with the other.
ALIKE = {"infinity_vae_d32reg.pth": ("infinity_vae_d32.pth",)}


def fitted(tokenizer: nn.Module, backbone: Any, sources: tuple[str, str]) -> AnyTokenizer:
    """A MultiScaleVQ or a PixelFlowVQ as it is; a RasterVQ, MultiScaleBSQ or AutoencoderKL with the backbone's scales.

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
    if isinstance(tokenizer, PixelFlowVQ):
        _require_equal(backbone.config.vocab_size, tokenizer.config.vocab_size, "codes", sources)
        _require_equal(backbone.config.tokens, tokenizer.config.tokens, "tokens", sources)
        return tokenizer
    if isinstance(tokenizer, MultiScaleBSQ):
        _require_pair(backbone, tokenizer, sources)
        return tokenizer.for_tokens(backbone.scales, backbone.config.token_bits)
    if isinstance(tokenizer, MultiScaleVQ):
        _require_equal(backbone.config.vocab_size, tokenizer.config.vocab_size, "codes", sources)
        _require_equal(backbone.config.latent_channels, tokenizer.config.z_channels, "latent channels", sources)
        return tokenizer
    config: Any = tokenizer.config
    _require_equal(backbone.config.latent_channels, config.latent_channels, "latent channels", sources)
    return KLTokenizer(
        tokenizer,
        backbone.scales,
        getattr(backbone.config, "input_side", None),
        getattr(backbone.config, "patch_size", 1),
        channel_last=getattr(backbone, "channel_last_patches", False),
    )


def _require_pair(backbone: Any, tokenizer: MultiScaleBSQ, sources: tuple[str, str]) -> None:
    """ValueError unless tokens have as many bits for both, and unless files of known names belong together."""
    files = [Path(source).name for source in sources]
    known = [
        (
            *(Path(found.files[part][1]).name for part in ("tokenizer", "backbone")),
            found.configs["backbone"]["token_bits"],
        )
        for _, found in published(family_of(backbone).name)
    ]
    bits, named = backbone.config.token_bits, [one for one, other, _ in known if other == files[1]]
    right = (named or [one for one, _, theirs in known if theirs == bits] or [""])[0]
    hint = f"; give {right}" if right else "; give the tokenizer that it was trained with"
    if bits not in (tokenizer.channels, 4 * tokenizer.channels):
        raise ValueError(
            f"{sources[1]} draws tokens of {bits} bits, {sources[0]} has cells of {tokenizer.channels} bits{hint}"
        )
    if named and files[0] in ALIKE.get(right, ()):
        raise ValueError(f"{sources[1]} was not trained with {sources[0]}, although the sizes are equal{hint}")


def _a(name: str) -> str:
    return f"an {name}" if name.startswith("A") else f"a {name}"


def _require_equal(expected: int, found: int, what: str, sources: tuple[str, str]) -> None:
    if expected != found:
        raise ValueError(
            f"{sources[1]} expects {expected} {what}, {sources[0]} has {found}; give the tokenizer of this backbone"
        )
