"""How often the classifier sees the solid that an edit was to put in the place of another.

    python scripts/judge_editing.py

Renderings that no training saw; what is drawn anew is the box around the solid and three pixels.
"""

from __future__ import annotations

import argparse

from var_toolkit.evaluation.editing_quality import replacement_agreement
from var_toolkit.loading import load

MODELS = ("stilllife-var", "stilllife-variant", "stilllife-code-4", "stilllife-hmar", "stilllife-flowar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--cases", type=int, default=200)
    args = parser.parse_args()
    for name in args.models:
        pipe = load(name, device="cpu").pack()
        for keep_pixels in (False, True):
            found = replacement_agreement(pipe, args.cases, keep_pixels=keep_pixels)
            way = "pasted into the image" if keep_pixels else "as drawn"
            print(f"{name}, {way}: class {100 * found.whole:.1f} %, solid {100 * found.solid:.1f} %", flush=True)


if __name__ == "__main__":
    main()
