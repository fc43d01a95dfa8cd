"""A whole training step on the meta device: forward, backward, optimiser and average never leave the device.

The backward pass of torch asks for a real driver under FakeTensorMode, so CUDA itself is imitated in
tests/test_on_fake_cuda.py for the forward pass alone. A tensor that stays on the CPU, or a read by the host, is an
error on the meta device too.
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from var_toolkit.processes import Team
from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws, Numbers
from var_toolkit.training.state import TrainingState

META = torch.device("meta")
TOKENIZERS = ("tokenizer", "kl", "raster-tokenizer", "bits-tokenizer")
FAMILIES = (
    "var",
    "hmar",
    "hmar-mask",
    "cca",
    "flowar",
    "mar",
    "himar",
    "acdit",
    "xar",
    "ecar",
    "raster-gpt",
    *TOKENIZERS,
)


def moved(value):
    return value.to(META) if isinstance(value, torch.Tensor | torch.nn.Module) else value


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_stays_on_the_device(name, build, monkeypatch):
    objective, batch = build(name)
    for each, value in vars(objective).items():
        setattr(objective, each, moved(value))
    objective.networks = {each: network.to(META) for each, network in objective.networks.items()}
    # What torch has for accelerators alone.
    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(Draws, "numbers", lambda self, purpose: Numbers(META))
    monkeypatch.setattr(torch.optim, "AdamW", partial(without, torch.optim.AdamW, "fused"))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", partial(without, torch.nn.utils.clip_grad_norm_, "foreach"))
    state = TrainingState(objective.recipe, objective, Team(0, 1, META), steps=6)
    step = 3  # every phase is on
    terms = state.train_step(Batch(*map(moved, batch)), Draws(0, step, 0, 1, 8, META))
    assert f"grad_norm_{state.main}" in terms
    assert {value.device for value in terms.values()} == {META}
    moments = [each for one in state.optimisers.values() for optimiser in one for each in optimiser.state.values()]
    assert moments
    assert {each["exp_avg"].device for each in moments} == {META}


def without(call, setting, *args, **settings):
    settings.pop(setting)
    return call(*args, **settings)
