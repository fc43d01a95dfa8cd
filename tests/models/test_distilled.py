"""The students of Distilled Decoding give what the published code gives: in one pass, in steps, around the teacher."""

import json
from functools import cache

import pytest
import torch
from golden.cases import Case, load_case
from golden.recipe import fill_
from safetensors.torch import load_file
from torch.testing import assert_close

from var_toolkit.cli import main
from var_toolkit.core.bind import bind
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import BACKBONE, Plan, plan_of
from var_toolkit.formats.published import backbone_from_tensors
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.one_shot import OneShot
from var_toolkit.loading import load, skeleton
from var_toolkit.methods.collaborative import collaborative
from var_toolkit.methods.distilled import in_steps, with_teacher
from var_toolkit.models.distilled_llamagen import DistilledRasterGPT, DistilledRasterGPTConfig
from var_toolkit.models.distilled_var import DistilledVAR, DistilledVARConfig
from var_toolkit.models.llamagen import RasterGPT, RasterGPTConfig
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.registry import entry, family
from var_toolkit.tokenizers.raster_vq import RasterVQ, RasterVQConfig

VAR_CASE, GPT_CASE = load_case("dd1-var"), load_case("dd1-llamagen")
NAMES = ["dd-var-d16", "dd-var-d20", "dd-var-d24", "dd-llamagen-b", "dd-llamagen-l"]
VAR_RUNS = [name for name, told in VAR_CASE.facts["runs"].items() if "t_list" in told]


class GivenNoise(Noise):
    """The noise of a case. Nothing else is random there: the teachers are greedy."""

    def __init__(self, noise):
        super().__init__(range(len(noise)))
        self.noise = noise

    def normal(self, stream, position, tokens, width):
        return self.noise[:, position : position + tokens]


def weights(case: Case, part: str) -> dict[str, torch.Tensor]:
    """The published state dict of a part, filled by the recipe of the case."""
    told = case.facts["weights"]
    own = told["models"][part]
    tensors = fill_(
        {name: torch.zeros(shape) for name, shape in own["state_dict"].items()}, own.get("salt", told["salt"])
    )
    if "lvl_1L" in tensors:  # in the student's file the class is a level of its own
        sides = case.facts["config"]["patch_nums"]
        sides = sides if part == "teacher" else [1, *sides]
        tensors["lvl_1L"] = torch.cat([torch.full((side * side,), k) for k, side in enumerate(sides)])[None]
    return tensors


@cache
def of_var():
    """Student, teacher and tokenizer of VAR's case."""
    patch_nums = tuple(VAR_CASE.facts["config"]["patch_nums"])
    student = backbone_from_tensors("distilled_var", weights(VAR_CASE, "dd"), {}, "var.pth")
    teacher = backbone_from_tensors("var", weights(VAR_CASE, "teacher"), {}, "var_d16.pth")
    return student, teacher, family("var").tokenizer.read(weights(VAR_CASE, "vae"), {}, patch_nums, "vae.pth")


def gpt_sizes() -> dict:
    """The sizes of the case that no tensor determines."""
    c = GPT_CASE.facts["config"]
    return {"num_heads": c["n_head"], "side": round(c["block_size"] ** 0.5)}


@cache
def of_gpt():
    """Student, teacher and a tokenizer with the codebook of LlamaGen's case."""
    sizes = gpt_sizes()
    student = backbone_from_tensors("distilled_llamagen", weights(GPT_CASE, "dd"), sizes, "llamagen-B.pt")
    teacher = backbone_from_tensors("llamagen", weights(GPT_CASE, "teacher"), sizes, "c2i_B.pt")
    vocabulary, channels = GPT_CASE.tensors["codebook"].shape
    shape = {"vocab_size": vocabulary, "code_dim": channels, "side": sizes["side"], "ch": 32, "ch_mult": (1,)}
    tokenizer = RasterVQ(RasterVQConfig(**shape)).eval()
    tokenizer.quantize.embedding.weight.data.copy_(GPT_CASE.tensors["codebook"])
    return student, teacher, tokenizer


