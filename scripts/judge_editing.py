"""Measure how often the classifier finds the requested class after an edit replaces the solid of a still life.

    python scripts/judge_editing.py

The images are renderings that no training used; the mask is the bounding box of the solid plus three pixels.
"""

from __future__ import annotations

import argparse

from var_toolkit.loading import load
from var_toolkit.still_life.editing_quality import replacement_agreement

MODELS = ("stilllife-var", "stilllife-variant", "stilllife-code-4", "stilllife-hmar", "stilllife-flowar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS, help="default: all embedded models with scales")
    parser.add_argument("--cases", type=int, default=200, help="edits per model (default 200)")
    args = parser.parse_args()
    for name in args.models:
        pipe = load(name, device="cpu").pack()
        for keep_pixels in (False, True):
            found = replacement_agreement(pipe, args.cases, keep_pixels=keep_pixels)
            way = "pasted into the image" if keep_pixels else "as generated"
            print(f"{name}, {way}: class {100 * found.whole:.1f} %, solid {100 * found.solid:.1f} %", flush=True)


if __name__ == "__main__":
    main()
