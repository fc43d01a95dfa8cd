"""FSDP of every objective: the losses of DDP, previews, checkpoints, and runs that go on in another way.

All runs share one pair of processes, which is most of what they cost.
"""

import json
from dataclasses import replace
from typing import get_type_hints

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from training.in_two import Planned, failure, train_each_in_two

from var_toolkit.training.registry import objective_class, objective_names

SHARDED = [name for name in objective_names() if "parallel" not in objective_class(name).refused]
TURNS = "score-distillation"
CASES = [
    pytest.param("var changed", id="var"),
    "infinity",  # cross-attention to text
    TURNS,  # two networks that take turns
    "himar bf16",  # heads in float32
    *(pytest.param(name, marks=pytest.mark.slow) for name in SHARDED if name not in ("var", "infinity", TURNS)),
    *(pytest.param(case, marks=pytest.mark.slow) for case in ("var adapter", "var saving", "infinity bf16")),
]
SAVING = {"compile": True, "checkpoint_activations": True, "accumulate": 2}
STEPS = 3


@pytest.fixture(scope="module")
def recipe(tiny, parts):
    """A recipe by the name of an objective, with FSDP."""

    def make(name, **changes):
        if "adapter" in changes:
            changes["objective_options"] = {"initial": str(parts / name)}
        # A large epsilon: Adam's first steps otherwise blow rounding differences up to whole steps.
        settings = {"optimiser": {"lr": 1e-3, "eps": 1e-3}, "schedule": {"kind": "constant", "warmup": 0.0}}
        every = {"steps": STEPS, "validate_every": STEPS, "sample_every": STEPS}
        return tiny(name, **{"parallel": "fsdp", "precision": "fp32", **settings, **every, **changes})

    return make


def plan(case, recipe, folder):
    """The runs of a case: copies, then shards; each of a kind's further names says what happens to it."""
    name, _, kind = case.partition(" ")
    changes = {"bf16": {"precision": "bf16"}, "adapter": {"adapter": {"rank": 2}}}.get(kind, {})
    shards = recipe(name, **changes)
    one, other = folder / f"{case}-copies", folder / f"{case}-shards"
    copies = replace(shards, parallel="ddp")
    yield Planned(copies, one, look=False)
    if kind == "saving":
        shards = replace(shards, **SAVING)
    yield Planned(shards, other, stop=True)
    yield Planned(shards, other)
    if kind == "changed":  # to the other way
        yield Planned(replace(shards, steps=STEPS + 1), one, look=False)
        yield Planned(replace(copies, steps=STEPS + 1), other, look=False)


@pytest.fixture(scope="module")
def runs(request, recipe, noisy_cache, tmp_path_factory):
    """The folder of the runs of all cases that are tested."""
    folder = tmp_path_factory.mktemp("runs")
    asked = {item.callspec.params["case"] for item in request.session.items if "runs" in item.fixturenames}
    planned = [run for case in sorted(asked) for run in plan(case, recipe, folder)]
    train_each_in_two(planned, noisy_cache, folder)
    return folder


def losses(out):
    assert not failure(out).exists(), failure(out).read_text()
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[1:]]
    return [row["loss"] for row in rows if "loss" in row]


def tensors(out):
    found = {path.relative_to(out): load_file(path) for path in out.glob("final/**/*.safetensors")}
    return {(str(path), name): tensor for path, file in found.items() for name, tensor in file.items()}


@pytest.mark.parametrize("case", CASES)
def test_shards_have_the_losses_and_the_weights_of_copies(case, runs):
    copies, shards = runs / f"{case}-copies", runs / f"{case}-shards"
    near = {"rtol": 0.02, "atol": 0.002} if case.endswith("bf16") else {"rtol": 1e-3, "atol": 2e-5}
    assert len(losses(copies)) >= STEPS
    assert_close(losses(shards), losses(copies), **near)
    expected, found = tensors(copies), tensors(shards)
    assert expected.keys() == found.keys()
    for key in expected:
        assert_close(found[key], expected[key], **near)
    shows = get_type_hints(objective_class(case.split()[0]).preview)["return"] is not type(None)
    assert len(list(shards.glob("samples/*"))) == shows
