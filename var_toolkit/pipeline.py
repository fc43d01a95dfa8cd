"""What a Python user holds: load it, call it, save it.

pipe = var_toolkit.load("stilllife-var")
pipe(class_labels=[207, "red sphere on sand"], seeds=[0, 1]).images[0]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import Tensor

from var_toolkit import strict_fields
from var_toolkit.backbones.linear import pack_linears
from var_toolkit.pictures import as_output, picture_tensor
from var_toolkit.sampling.collaborative import code
from var_toolkit.sampling.engine import ScaleEvent, decode
from var_toolkit.sampling.noise import Noise
from var_toolkit.sampling.plan import Plan, Stage
from var_toolkit.sampling.variant import variant
from var_toolkit.zoo import registry
from var_toolkit.zoo.class_names import ClassNames, class_names
from var_toolkit.zoo.directory import (
    build,
    load_network,
    network_class,
    read_json,
    write_json,
    write_network,
    written_whole,
)
from var_toolkit.zoo.registry import CONFIG, Embedded, Entry, Hub, Sampling

if TYPE_CHECKING:
    from PIL.Image import Image

    from var_toolkit.backbones.var import VAR
    from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ

INDEX = "model_index.json"
EXPECTED = {"tokenizer": "MultiScaleVQ", "backbone": "VAR", "refiner": "VAR"}
PARTS = ("tokenizer", "backbone")  # which every model has
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class PipelineOutput:
    """Pictures, and what they were drawn from and with."""

    images: Any  # list of PIL pictures; or float in [0, 1]: numpy (B, h, w, 3), torch (B, 3, h, w); or latents
    class_labels: list[int]
    seeds: list[int]
    tokens: list[Tensor]  # K maps (B, n_k), int64, on the CPU
    latents: Tensor  # (B, C, h, w), float32, on the CPU
    forward_passes: int
    cache_bytes: int  # keys and values of the largest batch


@dataclass(frozen=True)
class Pair:
    """Two models by name that draw one picture together (CoDe): a source that `load` and `skeleton` take."""

    drafter: str
    refiner: str
    draft_scales: int

    def __str__(self) -> str:
        return f"{self.drafter} + {self.refiner} from scale {self.draft_scales} on"


class Pipeline:
    """A tokenizer and a backbone that draw pictures of classes.

    `sampling` holds the default settings; `data_set` says whose class names the labels have. With a `refiner`, itself
    a pipeline on the same tokenizer, the backbone draws the first `draft_scales` scales and the refiner's the others.
    """

    def __init__(
        self,
        tokenizer: MultiScaleVQ,
        backbone: VAR,
        sampling: Sampling | None = None,
        data_set: str | None = None,
        *,
        refiner: Pipeline | None = None,
        draft_scales: int = 0,
    ) -> None:
        self.tokenizer, self.backbone = tokenizer, backbone
        self.sampling = sampling or Sampling()
        self.data_set = data_set
        self.refiner, self.draft_scales = refiner, draft_scales

    @property
    def class_names(self) -> ClassNames:
        """The names of the classes."""
        return class_names(self.data_set, self.backbone.config.num_classes)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.backbone.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return self.backbone.head.weight.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Move the networks, in place. The quantiser stays in float32 whatever the dtype."""
        for backbone in self.backbones:
            backbone.to(device=device, dtype=dtype)
        self.tokenizer.place(device, dtype)
        return self

    def pack(self) -> Pipeline:
        """On the CPU, lay the weights of the backbone out for speed, in place: worth it before drawing much.

        `to`, saving and copying undo it; training a packed backbone begins with `backbone.train()`.
        """
        for backbone in self.backbones:
            pack_linears(backbone)
        return self

    @property
    def backbones(self) -> list[VAR]:
        """The backbone, and the refiner's if there is one."""
        return [self.backbone, *(self.refiner.backbones if self.refiner else [])]

    def plan(
        self,
        *,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | tuple[float, ...] | None = None,
        smooth: bool = False,
        subnet: int | None = None,
        full_scales: int | None = None,
    ) -> Plan:
        """The decoding plan for some settings; those that are not given are the model's defaults.

        `temperature` is one for all scales, or one a scale.
        `subnet` layers draw the scales from `full_scales` on (VARiant); the two go together.
        """
        settings = {"guidance_scale": guidance_scale, "top_k": top_k, "top_p": top_p, "temperature": temperature}
        given = {name: value for name, value in settings.items() if value is not None}
        plan = self._default_depth({**given, "smooth": smooth})
        if subnet is None and full_scales is None:
            return plan
        defaults = self.sampling
        return _variant(
            plan,
            defaults.subnet if subnet is None else subnet,
            defaults.full_scales if full_scales is None else full_scales,
        )

    def _default_depth(self, given: dict[str, Any]) -> Plan:
        """The plan with as many layers as the model has by default."""
        plan, defaults = self._full_depth({**asdict(self.sampling), **given}), self.sampling
        if defaults.subnet is not None or defaults.full_scales is not None:
            plan = _variant(plan, defaults.subnet, defaults.full_scales)
        if self.refiner is None:
            return plan
        return code(plan, self.refiner._default_depth(given), draft_scales=self.draft_scales)

    def _full_depth(self, chosen: dict[str, Any]) -> Plan:
        """The plan of this backbone alone: a stage for each run of scales of one temperature."""
        temperature, count = chosen["temperature"], len(self.backbone.scales)
        by_scale = (temperature,) * count if isinstance(temperature, int | float) else tuple(temperature)
        if len(by_scale) != count:
            raise ValueError(f"there are {len(by_scale)} temperatures for {count} scales; give one, or one a scale")
        stages = []
        for value, run in groupby(range(count), key=lambda k: by_scale[k]):
            first, *rest = run
            scales = range(first, first + len(rest) + 1)
            shared = {name: chosen[name] for name in ("top_k", "top_p", "smooth")}
            stages.append(Stage(self.backbone, scales, chosen["guidance_scale"], temperature=value, **shared))
        return Plan(self.tokenizer, tuple(stages))

    def __call__(
        self,
        class_labels: SupportsIndex | str | Iterable[SupportsIndex | str],
        *,
        seeds: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        guidance_scale: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | tuple[float, ...] | None = None,
        smooth: bool = False,
        subnet: int | None = None,
        full_scales: int | None = None,
        plan: Plan | None = None,
        batch_size: int = 8,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_scale_end: Callable[[ScaleEvent], None] | None = None,
    ) -> PipelineOutput | tuple[Any]:
        """Draw one picture a label.

        Labels are numbers, names or synsets. Each picture is drawn from its own seed (63 bits) and does not depend on
        the batch; without `seeds` they come from `generator` (one for all, or one a picture), or from torch's global
        one. A `plan` made elsewhere takes the place of the settings. The callback sees every scale of every batch.
        Without `return_dict` the pictures come alone, in a tuple.
        ValueError names what is wrong before anything is drawn.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; it must be one of {', '.join(OUTPUT_TYPES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
        wanted: list[Any] = [class_labels] if _is_one(class_labels) else list(class_labels)  # type: ignore[arg-type]
        if not wanted:
            raise ValueError("class_labels is empty; give at least one class")
        labels = [self.class_names.resolve(label) for label in wanted]
        chosen = _seeds(seeds, len(labels), generator)
        settings: dict[str, Any] = {
            "guidance_scale": guidance_scale,
            "top_k": top_k,
            "top_p": top_p,
            "temperature": temperature,
            "smooth": smooth,
            "subnet": subnet,
            "full_scales": full_scales,
        }
        if plan is not None and any(value is not None and value is not False for value in settings.values()):
            raise ValueError("give a plan or settings, not both: a plan holds its own settings")
        plan = plan or self.plan(**settings)
        runs, pictures = [], []
        for at in range(0, len(labels), batch_size):
            noise = Noise(chosen[at : at + batch_size], self.device)
            labels_B = torch.tensor(labels[at : at + batch_size], device=self.device)
            runs.append(decode(plan, labels_B, noise, on_scale=callback_on_scale_end))
            if output_type != "latent":
                pictures.append(self.tokenizer.decode(runs[-1].latent).cpu())
        latents = torch.cat([run.latent.cpu() for run in runs])
        images = as_output(torch.cat(pictures), output_type) if pictures else latents
        if not return_dict:
            return (images,)
        return PipelineOutput(
            images=images,
            class_labels=labels,
            seeds=chosen,
            tokens=[torch.cat(maps).cpu() for maps in zip(*(run.tokens for run in runs), strict=True)],
            latents=latents,
            forward_passes=sum(run.forward_passes for run in runs),
            cache_bytes=max(run.cache_bytes for run in runs),
        )

    def reconstruct(self, image: Image | Tensor) -> Image:
        """What the tokenizer keeps of a picture: a PIL picture of any size (cut square), or (3, h, w) in [0, 1]."""
        side = self.tokenizer.picture_side
        picture = image if isinstance(image, Tensor) else picture_tensor(image, side)
        drawn = self.tokenizer.reconstruct(picture.unsqueeze(0).to(self.device) * 2 - 1)
        return as_output(drawn.cpu(), "pil")[0]

    def save_pretrained(self, directory: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write a model directory in the diffusers layout, whole or not at all."""
        with written_whole(Path(directory)) as folder:
            index: dict[str, Any] = {"_class_name": "Pipeline"}
            for part, network in self._parts().items():
                (folder / part).mkdir()
                write_network(network, folder / part, dtype)
                index[part] = ["var_toolkit", type(network).__name__]
            index |= {"_sampling": asdict(self.sampling), "_class_names": self.data_set}
            if self.refiner is not None:
                index |= {"_refiner_sampling": asdict(self.refiner.sampling), "_draft_scales": self.draft_scales}
            write_json(folder / INDEX, index)

    def _parts(self) -> dict[str, torch.nn.Module]:
        refiner = {} if self.refiner is None else {"refiner": self.refiner.backbone}
        return {"tokenizer": self.tokenizer, "backbone": self.backbone, **refiner}

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str = "auto", dtype: torch.dtype = torch.float32
    ) -> Pipeline:
        """The same as `load`."""
        return load(source, device=device, dtype=dtype)


