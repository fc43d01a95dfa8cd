"""Models in int8 draw by every plan and are saved as such; a precision by name is settled by the device's units."""

import json
from copy import deepcopy

import pytest
import torch
from small_flexvar import small_flexvar_pipe
from small_flowar import tiny_flowar, tiny_kl
from small_infinity import words_pipeline
from small_llamagen import tiny_gpt, tiny_vq

from var_toolkit import devices, load, precision
from var_toolkit.cli import main
from var_toolkit.core import forecast
from var_toolkit.loading import Drafting, code, skeleton
from var_toolkit.methods.speculative.settings import DraftModel
from var_toolkit.models.layers.int8_linear import is_quantized
from var_toolkit.pipeline import Pipeline
from var_toolkit.precision import precision_of

CPU = torch.device("cpu")


def gpt() -> Pipeline:
    draft = DraftModel(tiny_gpt(depth=1), "small", tokenizer=tiny_vq())
    return Pipeline(tiny_vq(), tiny_gpt(), draft_model=draft)


PLANS = {
    "var": {"cfg": 1.5},
    "var-variant": {"subnet": 2, "full_scales": 2},
    "code": {},
    "hmar": {"cfg": 1.0},
    "flexvar": {},
    "flowar": {"cfg": 2.0, "guidance_interval": (0.0, 0.4)},
    "gpt": {"cfg": 2.0},
    "gpt-speculation": {"speculate": "draft"},
    "gpt-jacobi": {"speculate": "jacobi"},
    "infinity": {"cfg": 3.0},
}


@pytest.fixture(params=PLANS)
def quantized(request, small_tokenizer, small_var, small_hmar):
    """A quantised pipeline, and the keywords of a call of it."""
    made = {
        "var": lambda: Pipeline(small_tokenizer, deepcopy(small_var)),
        "code": lambda: code(*(Pipeline(small_tokenizer, deepcopy(small_var)) for _ in range(2)), 2),
        "hmar": lambda: Pipeline(small_tokenizer, deepcopy(small_hmar)),
        "flexvar": small_flexvar_pipe,
        "flowar": lambda: Pipeline(tiny_kl(1, 2, 4), tiny_flowar(patch_nums=(1, 2, 4))),
        "gpt": gpt,
        "infinity": words_pipeline,
    }
    pipe = made[request.param.partition("-")[0]]().quantize().pack()
    what = {"prompt": ["red cube"]} if pipe.text is not None else {"class_labels": [3]}
    return pipe, {**what, "seeds": [1], "output_type": "pt", **PLANS[request.param]}


def test_every_plan_draws_in_int8_and_a_saved_model_draws_the_same(quantized, tmp_path):
    pipe, call = quantized
    assert pipe.precision == "int8"
    found = pipe(**call).images
    assert found.isfinite().all()
    pipe.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model", device="cpu")
    again.draft_model = pipe.draft_model
    assert again.precision == "int8"
    assert torch.equal(again.pack()(**call).images, found)


def test_a_part_of_an_image_is_edited_in_int8(small_tokenizer, small_var):
    pipe = Pipeline(small_tokenizer, deepcopy(small_var)).quantize().pack()
    assert pipe.edit(torch.rand(3, 64, 64), (16, 16, 32, 32), [3], seeds=[0], output_type="pt").images.isfinite().all()


def test_logits_in_int8_are_near_those_in_float32():
    wide, pipe = load("stilllife-var", device="cpu"), load("stilllife-var", device="cpu", dtype="int8").pack()
    noisy = torch.randn(2, wide.backbone.scales.total - 1, wide.backbone.config.latent_channels)
    with torch.no_grad():
        wanted, found = (each.backbone(torch.tensor([3, 207]), noisy) for each in (wide, pipe))
    assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("saved", [torch.float32, torch.float16], ids=str)
def test_saved_in_another_dtype_the_whole_numbers_stay(saved, small_tokenizer, small_var, tmp_path):
    pipe = Pipeline(small_tokenizer, deepcopy(small_var)).quantize()
    pipe.save_pretrained(tmp_path / "model", saved)
    before, after = pipe.backbone.blocks[0].ffn.fc1, load(tmp_path / "model", device="cpu").backbone.blocks[0].ffn.fc1
    assert torch.equal(before.weight, after.weight)
    assert torch.equal(before.scale, after.scale)


def test_an_unknown_kind_of_quantisation_in_a_file_is_refused(small_tokenizer, small_var, tmp_path):
    Pipeline(small_tokenizer, deepcopy(small_var)).quantize().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "backbone" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_quantized": "int4"}))
    with pytest.raises(ValueError, match="int4"):
        load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize(
    ("units", "name"),
    [
        (["avx512_vnni", "avx512_bf16"], "int8"),
        (["avx_vnni"], "int8"),
        (["amx_bf16"], "bfloat16"),
        (["avx2"], "float32"),
        ([], "float32"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value,
)
def test_units_of_the_processor_choose_the_fastest(units, name, monkeypatch):
    for module in (devices, precision):
        monkeypatch.setattr(module, "processor_features", lambda: frozenset(units))
    monkeypatch.setattr(precision, "has_int8_operators", lambda: True)
    assert precision_of("auto", CPU).name == name
    monkeypatch.setattr(precision, "has_int8_operators", lambda: False)
    assert precision_of("auto", CPU).name != "int8"


@pytest.mark.parametrize(("units", "name"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_with_bfloat16_units_uses_them(units, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: units)
    assert precision_of("auto", torch.device("cuda")).name == name
    assert precision_of("int8", torch.device("cuda")).wide == torch.bfloat16


@pytest.mark.parametrize(
    ("wanted", "device", "named"), [("int4", "cpu", "int4"), (torch.int16, "cpu", "int16"), ("int8", "mps", "mps")]
)
def test_what_cannot_be_is_refused_by_name(wanted, device, named):
    with pytest.raises(ValueError, match=named):
        precision_of(wanted, torch.device(device))


@pytest.mark.parametrize("dtype", ["float32", "int8", "auto"])
def test_a_dry_run_says_what_was_chosen_and_why(dtype, monkeypatch, capsys):
    monkeypatch.setattr(forecast, "_speed", lambda dtype: 1e9)
    asked = ["sample", "--class", "3", "--device", "cpu", "--dtype", dtype, "--dry-run", "--json"]
    assert main(asked) == 0
    told = json.loads(capsys.readouterr().out)["precision"]
    assert told.startswith(precision_of(dtype, CPU).name)
    assert precision_of(dtype, CPU).why in told


def test_the_command_draws_in_int8(tmp_path, capsys):
    asked = ["sample", "--class", "3", "--model", "stilllife-var-small", "--device", "cpu", "--dtype", "int8"]
    assert main([*asked, "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "int8"
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_a_tokenizer_alone_has_no_int8(capsys):
    assert main(["reconstruct", "missing.png", "--dtype", "int8"]) == 2
    assert "--dtype int8" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["stilllife-gpt-exit", "stilllife-gpt-eagle"])
def test_the_head_that_drafts_is_quantised_where_it_has_a_block(head):
    pipe = skeleton(Drafting("stilllife-gpt", head)).quantize()
    assert is_quantized(pipe.draft_model.network) == hasattr(pipe.draft_model.network, "block")
