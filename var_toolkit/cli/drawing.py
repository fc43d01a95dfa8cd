"""What `vargen sample`, `edit` and `vary` share: options, drawing batch by batch, files, and the report."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from var_toolkit.cli.hints import tell_label_order, tell_purpose
from var_toolkit.cli.options import (
    add_adapter_option,
    add_machine_options,
    add_model_option,
    add_sampling_options,
    at_least,
    model_of,
    named,
    sampling_settings,
)
from var_toolkit.cli.subjects import Subjects, place_encoder, settle_subject, subjects_of
from var_toolkit.files import Writers, check_writable, write_whole
from var_toolkit.sheets import enlarged, grid

if TYPE_CHECKING:
    from torch import Tensor

    from var_toolkit.core.engine import ScaleEvent
    from var_toolkit.core.plan import Plan
    from var_toolkit.methods.speculative.tally import Tally
    from var_toolkit.output import Chosen
    from var_toolkit.pipeline import Pipeline, PipelineOutput
    from var_toolkit.precision import Precision

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp")
# Meant as the name of a file, in formats that are not written.
OTHER_FILES = (".avif", ".bmp", ".gif", ".heic", ".jp2", ".pdf", ".ppm", ".svg", ".tga", ".tif", ".tiff")
LAST_SEED = 2**63 - 1
COLUMNS = 8


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Options for the number of images, the model, its settings, and the output files."""
    parser.add_argument("-n", type=at_least(1), default=1, help="images per class or prompt (default 1)")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of the first image of each; the next ones count up"
    )
    add_model_option(parser, default=None)
    add_adapter_option(parser)
    add_sampling_options(parser)
    add_machine_options(parser)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the networks, for many batches of one size on a GPU",
    )
    parser.add_argument(
        "--decoder",
        metavar="NAME",
        help="decode by a small decoder: small (that of the package for the tokenizer), a name, directory or hub id",
    )
    parser.add_argument("--batch-size", type=at_least(1), default=8, help="images at a time (default 8)")
    parser.add_argument("--out", type=Path, default=Path("."), help="a folder, or a .png, .jpg or .webp file")
    parser.add_argument("--grid", action="store_true", help="one file with all images, one row per class or prompt")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE.gif", help="an animation of the images, one frame per scale"
    )
    parser.add_argument(
        "--save-tokens",
        type=Path,
        metavar="FILE.safetensors",
        help="write the tokens (tensors scale_0, scale_1 ...; tokens of next-token models) and the latents (latent)",
    )
    parser.add_argument(
        "--plan", type=Path, metavar="FILE.json", help="the plan that a dry run, or any run, printed with --json"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan and its cost, draw nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


@dataclass
class Drawn:
    """The results so far, of which only what later steps need is held."""

    seeds: list[int] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)  # for the grid
    tokens: list[list[Tensor]] = field(default_factory=list)  # for --save-tokens, a list of scales for each batch
    latents: list[Tensor] = field(default_factory=list)
    frames: list[tuple[int, Tensor]] = field(default_factory=list)  # for --trace: scale and images
    seconds: float = 0.0
    forward_passes: int = 0
    velocity_evaluations: int = 0
    cache_bytes: int = 0
    tallies: list[Tally] = field(default_factory=list)  # of speculation
    chosen: list[Chosen] = field(default_factory=list)  # of best of N


@dataclass(frozen=True)
class Task:
    """What a command draws: how it calls a pipeline, what it checks before, and how its files are named."""

    draw: Callable[..., Iterator[PipelineOutput]]  # (pipeline, labels, **drawing) -> finished batches
    # Given a pipeline without weights: further facts for --json, or ValueError if the task does not fit the model.
    check: Callable[[Pipeline, Plan], Mapping[str, Any]] = lambda pipe, plan: {}
    prefix: str = ""  # of the names of files