def _variant(plan: Plan, subnet: int | None, full_scales: int | None) -> Plan:
    if subnet is None or full_scales is None:
        raise ValueError("subnet and full_scales go together: how many layers, and how many scales have all of them")
    return variant(plan, subnet=subnet, full_scales=full_scales)


def pair(drafter: Pipeline, refiner: Pipeline, draft_scales: int) -> Pipeline:
    """Two models as one that draws with both (CoDe). ValueError if their tokenizers or classes are not the same."""
    if drafter.refiner or refiner.refiner:
        raise ValueError("one of the two is itself a pair; combine plans of more than two models by `code` in Python")
    code(drafter, refiner, draft_scales=draft_scales)  # which refuses what does not fit
    shared = Pipeline(drafter.tokenizer, refiner.backbone, refiner.sampling, refiner.data_set)
    ours = (drafter.tokenizer, drafter.backbone, drafter.sampling, drafter.data_set)
    return Pipeline(*ours, refiner=shared, draft_scales=draft_scales)


def load(source: str | Path | Pair, *, device: str = "auto", dtype: torch.dtype = torch.float32) -> Pipeline:
    """A pipeline from a zoo name, a model directory, a hub id, or a pair of these.

    An existing directory wins over a name. `device` "auto" takes CUDA where there is one, else the CPU.
    """
    where = find_device(device)
    if isinstance(source, Pair):
        pipe = pair(load(source.drafter, device="cpu"), load(source.refiner, device="cpu"), source.draft_scales)
    elif Path(source).is_dir():
        pipe = _from_directory(Path(source))
    elif str(source) in registry.ENTRIES:
        pipe = _from_entry(registry.entry(str(source)))
    elif _is_hub_id(str(source)):
        pipe = _from_directory(_snapshot(str(source)))
    else:
        pipe = _from_entry(registry.entry(str(source)))  # which says what is known
    return pipe.to(where, dtype)