def drawn(case: Case, plan: Plan, networks, tokenizer, monkeypatch):
    """What a plan draws with the noise of the case, the codes of all tokens, and the teacher's logits by step."""
    logits, codes, filtered = [], [], Categorical.filtered
    monkeypatch.setattr(Categorical, "filtered", lambda head, found: logits.append(found) or filtered(head, found))
    pyramid = type(tokenizer.pyramid_of(plan.schedule))
    grow = pyramid.grow
    monkeypatch.setattr(
        pyramid, "grow", lambda self, latent, own, scale: codes.append(own) or grow(self, latent, own, scale)
    )
    run = bind(plan, networks, tokenizer)
    found = decode(run, case.tensors["labels"], GivenNoise(case.tensors["noise"]))
    return found, torch.cat(codes, dim=1), logits


def student_plan(student, told: dict, coded: str = "split") -> Plan:
    """The plan of a run of a case, whatever its steps are."""
    student = type(student)(student.config.__class__(**{**vars(student.config), "jumps": tuple(told["t_list"][1:])}))
    return in_steps(plan_of(student), student, len(told["t_list"]), told[coded])


def check(case: Case, found: torch.Tensor, name: str, told: str) -> None:
    assert_close(found, case.tensors[name], atol=case.facts["tolerance"][told], rtol=0)


@torch.no_grad()
def test_both_outputs_of_vars_student_are_published():
    student, _, tokenizer = of_var()
    tensors, offsets = VAR_CASE.tensors, torch.tensor(student.scales.offsets)
    kept = offsets[tensors["fw_t"]]
    data = tokenizer.quantize.embed(tensors["data_idx"])
    x = torch.where(torch.arange(data.shape[1])[None, :, None] < kept[:, None, None], data, tensors["noise"])
    check(VAR_CASE, x, "fw_x", "fw_conti")
    conti, logits = student(tensors["labels"], x, kept)
    check(VAR_CASE, conti, "fw_conti", "fw_conti")
    check(VAR_CASE, logits, "fw_logits", "fw_logits")


@pytest.mark.parametrize("run", VAR_RUNS)
def test_steps_of_vars_student_are_published(run, monkeypatch):
    student, _, tokenizer = of_var()
    told = VAR_CASE.facts["runs"][run]
    found, codes, _ = drawn(VAR_CASE, student_plan(student, told), {BACKBONE: student}, tokenizer, monkeypatch)
    last = len(told["t_list"]) - 1
    check(VAR_CASE, codes, f"{run}_seq_{last}", "*_seq_*")
    assert found.forward_passes == len(told["t_list"])
    if f"{run}_f_hat" in VAR_CASE.tensors:
        check(VAR_CASE, found.latent, f"{run}_f_hat", "*_f_hat")
    if f"{run}_image_0" in VAR_CASE.tensors:
        image = tokenizer.decode(found.latent)[:1] / 2 + 0.5
        check(VAR_CASE, image, f"{run}_image_0", "*_image_0")


def test_vars_teacher_in_the_middle_is_published(monkeypatch):
    student, teacher, tokenizer = of_var()
    told = VAR_CASE.facts["runs"]["mid"]
    first, end = told["teacher_start"], told["teacher_end"]
    plan = student_plan(student, {"t_list": [0, end] if end < len(student.scales) else [0], "split": told["split"]})
    own = plan_of(teacher, guidance=told["cfg"], head=Categorical(top_k=told["top_k"]))
    middle = with_teacher(plan, own, first=first)
    networks = {BACKBONE: student, "refiner": teacher}
    found, codes, logits = drawn(VAR_CASE, middle, networks, tokenizer, monkeypatch)
    offsets = student.scales.offsets
    assert torch.equal(found.tokens[0], VAR_CASE.tensors["mid_idx_0"][:, :1])
    for scale, scores in zip(range(first, end), logits, strict=True):
        check(VAR_CASE, scores, f"mid_teacher_logits_{scale}", "mid_teacher_logits_*")
    assert torch.equal(torch.cat(found.tokens[first:end], dim=1), VAR_CASE.tensors["mid_teacher_idx"])
    check(VAR_CASE, codes[:, : offsets[end]], "mid_seq_1", "*_seq_*")
    check(VAR_CASE, codes, "mid_seq_2", "*_seq_*")


