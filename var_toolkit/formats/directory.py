"""A network as a folder: `config.json` and `diffusion_pytorch_model.safetensors`, as diffusers lays it out.

Files are written under a temporary name beside the target, then renamed. What is read is checked before use and never
runs code.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from var_toolkit import registry, strict_fields
from var_toolkit.core.finite import require_fit
from var_toolkit.files import write_whole, written_whole
from var_toolkit.formats import diffusers_config
from var_toolkit.formats.eight_bits import unpacked
from var_toolkit.formats.json_files import read_json, write_json
from var_toolkit.formats.limits import check_parameters, network_config
from var_toolkit.formats.safetensors_files import read_folder, read_safetensors
from var_toolkit.models.layers.int8_conv import quantize_convolutions
from var_toolkit.models.layers.int8_layer import is_quantized
from var_toolkit.models.layers.int8_linear import quantize_linears
from var_toolkit.modules import imported
from var_toolkit.registry import CONFIG, SCALE, WEIGHTS

INDEX = "model_index.json"  # of a model directory, which holds a folder for each part
PARTS = ("tokenizer", "backbone")  # which every model has
TEXT_FOLDERS = ("text_encoder", "text_tokenizer")  # of models that take prompts
FOLDERS = (*PARTS, "refiner", *TEXT_FOLDERS)  # which a model may have
QUANTIZED = "_quantized"  # in `config.json`, says that what `Pipeline.quantize` changes is in int8
OF_DIFFUSERS = ("AutoencoderKL",)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all, with `facts` in its header.

    OSError if the disk is full or the folder is read-only.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": "pt", **(facts or {})}
    try:
        write_whole(path, lambda temporary: save_file(contiguous, temporary, metadata=header))
    except SafetensorError as error:  # not an OSError, although it reports one
        raise OSError(errno.ENOSPC, f"cannot be written: {error}", str(path)) from None


def write_network(network: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and the weights into an existing folder, floating-point tensors as `dtype` if given.

    ValueError if a number would become infinite in that dtype.
    """
    tensors = network.state_dict()
    require_fit(tensors, dtype, type(network).__name__)
    if dtype is not None:
        wide = {name for name, t in tensors.items() if t.is_floating_point() and not name.endswith(SCALE)}
        tensors = {name: t.to(dtype) if name in wide else t for name, t in tensors.items()}
    quantized = {QUANTIZED: "int8"} if is_quantized(network) else {}
    write_json(folder / CONFIG, {"_class_name": type(network).__name__, **quantized, **_settings(network)})
    write_tensors(folder / WEIGHTS, tensors)


def _settings(network: nn.Module) -> dict[str, Any]:
    config: Any = network.config
    if is_dataclass(config):
        return asdict(config)  # type: ignore[arg-type]
    return _public(config)  # of diffusers