def skeleton(source: str | Path | Pair) -> Pipeline:
    """A pipeline of the right sizes without weights, for plans and costs: nothing is read but configurations."""
    if isinstance(source, Pair):
        return pair(skeleton(source.drafter), skeleton(source.refiner), source.draft_scales)
    if Path(source).is_dir():
        return _from_directory(Path(source), weights=False)
    if _is_hub_id(str(source)):
        return _from_directory(_snapshot(str(source), weights=False), weights=False)
    found = registry.entry(str(source))
    if isinstance(found.source, Embedded):
        networks = {part: _part(folder, weights=False) for part, folder in found.source.parts().items()}
        return _assemble(networks, found)
    networks = {
        part: build(network_class(EXPECTED[part], Path(".")), config, found.name)
        for part, config in found.source.configs.items()
    }
    return _assemble(networks, found)


def load_tokenizer(source: str | Path, *, device: str = "auto", dtype: torch.dtype = torch.float32) -> MultiScaleVQ:
    """A tokenizer alone: of anything that `load` takes, of a name like "stilllife-tokenizer", or of its own folder."""
    entry = registry.ENTRIES.get(str(source))
    if (Path(source) / CONFIG).is_file():
        tokenizer = load_network(source)
    elif entry is not None and isinstance(entry.source, Embedded) and entry.source.tokenizer:
        tokenizer = load_network(Embedded.folder(entry.source.tokenizer))
    else:
        return load(source, device=device, dtype=dtype).tokenizer
    if type(tokenizer).__name__ != EXPECTED["tokenizer"]:
        raise ValueError(f"{source} holds a {type(tokenizer).__name__}, no tokenizer")
    return tokenizer.place(find_device(device), dtype)  # type: ignore[operator]


