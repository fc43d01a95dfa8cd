#!/usr/bin/env bash
# Sample the images of README.md and docs/ again with the embedded models.
set -euo pipefail
cd "$(dirname "$0")/.."
vargen sample --class 207 55 912 348 660 471 --seed 0 -n 10 --grid --out docs/samples.png
scenes=$(mktemp -d)/scenes.png
vargen sample --prompt "a large red sphere on sand at noon" --prompt "three green cones on stripes" \
    --prompt "two purple pawns at dusk" --prompt "a blue cylinder to the left of a yellow torus" \
    --seed 0 -n 8 --grid --out "$scenes"
python -c "import sys; from PIL import Image; Image.open(sys.argv[1]).save('docs/scenes-drawn.jpg', quality=88)" "$scenes"
vargen sample --class 207 55 912 348 --trace docs/growing.gif --out "$(mktemp -d)"
for maps in 1,2,4,8,16 1,2,3,4,6,8,10,16 1,2,3,4,5,6,7,8,9,10,16; do
    commas=${maps//[!,]/}
    vargen sample --class 207 55 912 348 660 471 841 960 --model stilllife-flexvar --schedule "$maps" --grid \
        --out "docs/flexvar-$((${#commas} + 1))-maps.png"
done
vargen sample --class 207 55 912 348 660 471 841 960 --model stilllife-flexvar --size 96x64 --grid --out docs/flexvar-96x64.png
