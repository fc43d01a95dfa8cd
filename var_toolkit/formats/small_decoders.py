"""Small decoders by name, directory or hub id, for the tokenizer that they were distilled from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from var_toolkit import registry
from var_toolkit.formats.directory import empty_network, load_network
from var_toolkit.formats.hub import download, download_network, is_hub_id
from var_toolkit.registry import CONFIG, Embedded
from var_toolkit.tokenizers.small_decoder import SmallDecoder

SMALL = "small"  # whichever comes with the package for a tokenizer


def read_decoder(source: str | Path, tokenizer: Any, device: torch.device) -> SmallDecoder:
    """The small decoder of a source, which `Pipeline.load_decoder` explains; on the meta device without weights.

    ValueError in one line if there is none, or if it was made for another tokenizer.
    """
    weights = device.type != "meta"
    if str(source) == SMALL:
        return _of_package(tokenizer, weights)
    found = _read(_folder(str(source), weights), str(source), weights)
    found.require_tokenizer(tokenizer, str(source))
    return found


def _of_package(tokenizer: Any, weights: bool) -> SmallDecoder:
    """The first of the package that was made for a tokenizer."""
    for name in _names():
        found = _read(Embedded.folder(name), name, weights)
        try:
            found.require_tokenizer(tokenizer, name)
        except ValueError:
            continue
        return found
    raise ValueError(
        f"no small decoder for this tokenizer comes with the package, only {', '.join(_names())}; train one "
        "(objective: small-decoder) and give its final/"
    )


def _names() -> list[str]:
    return [name for name, one in registry.ENTRIES.items() if isinstance(one.source, Embedded) and one.source.decoder]


def _folder(source: str, weights: bool) -> Path:
    """Where a decoder lies. ValueError in one line if it is not known."""
    if (Path(source) / CONFIG).is_file():
        return Path(source)
    if source in _names():
        return Embedded.folder(source)
    if is_hub_id(source) and not Path(source).is_dir():
        return download_network(source, "") if weights else download(source, CONFIG).parent
    raise ValueError(
        f"decoder {source!r} is not known; use {SMALL}, {', '.join(_names())}, the final/ of a run of small-decoder, "
        "or a hub id user/name"
    )


def _read(folder: Path, source: str, weights: bool) -> SmallDecoder:
    found = load_network(folder) if weights else empty_network(folder)
    if not isinstance(found, SmallDecoder):
        raise ValueError(f"decoder {source} holds a {type(found).__name__}; it must hold a SmallDecoder")
    return found.requires_grad_(False)
