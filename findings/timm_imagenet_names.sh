#!/usr/bin/env bash
# timm 1.0.31: the short descriptions of `ImageNetInfo` are not unique: "crane" is class 134 (the bird) and class 517 (the
# machine), so a look-up from name to class number loses one of them. torchvision 0.29.1 tells them apart in its own list
# ("crane bird", "crane"), and each library spells some other classes in its own way, so that names copied from one cannot be
# looked up in the other. Seen: 999 different descriptions of 1000 in timm, 1000 in torchvision.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
env/bin/python -W ignore - <<'PYTHON'
from timm.data import ImageNetInfo
from torchvision.models import ResNet50_Weights

timm = [ImageNetInfo().index_to_description(label) for label in range(1000)]
torchvision = ResNet50_Weights.DEFAULT.meta["categories"]
twice = [(label, name, torchvision[label]) for label, name in enumerate(timm) if timm.count(name) > 1]
differ = [(one, other) for one, other in zip(timm, torchvision, strict=True) if one.lower() != other.lower()]
print(len(set(timm)), len(set(torchvision)), twice, len(differ), differ[:3])
assert (len(set(timm)), len(set(torchvision))) == (999, 1000)
assert [(label, name) for label, name, _ in twice] == [(134, "crane"), (517, "crane")]
assert differ
PYTHON
