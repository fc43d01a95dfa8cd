"""What a command draws: classes or prompts, by its options --class, --prompt and --prompt-embeds."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from var_toolkit.conditions.class_names import NO_CLASS
from var_toolkit.registry import DEFAULT, default_for_prompts, find_entry, prompt_models

if TYPE_CHECKING:
    from var_toolkit.conditions.text import PromptEmbeds
    from var_toolkit.pipeline import Pipeline

LONGEST = 60  # characters of a prompt in the name of a file


def add_subject_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """--class, or --prompt, or --prompt-embeds, and what belongs to prompts."""
    kinds = parser.add_mutually_exclusive_group(required=required)
    otherwise = "" if required else " (default none: no label)"
    kinds.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        metavar="CLASS",
        help="names, numbers, ranges such as 207-210, synsets (see `vargen classes`); none for no label" + otherwise,
    )
    kinds.add_argument(
        "--prompt",
        dest="prompts",
        action="append",
        metavar="TEXT",
        help="models of text: what the images show; several times for several prompts",
    )
    kinds.add_argument(
        "--prompt-embeds", type=Path, metavar="FILE", help="instead, prompts that `vargen embed` has encoded"
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    add_encoder_options(parser)


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """--text-device and --text-bits."""
    parser.add_argument("--text-device", metavar="DEVICE", help="of the text encoder, if not that of the model")
    parser.add_argument(
        "--text-bits", type=int, choices=(8, 16, 32), help="of its weights (default 16 on CUDA, else 32)"
    )


def settle_subject(args: argparse.Namespace) -> None:
    """Complete the options before anything heavy: the model, and whether it takes what is given.

    ValueError of one line if it does not, as far as the name of the model tells.
    """
    texts = args.prompts is not None or args.prompt_embeds is not None
    odd = [name for name in ("negative_prompt", "text_device", "text_bits") if getattr(args, name) is not None]
    if odd and not texts:
        raise ValueError(f"{odd[0]} is for prompts; give --prompt or --prompt-embeds as well")
    if args.classes is None and not texts:
        args.classes = [NO_CLASS]
    if args.model is None:
        args.model = default_for_prompts() if texts and args.drafter is None else DEFAULT
        return
    if getattr(args, "instructions", None) is None:
        require_editor(args.model, edits=False)
    require_kind(args.model, texts=texts)


def require_kind(model: str, *, texts: bool) -> None:
    """ValueError of one line if a model that is known by its name takes the other kind: prompts or classes."""
    known = None if Path(model).is_dir() else find_entry(model)
    if known is not None and known.draws and known.takes_prompts != texts:
        raise ValueError(_other_kind(model, texts))


def require_editor(model: str, *, edits: bool) -> None:
    """ValueError of one line if a model that is known by its name edits by instructions, or does not."""
    known = None if Path(model).is_dir() else find_entry(model)
    if known is None or not known.draws or known.edits == edits:
        return
    if edits:
        named = ", ".join(prompt_models(edits=True))
        raise ValueError(f"--model {model} does not edit by instructions; give a model that does: {named}")
    raise ValueError(f"--model {model} edits an image; use `vargen edit IMAGE --instruction TEXT`")


def _other_kind(model: str, texts: bool) -> str:
    if not texts:
        return f"--model {model} draws what a prompt says; give --prompt instead of --class"
    named = ", ".join(prompt_models()) or "a directory"
    return f"--model {model} draws classes and takes no prompts; give --class, or a model that takes prompts: {named}"


@dataclass(frozen=True)
class Subjects:
    """What is drawn, each with every seed."""

    labels: Sequence[int | None] | None  # of classes; None for prompts
    shown: Sequence[str]  # a line for each
    names: Sequence[str]  # of classes, or the prompts
    files: Sequence[str]  # how the names of their files begin
    images: Callable[[int], tuple[Any, dict[str, Any]]]  # labels and keywords of a call that draws n images of each

    def __len__(self) -> int:
        return len(self.files)

    def facts(self, n: int = 1) -> dict[str, Any]:
        """For --json, one entry for each of n images."""
        if self.labels is None:
            return {"prompts": [text for text in self.names for _ in range(n)]}
        return {
            "classes": [label for label in self.labels for _ in range(n)],
            "names": [name for name in self.names for _ in range(n)],
        }


def subjects_of(args: argparse.Namespace, pipe: Pipeline) -> Subjects:
    """What the options name, for a model. ValueError of one line if it does not take that."""
    if args.classes is not None:
        if pipe.text is not None:
            raise ValueError(_other_kind(args.model, False))
        return _classes([label for text in args.classes for label in pipe.class_names.resolve_all(text)], pipe)
    if pipe.text is None:
        raise ValueError(_other_kind(args.model, True))
    if args.prompt_embeds is not None:
        return _embeds(args, pipe)
    more = {"negative_prompt": args.negative_prompt}
    require_encoder(args, pipe, [*args.prompts, *filter(None, [args.negative_prompt])])
    return _texts(args.prompts, lambda n: {"prompt": [text for text in args.prompts for _ in range(n)], **more})


def _classes(labels: list[int], pipe: Pipeline) -> Subjects:
    names, none = pipe.class_names, len(pipe.class_names)
    known = [label if label < none else None for label in labels]
    return Subjects(
        labels=known,
        shown=[f"class {label}, {names.name(label)}" if label < none else names.name(label) for label in labels],
        names=[names.name(label) for label in labels],
        files=[f"class-{NO_CLASS if label is None else label}" for label in known],
        images=lambda n: ((label for label in known for _ in range(n)), {}),
    )


def _embeds(args: argparse.Namespace, pipe: Pipeline) -> Subjects:
    from var_toolkit.conditions.text import PromptEmbeds

    assert pipe.text is not None
    embeds = PromptEmbeds.read(args.prompt_embeds)
    pipe.text.require(embeds, str(args.prompt_embeds))
    if args.negative_prompt is not None:
        require_encoder(args, pipe, [args.negative_prompt])
    texts = embeds.prompts or [f"{args.prompt_embeds.stem} {row}" for row in range(len(embeds))]

    def images(n: int) -> dict[str, Any]:
        rows: PromptEmbeds = embeds.of_rows([row for row in range(len(embeds)) for _ in range(n)])
        return {"prompt_embeds": rows, "negative_prompt": args.negative_prompt}

    return _texts(texts, images)


def _texts(texts: Sequence[str], keywords: Callable[[int], dict[str, Any]]) -> Subjects:
    return Subjects(None, texts, texts, file_names(texts), lambda n: (None, keywords(n)))


def require_encoder(args: argparse.Namespace, pipe: Pipeline, texts: Sequence[str]) -> None:
    """ValueError of one line if a model has no encoder, or one that cannot read some texts."""
    if any(not text.strip() for text in texts):
        raise ValueError("prompt is empty; say what the images are to show")
    if pipe.text_encoder is None:
        raise ValueError(f"--model {args.model} comes without a text encoder; give --prompt-embeds FILE")
    pipe.text_encoder.check(texts)


def place_encoder(args: argparse.Namespace, pipe: Pipeline) -> None:
    """Give the text encoder the device and the bits of the options. ValueError if it takes none."""
    if args.text_device is None and args.text_bits is None:
        return
    place = getattr(pipe.text_encoder, "place", None)
    if place is None:
        raise ValueError(f"--model {args.model} has no text encoder of its own device and bits; remove those options")
    place(args.text_device, args.text_bits)


def file_names(texts: Sequence[str]) -> list[str]:
    """How the names of the files of prompts begin: their first words, and a number where two begin alike."""
    found: list[str] = []
    for text in texts:
        plain = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
        short = "-".join(re.findall(r"[a-z0-9]+", plain))[:LONGEST].strip("-") or "prompt"
        same = sum(re.fullmatch(rf"{short}(-\d+)?", other) is not None for other in found)
        found.append(f"{short}-{same + 1}" if same else short)
    return found
