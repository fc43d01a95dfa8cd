"""Options that several commands share, and the checks of their values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from var_toolkit.loading import Drafting, Pair

DTYPES = ("float32", "bfloat16", "float16")


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
    """A file to be named in front of what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def add_image_options(parser: argparse.ArgumentParser, help: str) -> None:
    """The image that a command begins with, and the classes it is drawn towards."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help=help)
    parser.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        default=["none"],
        metavar="CLASS",
        help="as for `vargen sample`; without it the image is drawn on as it is",
    )


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype."""
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, mps"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what the networks compute in")


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """--model."""
    from var_toolkit.zoo.registry import DEFAULT

    parser.add_argument(
        "--model",
        default=DEFAULT,
        help="a name from `vargen models`, a model directory, or a hub id user/name, with or without @revision",
    )


def model_of(args: argparse.Namespace) -> str | Pair | Drafting:
    """What `load` and `skeleton` shall open: a model, a model and what drafts for it, or a drafter and a refiner."""
    given = (args.drafter, args.refiner, args.draft_scales)
    from var_toolkit.zoo.registry import DEFAULT, ENTRIES

    if args.draft_model is not None and args.speculate not in ("draft", "early-exit", "eagle"):
        raise ValueError("--draft-model is for --speculate draft, early-exit or eagle; give one of them")
    if all(value is None for value in given):
        known = ENTRIES[args.model].draft_models if args.model in ENTRIES and args.exit_layers is None else {}
        draft_model = args.draft_model or known.get(args.speculate)
        if draft_model is None:
            return str(args.model)
        from var_toolkit.loading import Drafting

        return Drafting(args.model, draft_model)
    if args.draft_model is not None:
        raise ValueError("--draft-model speculates, --drafter and --refiner share an image (CoDe); give one of them")
    if args.model != DEFAULT:
        raise ValueError(f"--model {args.model} and --drafter, --refiner are two ways to name what draws; give one")
    if any(value is None for value in given):
        raise ValueError("--drafter, --refiner and --draft-scales go together; give all three, or --model")
    from var_toolkit.loading import Pair

    return Pair(*given)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How images are drawn: the settings, which are the model's own unless given, and what shortens the work."""
    parser.add_argument(
        "--cfg",
        "--guidance-scale",
        dest="guidance_scale",
        type=float,
        metavar="SCALE",
        help="guidance at the last scale, as VAR counts it; 0 is off",
    )
    parser.add_argument("--top-k", type=int, help="keep the k likeliest tokens; 0 is off")
    parser.add_argument("--top-p", type=float, help="keep the likeliest tokens up to this mass; 0 is off")
    parser.add_argument("--temperature", type=float, help="above 1 varies more, below 1 less")
    parser.add_argument("--smooth", action="store_true", help="mix codes instead of drawing one: smoother images")
    parser.add_argument("--solver", metavar="NAME", help="of continuous tokens: published, euler, midpoint or heun")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="of the solver, for each scale")
    parser.add_argument(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="times between 0 (data) and 1 (noise) at which the solver is guided",
    )
    parser.add_argument(
        "--guided-tokens", type=at_least(0), metavar="N", help="of next-token models: how many, from the first"
    )
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="an AutoencoderKL instead of the model's own: a directory or a hub id"
    )
    parser.add_argument("--subnet", type=at_least(2), metavar="D", help="layers for the finer scales (VARiant)")
    parser.add_argument("--full-scales", type=at_least(1), metavar="N", help="scales that run through every layer")
    parser.add_argument(
        "--refine", metavar="LISTS", help='masked passes of each scale (HMAR): published, off, or "1;1,3;1,1,2,5;..."'
    )
    parser.add_argument("--refine-clean", action="store_true", help="hide masked tokens from visible ones, too")
    _add_speculation_options(parser)
    parser.add_argument("--drafter", metavar="MODEL", help="instead of --model: draws the first scales (CoDe)")
    parser.add_argument("--refiner", metavar="MODEL", help="draws the other scales")
    parser.add_argument("--draft-scales", type=at_least(1), metavar="N", help="how many scales the drafter draws")
    parser.add_argument(
        "--method", nargs="+", metavar=("NAME", "OPTION=VALUE"), help="one of your own: module:function, or installed"
    )


