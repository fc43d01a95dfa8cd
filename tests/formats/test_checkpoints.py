"""Which weights of a trainer's checkpoint are taken, and that nothing in a file runs."""

import datetime
import pathlib
from argparse import Namespace
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from var_toolkit.formats.checkpoints import choose
from var_toolkit.formats.weight_files import read_checkpoint, read_weights

REQUIRED = ("embed.weight", "blocks.0.fc.weight", "head.weight")
RAW = {name: torch.full((2, 2), float(i)) for i, name in enumerate((*REQUIRED, "head.bias"))}
EMA = {name: tensor + 10 for name, tensor in RAW.items()}
OTHER = {"conv.weight": torch.zeros(1)}


def under(prefix, tensors=RAW):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    "content",
    [
        RAW,
        OrderedDict(RAW),
        under("module."),
        under("_orig_mod."),
        under("_orig_mod.module."),
        under("module._orig_mod."),
        under("model."),
        {"state_dict": under("model."), "epoch": 3},
        {"state_dict": under("model.") | under("loss.discriminator.", OTHER) | {"fid.sum": torch.zeros(1)}},
        {"model_state_dict": RAW, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        {"params": RAW},
        {"generator": RAW, "discriminator": OTHER},
        {"net": {"module": under("model.")}, "steps": 5},
        {"trainer": {"vae_local": OTHER, "var_wo_ddp": RAW}},
        {"checkpoint": {"weights": {"model": under("module.")}}},
        {**RAW, **under("loss.", OTHER), "epoch": 3},
        {"model": RAW, "state_dict": dict(RAW)},
    ],
)
def test_weights_are_found_in_any_wrapper(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    same(read_weights(tmp_path / "x.pth", REQUIRED), RAW)


@pytest.mark.parametrize(
    "content",
    [
        {"ema": EMA},
        {"model": RAW, "ema": EMA},
        {"model": RAW, "model_ema": EMA},
        {"state_dict": RAW, "ema_state_dict": EMA},
        {"params": RAW, "params_ema": EMA},
        {"model": RAW, "ema": {"decay": 0.99, "shadow": EMA}},
        {"model": RAW, "ema": {"n_averaged": torch.tensor(3), **under("module.", EMA)}},
        {"model": RAW, "ema": under("ema_model.", EMA) | under("online_model.") | {"initted": torch.tensor(True)}},
        {"state_dict": under("model.") | under("ema_model.", EMA)},
        under("model.") | {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in EMA.items()},
    ],
)
def test_averaged_weights_are_taken_and_said_and_the_others_on_demand(content):
    chosen = choose(content, REQUIRED, "x.pth")
    same(chosen.tensors, EMA)
    assert "averaged" in chosen.note
    if chosen.note.count("--weights model"):
        other = choose(content, REQUIRED, "x.pth", "model")
        same(other.tensors, RAW)
        assert "not averaged" in other.note
    else:
        assert "ema" in content
        assert len(content) == 1


def test_what_is_left_out_is_counted_and_named():
    content = RAW | under("loss.discriminator.", OTHER) | under("loss.lpips.", OTHER)
    assert "2 tensors" in (note := choose(content, REQUIRED, "x.pth").note)
    assert "loss.discriminator.conv.weight" in note
    assert choose(RAW, REQUIRED, "x.pth").note is None


def test_averages_without_names_are_not_passed_over_in_silence():
    content = {"model": RAW, "ema": {"shadow_params": list(EMA.values()), "decay": 0.9}}
    chosen = choose(content, REQUIRED, "x.pth")
    same(chosen.tensors, RAW)
    assert "ema.shadow_params" in chosen.note
    with pytest.raises(ValueError, match=r"--weights ema: x\.pth.*ema\.shadow_params.*model"):
        choose(content, REQUIRED, "x.pth", "ema")


def test_a_choice_that_is_not_there_or_not_clear_is_refused_with_what_is_there():
    with pytest.raises(ValueError, match=r"--weights ema: x\.pth.*model"):
        choose({"model": RAW}, REQUIRED, "x.pth", "ema")
    two = {"ema_fast": EMA, "ema_slow": RAW}
    with pytest.raises(ValueError, match=r"x\.pth.*ema_fast, ema_slow.*--weights"):
        choose(two, REQUIRED, "x.pth")
    same(choose(two, REQUIRED, "x.pth", "ema_slow").tensors, RAW)


def test_notes_of_trainers_beside_weights_are_read(tmp_path):
    beside = {
        "args": Namespace(lr=1.0, device=torch.device("cpu"), root=pathlib.Path("/data"), more=SimpleNamespace(a=1)),
        "best_fid": np.float64(3.5),
        "best": np.float32(1),
        "history": np.arange(3),
        "when": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "size": torch.Size([2]),
        "dtype": torch.bfloat16,
        "set": {1, 2},
    }
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"model": RAW, **beside}, tmp_path / "x.pth", **options)
        same(read_weights(tmp_path / "x.pth", REQUIRED), RAW)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch evil-was-here",)


class Unknown:
    pass


@pytest.mark.parametrize(
    ("thing", "kind"), [(Evil(), "system"), (Unknown(), "Unknown"), (np.array([Evil()]), "system")]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_that_could_run_code_are_refused_by_their_class(thing, kind, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": RAW, "args": thing}, "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"x\.pth.*class \S*{kind}.*could run code"):
        read_weights("x.pth", REQUIRED)
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(dtype, tmp_path):
    torch.save({name: tensor.to(dtype) for name, tensor in RAW.items()}, tmp_path / "x.pth")
    same({name: t.float() for name, t in read_weights(tmp_path / "x.pth", REQUIRED).items()}, RAW)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(2).to_sparse(),
        torch.eye(2).to_sparse_csr(),
        torch.eye(2, device="meta"),
        torch.eye(2).to(torch.float8_e4m3fn),
        torch.eye(2, dtype=torch.complex64),
    ],
    ids=["sparse", "csr", "meta", "float8", "complex"],
)
def test_tensors_that_are_not_plain_numbers_are_refused_by_name(tensor, tmp_path):
    torch.save({**RAW, "head.weight": tensor}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: head\.weight"):
        read_checkpoint(tmp_path / "x.pth", REQUIRED)
