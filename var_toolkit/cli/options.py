"""Options that several commands share, and the checks of their values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from var_toolkit.registry import DEFAULT, find_entry
from var_toolkit.setting_table import SETTINGS, TRAINED, FewerSettings, SearchSettings, Setting, SpeculationSettings

if TYPE_CHECKING:
    from var_toolkit.loading import Drafting, Pair

DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = (*DTYPES, "int8", "float8", "auto")


def at_least(low: int) -> Callable[[str], int]:
    """The type of an option that takes an integer of at least `low`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text, re.ASCII) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least {low}")
        return int(text)

    return parse


def numbers(*counts: int) -> Callable[[str], tuple[int, ...]]:
    """The type of an option that takes whole numbers from 0 with commas between them, as many as one of `counts`."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if len(parts) not in counts or not all(re.fullmatch(r"\s*\d+\s*", part, re.ASCII) for part in parts):
            many = " or ".join(map(str, counts))
            raise argparse.ArgumentTypeError(f"{text!r} must be {many} whole numbers, with commas between them")
        return tuple(int(part) for part in parts)

    return parse


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Prefix the ValueErrors about a file with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype."""
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, mps"
    )
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        default="float32",
        help="precision of the networks (default float32); int8, float8 (CUDA): products in 8 bits; auto: the fastest",
    )


def add_model_option(parser: argparse.ArgumentParser, default: str | None = DEFAULT) -> None:
    """--model."""
    parser.add_argument(
        "--model",
        default=default,
        help="a name from `vargen models`, a model directory, or a hub id user/name, with or without @revision",
    )


def add_adapter_option(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """--adapter."""
    parser.add_argument(
        "--adapter",
        type=adapter,
        action="append",
        required=required,
        default=None if required else [],
        metavar="DIR[:WEIGHT]",
        help="LoRA or DoRA in peft's format, such as the final/ of a run with an adapter; several add up",
    )


def adapter(text: str) -> tuple[str, float]:
    """An adapter and its weight, which is 1 if none is given."""
    folder, _, weight = text.rpartition(":")
    if not folder or Path(text).is_dir():
        return text, 1.0
    try:
        return folder, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: {weight!r} is no number; write DIR or DIR:WEIGHT") from None


def model_of(args: argparse.Namespace) -> str | Pair | Drafting:
    """What `load` and `skeleton` open: a model, a model and its draft model, or a drafter and a refiner (CoDe)."""
    given = (args.drafter, args.refiner, args.draft_scales)
    if args.draft_model is not None and args.speculate not in TRAINED:
        raise ValueError(f"--draft-model is for --speculate {', '.join(TRAINED)}; give one of them")
    if all(value is None for value in given):
        known = find_entry(args.model) if args.exit_layers is None else None
        draft_model = args.draft_model or (known.draft_models.get(args.speculate) if known is not None else None)
        if draft_model is None:
            return str(args.model)
        from var_toolkit.loading import Drafting

        return Drafting(args.model, draft_model)
    if args.draft_model is not None:
        raise ValueError("--draft-model (speculative decoding) cannot be combined with --drafter and --refiner (CoDe)")
    if args.model != DEFAULT:
        raise ValueError(f"--model {args.model} cannot be combined with --drafter and --refiner; give one or the other")
    if any(value is None for value in given):
        raise ValueError("--drafter, --refiner and --draft-scales go together; give all three, or --model")
    from var_toolkit.loading import Pair

    return Pair(*given)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """The settings of `setting_table`, which default to those of the model, and the networks that some of them need."""
    fewer = parser.add_argument_group("fewer tokens and keys")
    speculation = parser.add_argument_group("speculative decoding")
    groups = dict.fromkeys(FewerSettings.__annotations__, fewer)
    groups |= dict.fromkeys(SearchSettings.__annotations__, parser.add_argument_group("search at test time"))
    # The three that matter, and those of single proposers and rules.
    groups |= dict.fromkeys(
        SpeculationSettings.__annotations__, parser.add_argument_group("speculative decoding: details")
    )
    groups |= dict.fromkeys(("speculate", "accept", "draft_length"), speculation)
    for name, setting in SETTINGS.items():
        if name == "subnet":
            parser.add_argument(
                "--tokenizer",
                metavar="MODEL",
                help="replace the model's own by an AutoencoderKL: a directory or a hub id",
            )
        if name == "accept":
            groups["draft_tree"].add_argument(
                "--draft-model", metavar="MODEL", help="the smaller model or the trained head: a name or a directory"
            )
        if name not in ("method", "method_options"):
            _add_setting(groups.get(name, parser), name, setting)
    parser.add_argument("--drafter", metavar="MODEL", help="CoDe, instead of --model: draws the first scales")
    parser.add_argument("--refiner", metavar="MODEL", help="CoDe: draws the other scales")
    parser.add_argument(
        "--draft-scales", type=at_least(1), metavar="N", help="CoDe: number of scales that the drafter draws"
    )
    parser.add_argument("--method", nargs="+", metavar=("NAME", "OPTION=VALUE"), help=SETTINGS["method"].help)


def _add_setting(group: argparse._ActionsContainer, name: str, setting: Setting) -> None:
    """The option of a setting; its type says how the text of a value is read."""
    if setting.types == (bool,):
        how: dict[str, Any] = {"action": "store_true", "default": None}  # not False, if it is not given
    else:
        values = 2 if isinstance(setting.metavar, tuple) else None
        how = {"type": _reader(setting), "metavar": setting.metavar, "nargs": values}
    group.add_argument(setting.option, dest=name, help=setting.help, **how)


def _reader(setting: Setting) -> Callable[[str], Any]:
    kind, low = setting.types[0], int(setting.range.low) if setting.range else 1
    whole = at_least(low)
    if kind is int:
        return (lambda text: text if text == "auto" else whole(text)) if str in setting.types else whole
    by_type: dict[Any, Callable[[str], Any]] = {
        str: str,
        float: float,
        tuple[float, float]: float,
        tuple[int, int]: _size,
        tuple[int, ...]: lambda text: tuple(map(whole, text.split(","))),
        tuple[float, ...]: lambda text: tuple(map(float, text.split(","))),
        tuple[int | None, int | None]: _span,
    }
    return by_type[kind]


def _span(text: str) -> tuple[int | None, int | None]:
    """The two ends of a range of scales; one that is left out is that of the schedule."""
    found = re.fullmatch(r"(\d*):(\d*)", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be two scales with a colon between them, such as 0:9 or :9")
    first, last = (int(end) if end else None for end in found.groups())
    return first, last


def _size(text: str) -> tuple[int, int]:
    """Width and height in pixels."""
    found = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
    if found is None or not all(map(int, found.groups())):
        raise argparse.ArgumentTypeError(f"{text!r} must be width x height in pixels, such as 256x128")
    return int(found[1]), int(found[2])


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those options as keywords of `Pipeline.plan` and of the pipeline itself."""
    found = {name: getattr(args, name) for name in SETTINGS if name not in ("method", "method_options")}
    found["guidance_interval"] = args.guidance_interval and tuple(args.guidance_interval)
    name, *options = args.method or [None]
    return {**found, "method": name, "method_options": _method_options(options) if name else None}


def _method_options(texts: Sequence[str]) -> dict[str, Any]:
    """The options after the name of a method, `option=value`, with values in YAML."""
    import yaml

    read: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--method: {text!r} must be written option=value, such as from_scale=2")
        if name in read:
            raise ValueError(f"--method: {name} is given twice; give it once")
        try:
            read[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--method: {text!r}: the value is not YAML; put it in quotes") from None
    return read
