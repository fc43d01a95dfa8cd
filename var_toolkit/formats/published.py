"""Published files become our networks. Adding a family of backbones is adding an entry at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from var_toolkit.core.schedule import SCHEDULES, Scales
from var_toolkit.formats import flowar_files, kl16, llamagen_files, var_files
from var_toolkit.formats.directory import build, fill
from var_toolkit.formats.state_dicts import Arguments, Tensors, Told, require, sizes_of
from var_toolkit.models.flowar import FlowAR, FlowARConfig
from var_toolkit.models.hmar import HMAR, HMARConfig
from var_toolkit.models.llamagen import RasterGPT, RasterGPTConfig
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.registry import Sampling, flowar_sampling, hmar_sampling, llamagen_sampling
from var_toolkit.strict_fields import convert


@dataclass(frozen=True)
class TokenizerFiles:
    """How the files of one kind of tokenizer are read, and how the network is built without them."""

    read: Callable[[Tensors, Mapping[str, Any], tuple[int, ...], str], nn.Module]
    empty: Callable[[Mapping[str, Any], str], nn.Module]
    required: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """How the files of one kind of backbone are read, and its default sampling settings."""

    network: type[nn.Module]
    config: type
    tokenizer: TokenizerFiles
    required: tuple[str, ...]
    dropped: tuple[str, ...]  # endings of the names of tensors that can be computed
    arguments: Arguments
    sizes: Callable[[Tensors], dict[str, Any]]
    completed: Callable[[dict[str, Any], Tensors, str], dict[str, Any]]
    sampling: Callable[[Any], Sampling]


def required(family: str, part: str) -> tuple[str, ...]:
    """Names of tensors that identify the files of a part."""
    kind = FAMILIES[family]
    return kind.tokenizer.required if part == "tokenizer" else kind.required


def backbone_from_tensors(family: str, tensors: Tensors, given: Mapping[str, Any], source: str) -> Any:
    """The transformer of a published state dict. `given` are arguments that the tensors do not determine."""
    kind = FAMILIES[family]
    told = Told.read(given, kind.config, kind.arguments, "the configuration of the backbone")
    require(tensors, kind.required, source)
    settings = kind.completed(told.merged(sizes_of(kind.sizes, tensors, source)), tensors, source)
    network = build(kind.network, settings, source)
    fill(network, {k: v for k, v in tensors.items() if not k.endswith(kind.dropped)}, source)
    return network.float().eval()


def networks_from_tensors(
    family: str, tensors: Mapping[str, Tensors], config: Mapping[str, Any], sources: Mapping[str, str]
) -> dict[str, Any]:
    """The networks of a published model by part, of those parts whose tensors are given."""
    networks = {
        part: backbone_from_tensors(family, found, config.get(part, {}), sources[part])
        for part, found in tensors.items()
        if part != "tokenizer"
    }
    if "tokenizer" in tensors:
        told = config.get("tokenizer", {})
        schedule = next(iter(networks.values())).scales.patch_nums if networks else _schedule(told)
        networks["tokenizer"] = FAMILIES[family].tokenizer.read(
            tensors["tokenizer"], told, schedule, sources["tokenizer"]
        )
    return networks


def _schedule(told: Mapping[str, Any]) -> tuple[int, ...]:
    """The token maps of a tokenizer without a backbone: those in its configuration, else those of 256 px."""
    where = "the configuration of the tokenizer"
    for name in ("patch_nums", "v_patch_nums"):
        if name in told:
            return Scales(convert(tuple[int, ...], told[name], where=f"{where}: {name}")).patch_nums
    return (convert(int, told["side"], where=f"{where}: side"),) if "side" in told else SCHEDULES["256"]


MULTI_SCALE_VQ = TokenizerFiles(
    var_files.tokenizer_from_tensors, var_files.empty_tokenizer, var_files.TOKENIZER_REQUIRED
)
KL16 = TokenizerFiles(kl16.autoencoder_from_tensors, kl16.empty_autoencoder, kl16.REQUIRED)
RASTER_VQ = TokenizerFiles(
    llamagen_files.tokenizer_from_tensors, llamagen_files.empty_tokenizer, llamagen_files.TOKENIZER_REQUIRED
)

FAMILIES = {
    "var": Family(
        network=VAR,
        config=VARConfig,
        tokenizer=MULTI_SCALE_VQ,
        required=(*var_files.REQUIRED, "head.weight"),
        dropped=var_files.DROPPED,
        arguments=var_files.ARGUMENTS,
        sizes=var_files.var_sizes,
        completed=var_files.completed,
        sampling=lambda config: Sampling(),
    ),
    "hmar": Family(
        network=HMAR,
        config=HMARConfig,
        tokenizer=MULTI_SCALE_VQ,
        required=(*var_files.REQUIRED, "ns_head.weight", "mask_embed.weight", "word_embed_bias"),
        dropped=var_files.DROPPED,
        arguments=var_files.ARGUMENTS,
        sizes=var_files.hmar_sizes,
        completed=var_files.completed,
        sampling=lambda config: hmar_sampling(config.depth),
    ),
    "flowar": Family(
        network=FlowAR,
        config=FlowARConfig,
        tokenizer=KL16,
        required=flowar_files.REQUIRED,
        dropped=flowar_files.DROPPED,
        arguments=flowar_files.ARGUMENTS,
        sizes=flowar_files.flowar_sizes,
        completed=flowar_files.completed,
        sampling=lambda config: flowar_sampling(config.embed_dim),
    ),
    "llamagen": Family(
        network=RasterGPT,
        config=RasterGPTConfig,
        tokenizer=RASTER_VQ,
        required=llamagen_files.REQUIRED,
        dropped=llamagen_files.DROPPED,
        arguments=llamagen_files.ARGUMENTS,
        sizes=llamagen_files.gpt_sizes,
        completed=llamagen_files.completed,
        sampling=lambda config: llamagen_sampling(config.embed_dim),
    ),
}
