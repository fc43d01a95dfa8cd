#!/usr/bin/env bash
# torch-fidelity 0.4.0: the statistics that it computes itself have a float32 mean and a float64 covariance. Comparing them
# with a reference in which both are float64, as in the files of the ADM evaluator (`mu`, `sigma`), ends in an AssertionError
# without a message. Casting both sides to float64 gives the Fréchet distance.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch-fidelity==0.4.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
env/bin/python -W ignore - <<'PYTHON'
import numpy as np
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

features = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
ours = fid_features_to_statistics(features)
print({name: str(array.dtype) for name, array in ours.items()})
assert (ours["mu"].dtype, ours["sigma"].dtype) == (np.float32, np.float64)
reference = {name: array.astype(np.float64) for name, array in ours.items()}
try:
    fid_statistics_to_metric(ours, reference, False)
except AssertionError as error:
    print(f"against float64 statistics: AssertionError, message {str(error)!r}")
    assert str(error) == ""
else:
    raise SystemExit("statistics of two dtypes are compared now")
both = {name: array.astype(np.float64) for name, array in ours.items()}
distance = fid_statistics_to_metric(both, reference, False)["frechet_inception_distance"]
print("both in float64:", distance)
assert abs(distance) < 1e-6
PYTHON
