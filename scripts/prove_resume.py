"""Check that one process, two processes and a process killed several times write the same set of images to the byte.

python scripts/prove_resume.py
python scripts/prove_resume.py --shards 40
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

ONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def command(launch: list[str], out: Path, args: argparse.Namespace) -> list[str]:
    """The command that samples the set into a folder."""
    options = ["--model", args.model, "--classes", args.classes, "--per-class", str(args.per_class), "--device", "cpu"]
    packed = ["--npz", str(out.with_suffix(".npz")), *(["--shards", str(args.shards)] if args.shards else [])]
    return [*launch, "-m", "var_toolkit", "evaluate", "sample", *options, "--out", str(out), *packed]


def killed(out: Path, args: argparse.Namespace, count: int) -> None:
    """Sample in one process that is killed with signal 9 at several random numbers of files, then finish."""
    for wanted in sorted(random.sample(range(1, count), args.kills)):
        process = subprocess.Popen(command(ONE, out, args), stderr=subprocess.DEVNULL)
        while process.poll() is None and len(files(out)) < wanted:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))  # at any point of a batch
        process.kill()
        process.wait()
        print(f"killed at {len(files(out))} files and {len(list(out.glob('.*-*')))} partial files", flush=True)
    subprocess.run(command(ONE, out, args), check=True)


def files(out: Path) -> list[Path]:
    """The images or shards."""
    return [*out.glob("[0-9]*.png"), *out.glob("shard-*.tar")]


def digest(out: Path) -> str:
    """Hash of names and bytes of all files of a folder and of its packed file."""
    found = blake2b(digest_size=10)
    for path in [*sorted(out.iterdir()), out.with_suffix(".npz")]:
        name = path.name if path.parent == out else "npz"
        found.update(f"{name} {path.stat().st_size} ".encode() + path.read_bytes())
    return found.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stilllife-var", help="default stilllife-var")
    parser.add_argument("--classes", default="0-999", help="default 0-999")
    parser.add_argument("--per-class", type=int, default=2, help="images per class (default 2)")
    parser.add_argument("--shards", type=int, help="write this many shards instead of one file per image")
    parser.add_argument("--kills", type=int, default=5, help="how often the third run is killed (default 5)")
    parser.add_argument("--folder", type=Path, help="a new folder for the three sets (default: a temporary one)")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="prove-resume-"))
    one, two, many = (folder / name for name in ("one-process", "two-processes", "killed"))
    subprocess.run(command(ONE, one, args), check=True)
    subprocess.run(command(TWO, two, args), check=True)
    killed(many, args, len(files(one)))
    found = {out.name: digest(out) for out in (one, two, many)}
    for name, value in found.items():
        print(f"{value}  {name}: {len(files(folder / name))} files")
    same = len(set(found.values())) == 1
    print("all bytes are equal" if same else "THE SETS DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
