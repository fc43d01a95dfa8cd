"""Models in int8 draw by every plan and are saved as such; a precision by name is chosen by the device's units."""

import json
from copy import deepcopy

import pytest
import torch
from golden.cases import fill
from PIL import Image
from small_dar import tiny_dar, tiny_flow
from small_flexvar import small_flexvar_pipe
from small_flowar import tiny_ecar, tiny_flowar, tiny_kl
from small_infinity import small_varedit, words_pipeline
from small_llamagen import tiny_gpt, tiny_gpt_config, tiny_vq
from small_mar import tiny_acdit_config, tiny_himar_config, tiny_mar, tiny_xar_config
from small_text import CHANNELS, tiny_text_gpt
from torch.testing import assert_close

from var_toolkit import devices, load, precision
from var_toolkit.cli import main
from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.core import forecast
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.loading import Drafting, code, skeleton
from var_toolkit.methods.speculative.settings import DraftModel
from var_toolkit.models.acdit import ACDiT
from var_toolkit.models.car import CAR, CARConfig
from var_toolkit.models.controlar import ControlAR, ControlARConfig
from var_toolkit.models.distilled_llamagen import DistilledRasterGPT, DistilledRasterGPTConfig
from var_toolkit.models.distilled_var import DistilledVAR, DistilledVARConfig
from var_toolkit.models.himar import HiMAR
from var_toolkit.models.layers.int8_layer import is_quantized
from var_toolkit.models.star import STAR, STARConfig
from var_toolkit.models.xar import XAR
from var_toolkit.pipeline import Pipeline
from var_toolkit.precision import precision_of
from var_toolkit.registry import families
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig

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
    "flowar": {"cfg": 2.0, "guidance_interval": (0.0, 0.4), "steps": 3},
    "llamagen": {"cfg": 2.0},
    "dar": {"cfg": 2.0},
    "llamagen-speculation": {"speculate": "draft"},
    "llamagen-jacobi": {"speculate": "jacobi"},
    "infinity": {"cfg": 3.0},
    "varedit": {"cfg": 3.0},
    "star": {"cfg": 3.0},
    "llamagen_t2i": {"cfg": 3.0},
    "car": {"cfg": 1.5},
    "controlar": {"cfg": 2.0},
    "mar": {"cfg": 2.0, "denoising_steps": 3},
    "himar": {"cfg": 2.0, "denoising_steps": 3},
    "acdit": {"cfg": 2.0, "denoising_steps": 3},
    "xar": {"cfg": 2.0, "steps": 3},
    "ecar": {"cfg": 2.0, "steps": 3},
    "distilled_var": {},
    "distilled_llamagen": {"steps": 2},
}
SIZES = {
    "depth": 2, "embed_dim": 32, "num_heads": 2, "vocab_size": 16, "latent_channels": 8, "patch_nums": (1, 2, 3),
}  # fmt: skip
IMAGE = Image.linear_gradient("L").resize((6, 6)).convert("RGB")
STUDENT = DistilledRasterGPTConfig(**vars(tiny_gpt_config()), latent_channels=4, coded=3, jumps=(4,))
CONTROLLED = ControlARConfig(
    **vars(tiny_gpt_config(depth=3)), encoder_width=16, encoder_depth=1, encoder_heads=2, encoder_side=2
)
NEAR = 0.05  # of the norm of what a network computes at its first step


def of_sizes(network: type, config: type, **more) -> Pipeline:
    """A small one of a family that draws maps of indices."""
    vq = {"z_channels": 8, "ch": 32, "ch_mult": (1, 1), "patch_nums": (1, 2, 3), "vocab_size": 16}
    return Pipeline(fill(MultiScaleVQ(MultiScaleVQConfig(**vq))), fill(network(config(**SIZES, **more))))


