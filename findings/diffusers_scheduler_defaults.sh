#!/usr/bin/env bash
# diffusers 0.42.1: `DPMSolverMultistepScheduler.from_config(DDIMScheduler().config)` does not take over the timestep_spacing
# "leading" that this config shows. Values that the first scheduler has by default are replaced by the defaults of the second
# one, here "linspace", so ten steps are 999, 899, ..., 100. Given in words, DDIMScheduler(timestep_spacing="leading"), or
# after the same config was saved and loaded, they are 900, 810, ..., 90. A sampler that swaps its solver so (ACDiT's
# does) denoises at other times than its config says, and at others again once the scheduler comes from a file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet diffusers==0.42.1 torch==2.14.1 numpy==2.4.6 'huggingface-hub<2'
env/bin/python -W ignore - 2>/dev/null <<'PY'
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler


def told(name, scheduler):
    scheduler.set_timesteps(10)
    print(f"{name:22}", scheduler.config.timestep_spacing, scheduler.timesteps.tolist())
    return scheduler.config.timestep_spacing


DDIMScheduler().save_pretrained("saved")
assert DDIMScheduler().config.timestep_spacing == "leading"
swap = DPMSolverMultistepScheduler.from_config
assert told("from defaults", swap(DDIMScheduler().config)) == "linspace"
assert told("the same in words", swap(DDIMScheduler(timestep_spacing="leading").config)) == "leading"
assert told("the same from a file", DPMSolverMultistepScheduler.from_pretrained("saved")) == "leading"
PY
