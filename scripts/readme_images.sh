#!/usr/bin/env bash
# Sample the images of README.md and docs/ again with the embedded models.
set -euo pipefail
cd "$(dirname "$0")/.."
vargen sample --class 207 55 912 348 660 471 --seed 0 -n 10 --grid --out docs/samples.png
vargen sample --class 207 55 912 348 --trace docs/growing.gif --out "$(mktemp -d)"