@pytest.fixture(params=PLANS)
def model(request, small_tokenizer, small_var, small_hmar):
    """A pipeline, and what draws an image with it or one like it."""
    made = {
        "var": lambda: Pipeline(deepcopy(small_tokenizer), deepcopy(small_var)),
        "code": lambda: code(*(Pipeline(deepcopy(small_tokenizer), deepcopy(small_var)) for _ in range(2)), 2),
        "hmar": lambda: Pipeline(deepcopy(small_tokenizer), deepcopy(small_hmar)),
        "flexvar": small_flexvar_pipe,
        "flowar": lambda: Pipeline(tiny_kl(1, 2, 4), tiny_flowar(patch_nums=(1, 2, 4))),
        "llamagen": gpt,
        "dar": lambda: Pipeline(tiny_flow(), tiny_dar()),
        "infinity": words_pipeline,
        "varedit": lambda: words_pipeline(small_varedit),
        "star": lambda: of_sizes(STAR, STARConfig, text_channels=CHANNELS),
        "llamagen_t2i": lambda: Pipeline(tiny_vq(), tiny_text_gpt()),
        "car": lambda: of_sizes(CAR, CARConfig, control_channels=(4,) * 5),
        "controlar": lambda: Pipeline(tiny_vq(), fill(ControlAR(CONTROLLED))),
        "mar": lambda: Pipeline(tiny_kl(3), tiny_mar()),
        "himar": lambda: Pipeline(tiny_kl(4, 5), fill(HiMAR(tiny_himar_config()))),
        "acdit": lambda: Pipeline(tiny_kl(4), fill(ACDiT(tiny_acdit_config()))),
        "xar": lambda: Pipeline(tiny_kl(4), fill(XAR(tiny_xar_config()))),
        "ecar": lambda: Pipeline(tiny_kl(1, 2, 4), tiny_ecar()),
        "distilled_var": lambda: of_sizes(DistilledVAR, DistilledVARConfig, coded=1, jumps=(2,)),
        "distilled_llamagen": lambda: Pipeline(tiny_vq(), fill(DistilledRasterGPT(STUDENT))),
    }
    call = {"seeds": [1], "output_type": "pt", **PLANS[request.param]}
    if request.param == "varedit":
        return made["varedit"](), lambda pipe: pipe.edit(IMAGE, instruction="red cube", **call).images
    features = torch.randn(1, 4, CHANNELS, generator=torch.Generator().manual_seed(0))
    text = PromptEmbeds(features, torch.ones(1, 4, dtype=torch.bool), features[:, 0])
    asked = {
        "infinity": {"prompt": ["red cube"]},
        "star": {"prompt_embeds": text, "negative_prompt_embeds": text},
        "llamagen_t2i": {"prompt_embeds": text},
        "car": {"class_labels": [3], "control_image": IMAGE},
        "controlar": {"class_labels": [3], "control_image": IMAGE},
    }.get(request.param, {"class_labels": [3]})
    return made[request.param.partition("-")[0]](), lambda pipe: pipe(**asked, **call).images


@pytest.fixture
def computed(monkeypatch):
    """What networks computed in each step, as it is looked through for numbers that are not finite."""
    seen, note = [], FiniteCheck.note
    monkeypatch.setattr(
        FiniteCheck, "note", lambda self, values, *rest: (seen.append(values.clone()), note(self, values, *rest))
    )
    return seen


def test_every_family_is_among_them():
    assert set(families()) <= {name.partition("-")[0] for name in PLANS}


def test_every_plan_draws_in_int8_and_a_saved_model_draws_the_same(model, computed, tmp_path):
    pipe, draw = model
    draw(pipe)
    wanted = computed[0]
    computed.clear()
    assert pipe.quantize().pack().precision == "int8"
    found = draw(pipe)
    assert found.isfinite().all()
    assert 0 < (computed[0] - wanted).norm() < NEAR * wanted.norm()
    pipe.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model", device="cpu")
    again.draft_model = pipe.draft_model
    assert again.precision == "int8"
    # Float32 products may round with the alignment of the weights, which may change a whole number in the decoder.
    assert_close(draw(again.pack()), found, atol=0.02, rtol=0)