def run_task(args: argparse.Namespace, task: Task) -> None:
    """Check, draw batch by batch, write each batch once it is done, report."""
    _check_names(args)
    settle_subject(args)
    from var_toolkit.core.compiled import require_cpp
    from var_toolkit.devices import find_device, tell_slow_dtype
    from var_toolkit.loading import load, skeleton
    from var_toolkit.methods.scorers import require_function
    from var_toolkit.precision import precision_of

    device = find_device(args.device)
    # Sizes alone: what cannot be drawn is refused before anything is downloaded.
    shape = skeleton(model_of(args), tokenizer=args.tokenizer, adapters=args.adapter)
    precision = precision_of(args.dtype, device, shape.backbones)
    if args.decoder is not None:
        shape.load_decoder(args.decoder)
    if precision.quantized:
        shape.quantize(precision.quantized)
    if args.compile:
        require_cpp(device)
        shape.compile()  # which refuses what cannot be compiled, and compiles nothing yet
    subjects = subjects_of(args, shape)
    place_encoder(args, shape)
    _check_count(args, len(subjects))
    plan = _plan(args, shape)
    if plan.best_of is not None:
        require_function(plan.best_of.scorer)
    facts = task.check(shape, plan)
    if args.trace and plan.best_of is not None:
        raise ValueError("--trace shows one candidate; draw without it, then the seed that was chosen with --trace")
    if args.dry_run:
        _show_plan(args, shape, plan, subjects, precision)
        return
    _check_places(args)
    if shape.text is None:
        tell_label_order(shape.class_names, shape.facts)
    tell_slow_dtype(device, precision.wide)

    began = time.perf_counter()
    pipe = load(model_of(args), tokenizer=args.tokenizer, adapters=args.adapter, device=args.device, dtype=args.dtype)
    if args.decoder is not None:
        pipe.load_decoder(args.decoder)
    pipe = pipe.compile() if args.compile else pipe.pack()
    place_encoder(args, pipe)
    loading = time.perf_counter() - began
    drawn = _draw(pipe, args, task, subjects)
    _write_sheets(args, task, pipe, drawn)
    _report(args, pipe, plan, drawn, loading, facts, subjects)


def _plan(args: argparse.Namespace, pipe: Pipeline) -> Plan:
    """The plan of a file, or that of the sampling options. ValueError for both, or if it does not fit the model."""
    settings = {name: value for name, value in sampling_settings(args).items() if value is not None}
    if args.plan is None:
        return pipe.plan(**settings)
    if settings:
        raise ValueError(f"--plan {args.plan} holds its own settings; remove {min(settings)}, or --plan")
    from var_toolkit.core.plan import Plan

    plan = Plan.read(args.plan)
    with named(args.plan):
        pipe.bind(plan)
    return plan


def _check_count(args: argparse.Namespace, classes: int) -> None:
    if _is_file(args.out) and classes * args.n > 1 and not args.grid:
        raise ValueError(f"--out {args.out} is one file, and there are several images; give a folder, or add --grid")


def _check_names(args: argparse.Namespace) -> None:
    suffix = args.out.suffix.lower()
    if suffix in OTHER_FILES:
        raise ValueError(
            f"--out {args.out} ends in {suffix}, which is not supported; use {', '.join(IMAGE_FILES)}, or a folder"
        )
    if args.seed + args.n - 1 > LAST_SEED:
        raise ValueError(f"--seed {args.seed} with -n {args.n} exceeds the largest seed; seeds are 0 to 2**63 - 1")
    for path, ending, option in ((args.trace, ".gif", "--trace"), (args.save_tokens, ".safetensors", "--save-tokens")):
        if path is not None and path.suffix.lower() != ending:
            raise ValueError(f"{option} {path} must end in {ending}")


def _check_places(args: argparse.Namespace) -> None:
    for path in (args.out if _is_file(args.out) else None, args.trace, args.save_tokens):
        if path is not None and path.is_dir():
            raise ValueError(f"{path} is a folder; give another name for the file")
    check_writable(args.out.parent if _is_file(args.out) else args.out)
    for path in (args.trace, args.save_tokens):
        if path is not None:
            check_writable(path.parent)


def _is_file(out: Path) -> bool:
    return out.suffix.lower() in IMAGE_FILES