def _public(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a `config.json`, without its private entries such as `_class_name`."""
    return {name: value for name, value in facts.items() if not name.startswith("_")}


def save_network(network: nn.Module, directory: Path | str, dtype: torch.dtype | None = None) -> None:
    """Save a network to a new directory, whole or not at all."""
    with written_whole(Path(directory)) as folder:
        write_network(network, folder, dtype)


def load_network(directory: Path | str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a network saved by `save_network`, in evaluation mode. ValueError in one line if anything is wrong."""
    folder = Path(directory)
    facts = read_json(folder / CONFIG)
    cls = network_class(facts.get("_class_name"), folder)
    if not is_ours(cls) and QUANTIZED not in facts:
        diffusers_config.check(cls, facts, folder / CONFIG)
        return pretrained(cls, folder, dtype)
    network = _skeleton(cls, facts, folder)
    tensors, source = read_folder(folder, read_safetensors)
    fill(network, tensors if is_quantized(network) else unpacked(tensors, str(source)), source=str(source))
    return network.to(dtype).eval()


def empty_network(folder: Path) -> nn.Module:
    """The network that a folder describes, on the meta device."""
    facts = read_json(folder / CONFIG)
    return _skeleton(network_class(facts.get("_class_name"), folder), facts, folder)


def _skeleton(cls: type[nn.Module], facts: Mapping[str, Any], folder: Path) -> nn.Module:
    """A network on the meta device, from a complete configuration."""
    source = str(folder / CONFIG)
    network = build(cls, _public(facts) if is_ours(cls) else facts, source=source, complete=True)
    if QUANTIZED in facts:
        if facts[QUANTIZED] != "int8":
            raise ValueError(f"{source}: {QUANTIZED} is {strict_fields.shown(facts[QUANTIZED])}; it can be int8 only")
        quantize = quantize_convolutions if cls.__name__ in registry.networks("tokenizer") else quantize_linears
        quantize(network)
    return network


def network_class(name: object, folder: Path) -> type[nn.Module]:
    """The class that a `config.json` names."""
    home = registry.home_of(name) if isinstance(name, str) else None
    if home is None:
        known = ", ".join(name for home in registry.HOMES.values() for name in home.networks)
        raise ValueError(
            f"{folder / CONFIG}: _class_name is {strict_fields.shown(name)}; known are {known}; name a family of your "
            "own by --family"
        )
    return _class(str(name), home.module)


def _class(name: str, module: str) -> type[nn.Module]:
    with diffusers_config.quiet_import():
        home = imported("diffusers" if name in OF_DIFFUSERS else module, f"network {name!r}")
        if not hasattr(home, name):
            raise ValueError(f"network {name!r} is in NETWORKS of {module}, which does not define it")
        found: type[nn.Module] = getattr(home, name)
    return found


def expected(folder: str) -> list[str]:
    """The classes of networks that a folder of a model may hold."""
    return registry.networks(folder if folder in ("tokenizer", "text_encoder") else "backbone")


def build(cls: type[nn.Module], settings: Mapping[str, Any], source: str, *, complete: bool = False) -> nn.Module:
    """A network on the meta device; unknown or impossible settings are refused by name.

    With `complete`, missing settings are refused as well.
    """
    if not is_ours(cls):
        diffusers_config.check(cls, settings, Path(source))
        return _built(lambda: cls.from_config(dict(settings)), cls.__name__, source)  # type: ignore[attr-defined]
    kind = get_type_hints(cls.__init__)["config"]
    config = network_config(kind, settings, where=source, complete=complete)
    return _built(lambda: cls(config), cls.__name__, source)


def require_buildable(config: Any, *, where: str) -> None:
    """ValueError in one line for the configuration of a network that is impossible or too large."""
    name = type(config).__name__.removesuffix("Config")
    if hasattr(config, "build"):  # of an autoencoder, which diffusers builds
        _built(config.build, name, where)
    elif (home := registry.home_of(name)) is not None:
        _built(lambda: _class(name, home.module)(config), name, where)


def _built(make: Callable[[], nn.Module], name: str, source: str) -> nn.Module:
    """What `make` returns on the meta device."""
    try:
        with torch.device("meta"), diffusers_config.quiet():
            network = make()
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"{source} cannot be built as {name}: {' '.join(str(error).split())}") from None
    check_parameters(network, where=source)
    return network


def is_ours(cls: type[nn.Module]) -> bool:
    """Whether a class is built from one of our configurations, rather than by diffusers."""
    return "config" in get_type_hints(cls.__init__)


def pretrained(
    cls: Any,
    source: Path | str,
    dtype: torch.dtype = torch.float32,
    subfolder: str = "",
    revision: str | None = None,
    offline: bool = False,
) -> nn.Module:
    """A diffusers network from a directory or hub id, in evaluation mode. ValueError in one line if anything is wrong.

    `offline` reads from the cache only. diffusers does the loading because it also knows its older layouts; what it
    only warns of is an error here.
    """
    options = {"torch_dtype": dtype, "output_loading_info": True, "low_cpu_mem_usage": False}
    try:
        with diffusers_config.quiet():
            network, found = cls.from_pretrained(
                source, subfolder=subfolder, revision=revision, local_files_only=offline, **options
            )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        why = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise ValueError(f"{source} cannot be read as {cls.__name__}: {why}") from None
    odd = [*found["missing_keys"], *found["unexpected_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if odd:
        raise ValueError(
            f"{source} has missing or unexpected weights, such as {odd[0]!r}; it is damaged or of another kind"
        )
    for name, tensor in network.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{source}: {name} holds values that are not finite; the file is damaged")
    return network.eval()


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Assign weights to a network from `build`; ValueError if any are missing, misshapen or not finite."""
    expected = network.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        what = f"lacks {missing[0]!r}" if missing else f"has the unexpected tensor {surplus[0]!r}"
        raise ValueError(
            f"{source} {what} ({len(missing)} missing, {len(surplus)} unexpected): not a file of this model"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            found, asked = tuple(tensor.shape), tuple(expected[name].shape)
            raise ValueError(f"{source}: {name} has shape {found}, its configuration asks for {asked}")
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{source}: {name} is {tensor.dtype}, the model has {expected[name].dtype} there")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{source}: {name} holds values that are not finite; the file is damaged")
    network.load_state_dict(dict(tensors), assign=True)
    network.to(memory_format=torch.channels_last)