def test_a_part_of_an_image_is_edited_in_int8(small_tokenizer, small_var):
    pipe = Pipeline(deepcopy(small_tokenizer), deepcopy(small_var)).quantize().pack()
    assert pipe.edit(torch.rand(3, 64, 64), (16, 16, 32, 32), [3], seeds=[0], output_type="pt").images.isfinite().all()


def test_logits_in_int8_are_near_those_in_float32():
    wide, pipe = load("stilllife-var", device="cpu"), load("stilllife-var", device="cpu", dtype="int8").pack()
    noisy = torch.randn(2, wide.backbone.scales.total - 1, wide.backbone.config.latent_channels)
    with torch.no_grad():
        wanted, found = (each.backbone(torch.tensor([3, 207]), noisy) for each in (wide, pipe))
    assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("saved", [torch.float32, torch.float16], ids=str)
def test_saved_in_another_dtype_the_whole_numbers_stay(saved, small_tokenizer, small_var, tmp_path):
    pipe = Pipeline(deepcopy(small_tokenizer), deepcopy(small_var)).quantize()
    pipe.save_pretrained(tmp_path / "model", saved)
    before, after = pipe.backbone.blocks[0].ffn.fc1, load(tmp_path / "model", device="cpu").backbone.blocks[0].ffn.fc1
    assert torch.equal(before.weight, after.weight)
    assert torch.equal(before.scale, after.scale)


def test_an_unknown_kind_of_quantisation_in_a_file_is_refused(small_tokenizer, small_var, tmp_path):
    Pipeline(deepcopy(small_tokenizer), deepcopy(small_var)).quantize().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "backbone" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_quantized": "int4"}))
    with pytest.raises(ValueError, match="int4"):
        load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize(
    ("units", "name"),
    [
        (["avx512_vnni", "avx512_bf16"], "bfloat16"),
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


@pytest.mark.parametrize(
    ("units", "model", "name"),
    [
        (["avx512_vnni", "avx512_bf16"], "var-d16", "int8"),
        (["avx512_vnni", "avx512_bf16"], "stilllife-var", "bfloat16"),
        (["avx512_bf16"], "var-d16", "bfloat16"),
        (["amx_bf16", "amx_int8"], "var-d16", "bfloat16"),
        (["avx_vnni"], "stilllife-var", "int8"),
        (["avx2"], "var-d16", "float32"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value,
)
def test_sizes_choose_between_int8_and_bfloat16_where_the_processor_has_both(units, model, name, monkeypatch):
    for module in (devices, precision):
        monkeypatch.setattr(module, "processor_features", lambda: frozenset(units))
    monkeypatch.setattr(precision, "has_int8_operators", lambda: True)
    networks = skeleton(model).backbones
    assert precision_of("auto", CPU, networks).name == name
    # A pair is judged by all its weights.
    assert precision_of("auto", CPU, networks * 2).name == name


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
    chosen = precision_of(dtype, CPU, skeleton("stilllife-var").backbones)
    assert told == f"{chosen.name} ({chosen.why})"


def test_the_command_draws_in_int8(tmp_path, capsys):
    asked = ["sample", "--class", "3", "--model", "stilllife-var-small", "--device", "cpu", "--dtype", "int8"]
    assert main([*asked, "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "int8"
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_a_tokenizer_alone_has_no_int8(capsys):
    assert main(["reconstruct", "missing.png", "--dtype", "int8"]) == 2
    assert "--dtype int8" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["stilllife-gpt-exit", "stilllife-gpt-eagle", "stilllife-gpt-hydra"])
def test_the_head_that_drafts_is_quantised_where_it_has_a_block(head):
    pipe = skeleton(Drafting("stilllife-gpt", head)).quantize()
    assert is_quantized(pipe.draft_model.network) == hasattr(pipe.draft_model.network, "block")