def find_device(name: str) -> torch.device:
    """The device that a name means; ValueError if this machine has none of that kind."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    usable = ", ".join(["auto", *(kind for kind, there in available.items() if there)])
    complaint = f"device {name!r} is not available here; usable are {usable}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(complaint) from None
    if not available.get(device.type, False):
        raise ValueError(complaint)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not available here; there are {torch.cuda.device_count()} GPUs, from cuda:0"
        )
    return device


def _is_one(labels: object) -> bool:
    """Whether this is one label rather than several; arrays of any length offer themselves as an index."""
    return isinstance(labels, str) or (isinstance(labels, SupportsIndex) and getattr(labels, "ndim", 0) == 0)


def _seeds(
    given: int | Sequence[int] | None, count: int, generator: torch.Generator | Sequence[torch.Generator] | None
) -> list[int]:
    if given is None and not isinstance(generator, Sequence):
        device = generator.device if generator is not None else "cpu"
        return torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()
    if given is None:
        given = [_seeds(None, 1, one)[0] for one in generator]  # type: ignore[union-attr]
    seeds = [given] if isinstance(given, int) else [int(seed) for seed in given]
    if len(seeds) != count:
        raise ValueError(f"there are {len(seeds)} seeds for {count} class labels; give one seed a picture")
    return seeds


def _part(folder: Path, weights: bool = True) -> torch.nn.Module:
    if weights:
        return load_network(folder)
    facts = read_json(folder / CONFIG)
    settings = {name: value for name, value in facts.items() if not name.startswith("_")}
    return build(network_class(facts.get("_class_name"), folder), settings, str(folder / CONFIG))


def _from_directory(folder: Path, weights: bool = True) -> Pipeline:
    index = read_json(folder / INDEX)
    for part in PARTS:
        if part not in index or not (folder / part).is_dir():
            raise ValueError(f"{folder} lacks the part {part!r}; a model directory has {INDEX}, {' and '.join(PARTS)}")
    parts = [*PARTS, *(["refiner"] if "refiner" in index else [])]
    networks = {part: _part(folder / part, weights) for part in parts}
    for part, network in networks.items():
        if type(network).__name__ != EXPECTED[part]:
            raise ValueError(f"{folder / part} holds a {type(network).__name__}; it must hold a {EXPECTED[part]}")
    names = index.get("_class_names")
    samplings = {
        key: strict_fields.build(Sampling, index.get(key, {}), where=f"{folder / INDEX}: {key}")
        for key in ("_sampling", "_refiner_sampling")
    }
    draft_scales = strict_fields.convert(int, index.get("_draft_scales", 0), where=f"{folder / INDEX}: _draft_scales")
    return _together(networks, list(samplings.values()), names, draft_scales)


def _together(
    networks: Mapping[str, Any], samplings: Sequence[Sampling], names: str | None, draft_scales: int
) -> Pipeline:
    """The parts of a model as a pipeline; the second sampling is the refiner's."""
    drafter = Pipeline(networks["tokenizer"], networks["backbone"], samplings[0], names)
    if "refiner" not in networks:
        return drafter
    return pair(drafter, Pipeline(networks["tokenizer"], networks["refiner"], samplings[1], names), draft_scales)


def _from_entry(found: Entry) -> Pipeline:
    if isinstance(found.source, Embedded):
        return _assemble({part: _part(folder) for part, folder in found.source.parts().items()}, found)
    return _assemble(_downloaded(found.source), found)


def _downloaded(source: Hub) -> dict[str, torch.nn.Module]:
    from var_toolkit.zoo.hub import download
    from var_toolkit.zoo.published_var import networks_from_tensors
    from var_toolkit.zoo.weight_files import read_weights

    tensors = {part: read_weights(download(*file)) for part, file in source.files.items()}
    networks: dict[str, torch.nn.Module] = {}
    for part in source.configs.keys() - {"tokenizer"}:
        sources = (source.files["tokenizer"][1], source.files[part][1])
        vq, networks[part] = networks_from_tensors(
            tensors["tokenizer"], tensors[part], {"backbone": dict(source.configs[part])}, sources
        )
        networks.setdefault("tokenizer", vq)
    return networks


def _assemble(networks: Mapping[str, Any], found: Entry) -> Pipeline:
    if not found.draws:
        drawing = [name for name, other in registry.ENTRIES.items() if other.draws]
        raise ValueError(
            f"model {found.name!r} draws no pictures ({found.summary}); those that do: {', '.join(drawing)}"
        )
    return _together(networks, [found.sampling] * 2, found.class_names, found.draft_scales)


def _is_hub_id(source: str) -> bool:
    """Whether a source that is no directory reads user/name; below a folder that is there it is a mistyped path."""
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name and owner[0] not in ".~" and not Path(owner).is_dir()


def _snapshot(repository: str, weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", *(["*.safetensors"] if weights else [])]))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ValueError(
            f"{repository} is not in the cache and the hub cannot be reached; connect once to download it"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{repository} cannot be downloaded: {str(error).splitlines()[0]}") from None
