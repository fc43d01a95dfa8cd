"""Draw pictures of classes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from var_toolkit.cli.options import add_machine_options, add_model_option, at_least
from var_toolkit.files import check_writable, write_whole
from var_toolkit.zoo.registry import DEFAULT

if TYPE_CHECKING:
    from var_toolkit.pipeline import Pipeline, PipelineOutput
    from var_toolkit.sampling.engine import ScaleEvent

SUMMARY = "draw pictures of classes"
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen sample`."""
    parser.add_argument(
        "--class", dest="classes", nargs="+", required=True, metavar="CLASS", help="numbers, names or synsets"
    )
    parser.add_argument("-n", type=at_least(1), default=1, help="pictures a class (default 1)")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of the first picture of each class; the next ones count up"
    )
    add_model_option(parser)
    parser.add_argument("--cfg", type=float, help="guidance at the last scale, as VAR counts it; 0 is off")
    parser.add_argument("--top-k", type=int, help="keep the k likeliest tokens; 0 is off")
    parser.add_argument("--top-p", type=float, help="keep the likeliest tokens up to this mass; 0 is off")
    parser.add_argument("--temperature", type=float, help="above 1 varies more, below 1 less")
    parser.add_argument("--smooth", action="store_true", help="mix codes instead of drawing one: smoother pictures")
    add_machine_options(parser)
    parser.add_argument("--batch-size", type=at_least(1), default=8, help="pictures at a time (default 8)")
    parser.add_argument("--out", type=Path, default=Path("."), help="a folder, or a .png, .jpg or .webp file")
    parser.add_argument("--grid", action="store_true", help="one file with all pictures, a row a class")
    parser.add_argument("--trace", type=Path, metavar="FILE.gif", help="the pictures growing scale by scale")
    parser.add_argument("--save-tokens", type=Path, metavar="FILE.safetensors", help="scale_0 ..., and latent")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and its cost, draw nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Draw, write, report."""
    _check_outputs(args)
    if args.dry_run:
        _show_plan(args)
        return
    import torch

    from var_toolkit.pipeline import load

    began = time.perf_counter()
    pipe = load(args.model, device=args.device, dtype=getattr(torch, args.dtype))
    labels = [pipe.class_names.resolve(name) for name in args.classes for _ in range(args.n)]
    seeds = [args.seed + i for _ in args.classes for i in range(args.n)]
    pipe.plan(**_settings(args))  # refuses settings that make no sense before the progress bar starts
    loaded = time.perf_counter()
    frames: list[Any] = []
    output = _draw(pipe, args, labels, seeds, frames)
    seconds = time.perf_counter() - loaded
    files = _write_pictures(args, output)
    _write_extras(args, output, frames)
    _report(args, pipe, output, files, seconds, loaded - began)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "guidance_scale": args.cfg,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "temperature": args.temperature,
        "smooth": args.smooth,
    }


def _check_outputs(args: argparse.Namespace) -> None:
    """Everything about the files that can be known before a network is loaded."""
    suffix = args.out.suffix.lower()
    if suffix in PICTURE_FILES:
        if len(args.classes) * args.n > 1 and not args.grid:
            raise ValueError(f"--out {args.out} is one file for several pictures; give a folder, or add --grid")
        check_writable(args.out.parent)
    elif suffix and not args.out.is_dir():
        raise ValueError(f"--out {args.out} ends in {suffix}; use {', '.join(PICTURE_FILES)}, or a folder")
    else:
        check_writable(args.out)
    for path, ending, option in ((args.trace, ".gif", "--trace"), (args.save_tokens, ".safetensors", "--save-tokens")):
        if path is not None:
            if path.suffix.lower() != ending:
                raise ValueError(f"{option} {path} must end in {ending}")
            check_writable(path.parent)


def _draw(
    pipe: Pipeline, args: argparse.Namespace, labels: list[int], seeds: list[int], frames: list[Any]
) -> PipelineOutput:
    from tqdm import tqdm

    rounds = -(-len(labels) // args.batch_size)
    with tqdm(total=rounds * len(pipe.backbone.scales), unit=" scales", disable=None, leave=False) as bar:

        def on_scale(event: ScaleEvent) -> None:
            bar.update()
            if args.trace:
                frames.append((event.scale, event.preview().cpu()))

        return pipe(labels, seeds=seeds, batch_size=args.batch_size, callback_on_scale_end=on_scale, **_settings(args))


def _write_pictures(args: argparse.Namespace, output: PipelineOutput) -> list[Path]:
    if args.grid:
        is_file = args.out.suffix.lower() in PICTURE_FILES
        path = args.out if is_file else args.out / f"grid_seed-{args.seed}.png"
        _save(grid(output.images, columns=args.n if args.n > 1 else _columns(len(output.images))), path)
        return [path]
    files = []
    for image, label, seed in zip(output.images, output.class_labels, output.seeds, strict=True):
        single = args.out.suffix.lower() in PICTURE_FILES
        path = args.out if single else args.out / f"class-{label}_seed-{seed}.png"
        _save(image, path)
        files.append(path)
    return files


def _write_extras(args: argparse.Namespace, output: PipelineOutput, frames: list[Any]) -> None:
    if args.save_tokens:
        from safetensors.torch import save_file

        tensors = {f"scale_{k}": tokens for k, tokens in enumerate(output.tokens)} | {"latent": output.latents}
        write_whole(args.save_tokens, lambda path: save_file({k: t.contiguous() for k, t in tensors.items()}, path))
    if args.trace:
        import torch

        from var_toolkit.pipeline import as_output

        columns = args.n if args.n > 1 else _columns(len(output.images))
        scales = sorted({scale for scale, _ in frames})
        pictures = [torch.cat([drawn for scale, drawn in frames if scale == k]) for k in scales]
        sheets = [enlarged(grid(as_output(frame, "pil"), columns), 256) for frame in pictures]
        pauses = [350] * (len(sheets) - 1) + [1800]
        write_whole(
            args.trace,
            lambda path: sheets[0].save(
                path, format="gif", save_all=True, append_images=sheets[1:], duration=pauses, loop=0
            ),
        )


def grid(images: list[Any], columns: int) -> Any:
    """PIL pictures of one size as one picture, row by row, two pixels apart."""
    from PIL import Image

    side, gap = images[0].width, 2
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, ((i % columns) * (side + gap), (i // columns) * (side + gap)))
    return sheet


def enlarged(image: Any, least: int) -> Any:
    """A PIL picture, magnified by a whole factor to at least `least` pixels if it is small."""
    factor = max(1, least // image.width)
    return image.resize((image.width * factor, image.height * factor), 0)


def _columns(count: int) -> int:
    return min(count, 8)


def _save(image: Any, path: Path) -> None:
    kind = {".jpg": "jpeg"}.get(path.suffix.lower(), path.suffix.lower()[1:])
    write_whole(path, lambda temporary: image.save(temporary, format=kind))


def _report(
    args: argparse.Namespace, pipe: Pipeline, output: PipelineOutput, files: list[Path], seconds: float, loading: float
) -> None:
    names = {label: pipe.class_names.name(label) for label in output.class_labels}
    if args.json:
        facts = {
            "model": str(args.model),
            "files": [str(path) for path in files],
            "classes": output.class_labels,
            "names": [names[label] for label in output.class_labels],
            "seeds": output.seeds,
            "seconds": round(seconds, 4),
            "seconds_loading": round(loading, 4),
            "images_per_second": round(len(output.seeds) / seconds, 4),
            "peak_memory_bytes": peak_memory(str(pipe.device)),
            "cache_bytes": output.cache_bytes,
            "forward_passes": output.forward_passes,
            "device": str(pipe.device),
            "dtype": args.dtype,
        }
        print(json.dumps(facts))
        return
    if len(files) == len(output.seeds):
        for path, label, seed in zip(files, output.class_labels, output.seeds, strict=True):
            print(f"{path}: class {label}, {names[label]}, seed {seed}")
    else:
        print(f"{files[0]}: {'; '.join(f'class {label}, {name}' for label, name in names.items())}")
    if args.model == DEFAULT:
        print(
            f"{DEFAULT} draws rendered still lifes. ImageNet models are downloaded by name, such as --model var-d16; "
            "`vargen models` lists them.",
            file=sys.stderr,
        )


def peak_memory(device: str) -> int:
    """Most memory used so far, in bytes: torch's allocator on CUDA, the whole process elsewhere."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _show_plan(args: argparse.Namespace) -> None:
    from var_toolkit.pipeline import find_device, skeleton
    from var_toolkit.sampling.cost import forecast

    find_device(args.device)
    pipe = skeleton(args.model)
    labels = [pipe.class_names.resolve(name) for name in args.classes]
    pictures = len(labels) * args.n
    told = forecast(pipe.plan(**_settings(args)), pictures=pictures, batch=args.batch_size, dtype=args.dtype)
    facts = {"model": str(args.model), "classes": labels, "pictures": pictures, **told}
    if args.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):28} {value}")