def _draw(pipe: Pipeline, args: argparse.Namespace, task: Task, subjects: Subjects) -> Drawn:
    """Draw the seeds of each subject, and write each image once its batch is done, while the next one is drawn."""
    from var_toolkit.progress import Progress

    drawn, size, plan = Drawn(), args.batch_size, _plan(args, pipe)
    count = len(subjects) * args.n
    candidates = 1 if plan.best_of is None else plan.best_of.count  # fewer are drawn where a threshold is reached
    passes = count // size * candidates + -(-(count % size) * candidates // size)
    turns = passes * pipe.bind(plan).stages
    with Writers() as writers, Progress(turns, "scales", what="drawing", leave=False) as bar:

        def on_scale(event: ScaleEvent) -> None:
            bar.update()
            if args.trace:
                drawn.frames.append((event.scale, event.preview().cpu()))

        labels, more = subjects.images(args.n)
        seeds = (args.seed + i for _ in range(len(subjects)) for i in range(args.n))
        settings = {"seeds": seeds, "batch_size": size, "callback_on_scale_end": on_scale, "plan": plan, **more}
        began = time.perf_counter()
        for batch in task.draw(pipe, labels, **settings):
            drawn.seconds += time.perf_counter() - began
            _keep(args, task, subjects, drawn, batch, writers)
            began = time.perf_counter()
    return drawn


def _keep(
    args: argparse.Namespace, task: Task, subjects: Subjects, drawn: Drawn, output: PipelineOutput, writers: Writers
) -> None:
    numbers = range(len(drawn.seeds), len(drawn.seeds) + len(output.seeds))
    drawn.seeds += output.seeds
    drawn.forward_passes += output.forward_passes
    drawn.velocity_evaluations += output.velocity_evaluations
    drawn.chosen += output.chosen
    drawn.tallies += [output.speculation] if output.speculation else []
    drawn.cache_bytes = max(drawn.cache_bytes, output.cache_bytes)
    if args.save_tokens:
        drawn.tokens.append(output.tokens)
        drawn.latents.append(output.latents)
    if args.grid:
        drawn.images += output.images
        return
    for image, number, seed in zip(output.images, numbers, output.seeds, strict=True):
        name = f"{task.prefix}{subjects.files[number // args.n]}_seed-{seed}.png"
        path = args.out if _is_file(args.out) else args.out / name
        writers.write(path, partial(_encode, image, path))
        drawn.files.append(path)


def _write_sheets(args: argparse.Namespace, task: Task, pipe: Pipeline, drawn: Drawn) -> None:
    """Write the files that hold all images: the grid, the tokens, the animation."""
    import torch

    columns = args.n if args.n > 1 else min(len(drawn.seeds), COLUMNS)
    if args.grid:
        path = args.out if _is_file(args.out) else args.out / f"{task.prefix}grid_seed-{args.seed}.png"
        write_whole(path, partial(_encode, grid(drawn.images, columns), path))
        drawn.files.append(path)
    if args.save_tokens:
        from var_toolkit.formats.directory import write_tensors

        maps = [torch.cat(parts) for parts in zip(*drawn.tokens, strict=True)]
        names = ["tokens"] if len(maps) == 1 else [f"scale_{k}" for k in range(len(maps))]
        found = dict(zip(names, maps, strict=True))
        write_tensors(args.save_tokens, {**found, "latent": torch.cat(drawn.latents)})
    if args.trace:
        _write_trace(args.trace, drawn.frames, columns)


def _write_trace(path: Path, frames: list[tuple[int, Tensor]], columns: int) -> None:
    import torch

    from var_toolkit.images import as_output

    images = [torch.cat([drawn for scale, drawn in frames if scale == k]) for k in sorted({k for k, _ in frames})]
    first, *rest = [enlarged(grid(as_output(frame, "pil"), columns), 256) for frame in images]
    pauses = [350] * len(rest) + [1800]  # milliseconds; the finished image stays longest
    write_whole(
        path, lambda to: first.save(to, format="gif", save_all=True, append_images=rest, duration=pauses, loop=0)
    )