@torch.no_grad()
def test_both_outputs_of_llamagens_student_are_published():
    student, _, tokenizer = of_gpt()
    tensors = GPT_CASE.tensors
    data, kept = tokenizer.quantize.embed(tensors["data_idx"]), tensors["fw_t"]
    x = torch.where(torch.arange(data.shape[1])[None, :, None] < kept[:, None, None], data, tensors["noise"])
    check(GPT_CASE, x, "fw_x", "fw_conti")
    conti, logits = student(tensors["labels"], x, kept)
    check(GPT_CASE, conti, "fw_conti", "fw_conti")
    check(GPT_CASE, logits, "fw_logits", "fw_logits")


def test_steps_of_llamagens_student_are_published(monkeypatch):
    student, _, tokenizer = of_gpt()
    told = GPT_CASE.facts["runs"]["few"]
    for steps in range(1, 1 + len(told["t_list"])):
        plan = student_plan(student, told | {"t_list": told["t_list"][:steps]})
        _, codes, _ = drawn(GPT_CASE, plan, {BACKBONE: student}, tokenizer, monkeypatch)
        check(GPT_CASE, codes, f"seq_{steps - 1}", "seq_*")
        monkeypatch.undo()


def test_llamagens_teacher_in_the_middle_is_published(monkeypatch):
    student, teacher, tokenizer = of_gpt()
    told = GPT_CASE.facts["runs"]["mid"]
    first, end = told["teacher_start"], told["teacher_end"]
    head = Categorical(top_k=told["top_k"], temperature_first=True)
    own = plan_of(teacher, guidance=told["cfg_scale"] - 1, head=head)
    plan = with_teacher(student_plan(student, {"t_list": [0, end], "split": told["split"]}), own, first=first)
    networks = {BACKBONE: student, "refiner": teacher}
    found, codes, logits = drawn(GPT_CASE, plan, networks, tokenizer, monkeypatch)
    assert torch.equal(found.tokens[0][:, :first], GPT_CASE.tensors["mid_prefix"])
    check(GPT_CASE, torch.cat(logits, dim=1), "mid_teacher_logits", "mid_teacher_logits")
    assert torch.equal(found.tokens[0][:, :end], GPT_CASE.tensors["mid_idx"])
    check(GPT_CASE, codes, "mid_seq", "mid_seq")
    assert found.forward_passes == 2 + end - first


@pytest.mark.parametrize("name", NAMES)
def test_published_models_have_the_published_sizes(name):
    found = skeleton(name)
    parameters = sum(parameter.numel() for parameter in found.backbone.parameters())
    assert parameters == pytest.approx(entry(name).source.parameters, rel=0.01)
    assert len(found.plan().steps) == 2
    run = found.bind(found.plan(steps=1))
    assert run.cost().forward_passes == 1
    assert run.cost().cache_values == 0