def _add_speculation_options(parser: argparse.ArgumentParser) -> None:
    """What drafts, which drafts stand, and how far drafts go."""
    group = parser.add_argument_group("speculative decoding")
    group.add_argument("--speculate", metavar="NAME", help="what drafts: jacobi, draft, early-exit, ngram or eagle")
    group.add_argument(
        "--draft-model", metavar="MODEL", help="a smaller model, or a trained head: a name or a directory"
    )
    group.add_argument(
        "--accept", metavar="RULE", help="which drafts stand: standard (default), kseq, lantern, grouped, decayed"
    )
    group.add_argument(
        "--draft-length", type=_length, metavar="N", help="tokens (VAR: scales) a pass may settle; 1 is plain; auto"
    )
    group.add_argument("--draft-tree", type=_widths, metavar="K,K,...", help="instead: drafts behind each node")
    group.add_argument("--draft-confidence", type=float, metavar="P", help="stop where no token is as likely as this")
    group.add_argument("--jacobi-start", metavar="NAME", help="places not seen yet: random, repeat or likeliest")
    group.add_argument("--jacobi-keep", action="store_true", help="try the drafts behind a rejection as well")
    group.add_argument("--exit-layers", type=at_least(1), metavar="N", help="layers before an early exit")
    group.add_argument("--delta", type=float, help="LANTERN: mass that neighbours may lend a draft, 0 to 1")
    group.add_argument("--lambda", dest="factor", type=float, help="LANTERN++: the same as a factor on its own mass")
    group.add_argument("--neighbours", type=at_least(1), metavar="K", help="LANTERN: nearest codes that may lend")
    group.add_argument("--raw-codes", action="store_true", help="LANTERN: distances of codes as stored, as published")
    group.add_argument("--group", type=at_least(1), metavar="G", help="grouped: codes that stand or fall together")
    group.add_argument("--boost", type=float, help="decayed: factor on the chance of the first draft")
    group.add_argument("--decay", type=float, help="decayed: how fast that factor falls with every draft")


def _length(text: str) -> int | str:
    return text if text == "auto" else at_least(1)(text)


def _widths(text: str) -> tuple[int, ...]:
    return tuple(at_least(1)(part) for part in text.split(","))


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those options as keywords of `Pipeline.plan` and of the pipeline itself."""
    return {
        "guidance_scale": args.guidance_scale,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "temperature": args.temperature,
        "smooth": args.smooth or None,
        "solver": args.solver,
        "steps": args.steps,
        "guidance_interval": args.guidance_interval and tuple(args.guidance_interval),
        "guided_tokens": args.guided_tokens,
        "subnet": args.subnet,
        "full_scales": args.full_scales,
        "refine": args.refine,
        "refine_clean": args.refine_clean or None,
        "speculate": args.speculate,
        "accept": args.accept,
        "draft_length": args.draft_length,
        "draft_tree": args.draft_tree,
        "draft_confidence": args.draft_confidence,
        "jacobi_start": args.jacobi_start,
        "jacobi_keep": args.jacobi_keep or None,
        "exit_layers": args.exit_layers,
        "delta": args.delta,
        "factor": args.factor,
        "neighbours": args.neighbours,
        "raw_codes": args.raw_codes or None,
        "group": args.group,
        "boost": args.boost,
        "decay": args.decay,
        "method": args.method and args.method[0],
        "method_options": args.method and _method_options(args.method[1:]),
    }


def _method_options(texts: Sequence[str]) -> dict[str, Any]:
    """What stands behind the name of a method, `option=value`, the values as YAML reads them."""
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