def _encode(image: Any, path: Path, temporary: Path) -> None:
    """Write an image in the format that its name asks for."""
    image.save(temporary, format={".jpg": "jpeg"}.get(path.suffix.lower(), path.suffix.lower()[1:]))


def _report(
    args: argparse.Namespace,
    pipe: Pipeline,
    plan: Plan,
    drawn: Drawn,
    loading: float,
    more: Mapping[str, Any],
    subjects: Subjects,
) -> None:
    if args.json:
        from var_toolkit.evaluation.bench.memory import peak
        from var_toolkit.guidance import counted

        facts = {
            "model": str(model_of(args)),
            "tokenizer": args.tokenizer,
            "adapters": args.adapter,
            "decoder": args.decoder,
            "plan": plan.to_json(),
            "plan_in_words": "; ".join(str(pipe.bind(plan)).splitlines()),
            **counted(pipe.bind(plan)),
            "files": [str(path) for path in drawn.files],
            **subjects.facts(args.n),
            "seeds": drawn.seeds,
            "seconds": round(drawn.seconds, 4),
            "seconds_loading": round(loading, 4),
            "images_per_second": round(len(drawn.seeds) / drawn.seconds, 4),
            "peak_memory_bytes": peak(pipe.device),
            "cache_bytes": drawn.cache_bytes,
            "forward_passes": drawn.forward_passes,
            "velocity_evaluations": drawn.velocity_evaluations,
            "speculation": _told(drawn.tallies),
            **({"chosen": [one._asdict() for one in drawn.chosen]} if drawn.chosen else {}),
            "device": str(pipe.device),
            "dtype": pipe.precision,
            **more,
        }
        print(json.dumps(facts))
    else:
        _tell(args, drawn, subjects.shown)
    tell_purpose(str(model_of(args)), of_image="image" in args)


def _tell(args: argparse.Namespace, drawn: Drawn, shown: Sequence[str]) -> None:
    """A line for each file."""
    if args.grid:
        print(f"{drawn.files[0]}: {'; '.join(dict.fromkeys(shown))}")
    else:
        for number, (path, seed) in enumerate(zip(drawn.files, drawn.seeds, strict=True)):
            told = "" if not drawn.chosen else f", {_choice(drawn.chosen[number])}"
            print(f"{path}: {shown[number // args.n]}, seed {seed}{told}")


def _choice(one: Chosen) -> str:
    return f"candidate {one.candidate} (seed {one.seed}, score {one.score:.4g})"


def _told(tallies: list[Tally]) -> dict[str, Any] | None:
    """The statistics of speculative decoding, None without it."""
    from var_toolkit.methods.speculative.tally import together

    whole = together(tallies)
    return whole.as_json() if whole else None


def _show_plan(args: argparse.Namespace, shape: Pipeline, plan: Plan, subjects: Subjects, precision: Precision) -> None:
    from var_toolkit.core.forecast import forecast
    from var_toolkit.devices import find_device, slow_dtype
    from var_toolkit.guidance import counted

    images, run, wide = len(subjects) * args.n, shape.bind(plan), precision.wide
    told = forecast(run, images=images, batch=args.batch_size, dtype=str(wide).removeprefix("torch."))
    told["precision"] = _chosen(shape, precision)
    if args.compile:
        told["compiled"] = "a graph for each scale and number of rows, made when the first batch is drawn"
    facts = {"model": str(model_of(args)), **subjects.facts(), "images": images, **counted(run), **told}
    if (slow := slow_dtype(find_device(args.device), wide)) is not None:
        facts["note"] = slow
    if args.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if name != "plan":  # which is for machines; people read it in words
            print(f"{name.replace('_', ' '):28} {value}")


def _chosen(shape: Pipeline, precision: Precision) -> str:
    """The precision, and why."""
    if shape.precision == "int8" and not precision.quantized:
        return "int8 (the model was saved in it)"
    return f"{precision.name} ({precision.why})"