def test_published_files_become_a_model_that_draws_in_one_step_and_two(tmp_path, capsys):
    torch.save(weights(VAR_CASE, "vae"), tmp_path / "vae.pth")
    averaged = {"trainer": {"ema_parameters": weights(VAR_CASE, "dd"), "var_wo_ddp": weights(VAR_CASE, "dd")}}
    torch.save(averaged, tmp_path / "var-d16.pth")
    files = ["--tokenizer", str(tmp_path / "vae.pth"), "--backbone", str(tmp_path / "var-d16.pth")]
    assert main(["convert", "--family", "distilled_var", *files, "--out", str(tmp_path / "model")]) == 0
    asked = ["sample", "--model", str(tmp_path / "model"), "--class", "3", "--seed", "1", "--device", "cpu"]
    found = {}
    for steps in ("1", "2"):
        tokens = tmp_path / f"{steps}.safetensors"
        out = ["--save-tokens", str(tokens), "--out", str(tmp_path / f"{steps}.png")]
        assert main([*asked, "--steps", steps, *out]) == 0
        found[steps] = load_file(tokens)
    begin = load(tmp_path / "model").backbone.config.jumps[0]
    for scale in range(begin):  # what the second step keeps
        assert torch.equal(found["1"][f"scale_{scale}"], found["2"][f"scale_{scale}"])
    assert any(not torch.equal(found["1"][name], found["2"][name]) for name in found["1"])
    capsys.readouterr()
    assert main([*asked, "--steps", "2", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["forward_passes_per_batch"] == 2


def tiny_var(**changes) -> tuple[DistilledVAR, VAR]:
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5, "vocab_size": 16, "latent_channels": 4}
    sizes |= {"patch_nums": (1, 2, 3), **changes}
    torch.manual_seed(0)
    teacher = VAR(VARConfig(**sizes)).eval()
    teacher.init_weights()
    student = DistilledVAR(DistilledVARConfig(**sizes, coded=2, jumps=(2,))).eval()
    student.start_from_teacher(teacher)
    return student, teacher


def test_a_student_starts_with_its_teachers_weights():
    student, teacher = tiny_var(shared_aln=True)
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert torch.equal(ours["blocks.1.attn.mat_qkv.weight"], theirs["blocks.1.attn.mat_qkv.weight"])
    assert torch.equal(ours["pos_1LC"][:, 2:], theirs["pos_1LC"][:, 1:])
    assert torch.equal(ours["lvl_embed.weight"][[0, 2, 3]], theirs["lvl_embed.weight"])
    assert torch.equal(ours["class_emb.weight"], theirs["class_emb.weight"])
    gpt = RasterGPTConfig(depth=1, embed_dim=32, num_heads=2, vocab_size=16, side=3, num_classes=5)
    raster = RasterGPT(gpt)
    raster.init_weights()
    other = DistilledRasterGPT(DistilledRasterGPTConfig(**vars(gpt), latent_channels=4, coded=4, jumps=(4,)))
    other.start_from_teacher(raster)
    assert torch.equal(other.layers[0].attention.wqkv.weight, raster.layers[0].attention.wqkv.weight)
    assert all(parameter.isfinite().all() for parameter in other.parameters())


def test_the_teacher_may_also_draw_first_and_the_student_the_rest():
    student, teacher = tiny_var()
    plan = collaborative(plan_of(teacher), in_steps(plan_of(student), student, 2), draft_scales=2)
    assert [type(step.places).__name__ for step in plan.steps] == ["Scale", "Scale", "Together"]
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"steps": 3}, "steps"), ({"cfg": 2.0}, "cfg"), ({"top_k": 5}, "top_k"), ({"coded": 11}, "coded")],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_a_student_cannot_do_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        skeleton("dd-var-d16").plan(**settings)


@pytest.mark.parametrize("settings", [{"coded": 2}, {"steps": 2}])
def test_what_only_a_student_can_do_is_refused_of_others(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        skeleton("var-d16").plan(**settings)


def test_a_head_refuses_a_negative_number_of_codes():
    with pytest.raises(ValueError, match="coded"):
        OneShot(coded=-1)


@pytest.mark.parametrize("changes", [{"coded": 4}, {"jumps": (0,)}, {"jumps": (3,)}, {"jumps": (2, 1)}], ids=str)
def test_steps_outside_of_the_image_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        DistilledVARConfig(patch_nums=(1, 2, 3), **({"coded": 2, "jumps": (2,)} | changes))
    tokens = {name: tuple(5 * v for v in value) if isinstance(value, tuple) else 10 for name, value in changes.items()}
    with pytest.raises(ValueError, match=next(iter(changes))):
        DistilledRasterGPTConfig(side=3, **({"coded": 2, "jumps": (2,)} | tokens))
