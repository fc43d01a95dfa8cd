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
    """Prefix the ValueErrors about a file with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def add_image_options(parser: argparse.ArgumentParser, help: str) -> None:
    """The image that a command edits, and the classes to draw."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help=help)
    parser.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        default=["none"],
        metavar="CLASS",
        help="classes as for `vargen sample` (default none: no label)",
    )


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype."""
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, mps"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the networks")


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """--model."""
    from var_toolkit.registry import DEFAULT

    parser.add_argument(
        "--model",
        default=DEFAULT,
        help="a name from `vargen models`, a model directory, or a hub id user/name, with or without @revision",
    )


def model_of(args: argparse.Namespace) -> str | Pair | Drafting:
    """What `load` and `skeleton` open: a model, a model and its draft model, or a drafter and a refiner (CoDe)."""
    given = (args.drafter, args.refiner, args.draft_scales)
    from var_toolkit.registry import DEFAULT, find_entry

    if args.draft_model is not None and args.speculate not in ("draft", "early-exit", "eagle"):
        raise ValueError("--draft-model is for --speculate draft, early-exit or eagle; give one of them")
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
    """Sampling settings, which default to those of the model, and methods that make sampling faster."""
    parser.add_argument(
        "--cfg",
        type=float,
        metavar="SCALE",
        help="guidance as the authors of the model count it: 0 is off for VAR and HMAR, 1 for LlamaGen and FlowAR",
    )
    parser.add_argument(
        "--guidance-scale", type=float, metavar="SCALE", help="instead, as diffusers counts for every model: 1 is off"
    )
    parser.add_argument("--top-k", type=int, help="sample from the k most probable tokens; 0 is off")
    parser.add_argument(
        "--top-p", type=float, help="sample from the most probable tokens up to this total probability; 0 is off"
    )
    parser.add_argument("--temperature", type=float, help="of the logits: above 1 images vary more, below 1 less")
    parser.add_argument(
        "--smooth",
        action="store_true",
        help="mix codes (Gumbel softmax) instead of sampling one: smoother images, not for FID",
    )
    parser.add_argument("--solver", metavar="NAME", help="continuous tokens: published, euler, midpoint or heun")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="continuous tokens: solver steps per scale")
    parser.add_argument(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="continuous tokens: guide at times between LOW and HIGH; 0 is data, 1 is noise",
    )
    parser.add_argument(
        "--guidance-scales", type=_span, metavar="A:B", help="guide only the scales from A to before B, such as 0:9"
    )
    parser.add_argument(
        "--guided-tokens", type=at_least(0), metavar="N", help="next-token models: guide only the first N tokens"
    )
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="replace the model's own by an AutoencoderKL: a directory or a hub id"
    )
    parser.add_argument("--subnet", type=at_least(2), metavar="D", help="VARiant: layers that draw the finer scales")
    parser.add_argument("--full-scales", type=at_least(1), metavar="N", help="VARiant: scales that all layers draw")
    parser.add_argument(
        "--refine", metavar="LISTS", help='HMAR: masked passes of each scale: published, off, or "1;1,3;1,1,2,5;..."'
    )
    parser.add_argument("--refine-clean", action="store_true", help="HMAR: also hide masked tokens from visible ones")
    _add_speculation_options(parser)
    parser.add_argument("--drafter", metavar="MODEL", help="CoDe, instead of --model: draws the first scales")
    parser.add_argument("--refiner", metavar="MODEL", help="CoDe: draws the other scales")
    parser.add_argument(
        "--draft-scales", type=at_least(1), metavar="N", help="CoDe: number of scales that the drafter draws"
    )
    parser.add_argument(
        "--method",
        nargs="+",
        metavar=("NAME", "OPTION=VALUE"),
        help="a decoding method: an installed one by name, or your own as module:function",
    )


def _add_speculation_options(parser: argparse.ArgumentParser) -> None:
    """Proposer, acceptance rule and draft length."""
    group = parser.add_argument_group("speculative decoding")
    group.add_argument("--speculate", metavar="NAME", help="proposer: jacobi, draft, early-exit, ngram or eagle")
    group.add_argument(
        "--draft-model", metavar="MODEL", help="the smaller model or the trained head: a name or a directory"
    )
    group.add_argument(
        "--accept", metavar="RULE", help="acceptance rule: standard (default), kseq, lantern, grouped or decayed"
    )
    group.add_argument(
        "--draft-length",
        type=_length,
        metavar="N",
        help="largest number of tokens (VAR: scales) per pass; 1 is plain decoding; auto adapts it",
    )
    group.add_argument(
        "--draft-tree",
        type=_widths,
        metavar="K,K,...",
        help="instead of a chain, a tree: children of each node, per level",
    )
    group.add_argument(
        "--draft-confidence", type=float, metavar="P", help="stop drafting where no token is as probable as P"
    )
    group.add_argument(
        "--jacobi-start", metavar="NAME", help="jacobi: drafts of new positions: random, repeat or likeliest"
    )
    group.add_argument("--jacobi-keep", action="store_true", help="jacobi: keep drafts after a rejected one")
    group.add_argument(
        "--exit-layers", type=at_least(1), metavar="N", help="early-exit: layers of the target that draft"
    )
    group.add_argument("--delta", type=float, help="LANTERN: bound on the probability added from neighbours, 0 to 1")
    group.add_argument(
        "--lambda", dest="factor", type=float, help="LANTERN++: that bound as a factor on the draft's own probability"
    )
    group.add_argument("--neighbours", type=at_least(1), metavar="K", help="LANTERN: number of neighbours")
    group.add_argument(
        "--raw-codes", action="store_true", help="LANTERN: distances between codes as stored, as published"
    )
    group.add_argument(
        "--group", type=at_least(1), metavar="G", help="grouped: codes that are accepted or rejected together"
    )
    group.add_argument("--boost", type=float, help="decayed: factor on the acceptance probability of the first draft")
    group.add_argument("--decay", type=float, help="decayed: rate at which that factor decreases per draft")


def _length(text: str) -> int | str:
    return text if text == "auto" else at_least(1)(text)


def _span(text: str) -> tuple[int | None, int | None]:
    """The two ends of a range of scales; one that is left out is that of the schedule."""
    found = re.fullmatch(r"(\d*):(\d*)", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be two scales with a colon between them, such as 0:9 or :9")
    first, last = (int(end) if end else None for end in found.groups())
    return first, last


def _widths(text: str) -> tuple[int, ...]:
    return tuple(at_least(1)(part) for part in text.split(","))


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those options as keywords of `Pipeline.plan` and of the pipeline itself."""
    return {
        "cfg": args.cfg,
        "guidance_scale": args.guidance_scale,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "temperature": args.temperature,
        "smooth": args.smooth or None,
        "solver": args.solver,
        "steps": args.steps,
        "guidance_interval": args.guidance_interval and tuple(args.guidance_interval),
        "guidance_scales": args.guidance_scales,
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
