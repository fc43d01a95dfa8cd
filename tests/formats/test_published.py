"""Published files become our networks: converted, checked, saved and loaded whole."""

import json
import pickle

import pytest
import torch
from golden.cases import FOLDER, load_case
from safetensors.torch import save_file

from var_toolkit.cli import main
from var_toolkit.formats.published import networks_from_tensors
from var_toolkit.loading import load, skeleton
from var_toolkit.registry import entry


@pytest.fixture(scope="module")
def published(tmp_path_factory, small_tokenizer, small_var):
    """The golden networks as published files: state dicts with the published buffers, pickled."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(small_tokenizer.state_dict(), folder / "vae.pth")
    buffers = {
        "lvl_1L": small_var.scales.level_ids()[None],
        "attn_bias_for_masking": torch.zeros(1, 1, 30, 30),
        "blocks.0.attn.zero_k_bias": torch.zeros(256),
    }
    torch.save({**small_var.state_dict(), **buffers}, folder / "var.pth")
    return folder


def convert(folder, out, *more) -> int:
    files = ["--tokenizer", str(folder / "vae.pth"), "--backbone", str(folder / "var.pth")]
    return main(["convert", "--family", "var", *files, "--out", str(out), *more])


def test_converted_files_draw_the_published_tokens_from_the_command_line(published, tmp_path, capsys):
    assert convert(published, tmp_path / "model") == 0
    tokens = tmp_path / "tokens.safetensors"
    settings = ["--class", "3", "7", "--top-k", "1", "--top-p", "0", "--cfg", "4", "--out", str(tmp_path)]
    status = main(["sample", "--model", str(tmp_path / "model"), *settings, "--save-tokens", str(tokens)])
    assert status == 0
    from safetensors.torch import load_file

    case, saved = load_case("var-small"), load_file(tokens)
    for k in range(4):
        assert torch.equal(saved[f"scale_{k}"], case.tensors[f"cfg4_idx_{k}"])
    torch.testing.assert_close(saved["latent"], case.tensors["cfg4_f_hat"][-1], atol=5e-6, rtol=0)


def test_sizes_are_read_from_the_tensors(published, tmp_path, small_var, small_tokenizer):
    convert(published, tmp_path / "model")
    pipe = load(tmp_path / "model", device="cpu")
    assert pipe.backbone.config == small_var.config
    assert pipe.tokenizer.config == small_tokenizer.config


def test_saving_and_loading_gives_the_same_bits(published, tmp_path):
    convert(published, tmp_path / "one")
    pipe = load(tmp_path / "one", device="cpu")
    pipe.save_pretrained(tmp_path / "two")
    again = load(tmp_path / "two", device="cpu")
    for network in ("tokenizer", "backbone"):
        for name, tensor in getattr(pipe, network).state_dict().items():
            assert torch.equal(tensor, getattr(again, network).state_dict()[name]), name


def test_a_model_directory_has_the_diffusers_layout(published, tmp_path):
    convert(published, tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["backbone"] == ["var_toolkit", "VAR"]
    for part in ("tokenizer", "backbone"):
        assert (tmp_path / "model" / part / "config.json").is_file()
        assert (tmp_path / "model" / part / "diffusion_pytorch_model.safetensors").is_file()


def test_safetensors_files_and_the_golden_config_are_taken(published, tmp_path, small_tokenizer, small_var):
    save_file({k: v.contiguous() for k, v in small_tokenizer.state_dict().items()}, tmp_path / "vae.safetensors")
    save_file(small_var.state_dict(), tmp_path / "var.safetensors")
    facts = load_case("var-small").facts["config"]
    (tmp_path / "config.json").write_text(json.dumps({"tokenizer": facts["vae"], "backbone": facts["var"]}))
    files = ["--tokenizer", str(tmp_path / "vae.safetensors"), "--backbone", str(tmp_path / "var.safetensors")]
    more = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "model")]
    assert main(["convert", "--family", "var", *files, *more]) == 0
    assert load(tmp_path / "model", device="cpu").backbone.config == small_var.config


def test_a_checkpoint_of_the_published_training_script_is_unwrapped(published, tmp_path):
    for name, part in (("vae.pth", "vae_local"), ("var.pth", "var_wo_ddp")):
        torch.save({"trainer": {part: torch.load(published / name, weights_only=True)}}, tmp_path / name)
    assert convert(tmp_path, tmp_path / "model") == 0


def test_a_tokenizer_with_counts_of_another_schedule_is_taken(small_tokenizer, small_var):
    tensors = small_tokenizer.state_dict()
    tensors["quantize.ema_vocab_hit_SV"] = torch.ones(7, 64)
    config = {"backbone": {"patch_nums": [1, 2, 3, 4]}}
    files = {"backbone": small_var.state_dict(), "tokenizer": tensors}
    networks = networks_from_tensors("var", files, config, {"tokenizer": "vae", "backbone": "var"})
    assert networks["tokenizer"].quantize.ema_vocab_hit_SV.shape == (4, 64)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch evil-was-here",)


def damaged(name, published, tmp_path):
    """A file that must be refused, in place of the backbone."""
    target = tmp_path / "var.pth"
    good = torch.load(published / "var.pth", weights_only=True)
    if name == "code":
        target.write_bytes(pickle.dumps({"word_embed.weight": Evil()}))
    elif name == "code-in-zip":
        torch.save({"word_embed.weight": Evil()}, target)
    elif name == "truncated":
        target.write_bytes((published / "var.pth").read_bytes()[:200_000])
    elif name == "text":
        target.write_text("not a checkpoint")
    elif name == "empty":
        target.write_bytes(b"")
    elif name == "list":
        torch.save([torch.zeros(3)], target)
    elif name == "shape":
        torch.save({**good, "head.bias": torch.zeros(65)}, target)
    elif name == "nan":
        torch.save({**good, "head.bias": torch.full((64,), torch.nan)}, target)
    elif name == "missing":
        torch.save({k: v for k, v in good.items() if k != "blocks.2.ffn.fc1.weight"}, target)
    elif name == "integers":
        torch.save({**good, "head.bias": torch.zeros(64, dtype=torch.int64)}, target)
    elif name == "flat":
        torch.save({**good, "blocks.0.attn.scale_mul_1H11": torch.zeros(4)}, target)
    elif name == "scrambled":
        torch.save(good, target, _use_new_zipfile_serialization=False)
        target.write_bytes(target.read_bytes()[:3000] + b"\x00" * 3000)
    elif name == "tokenizer":
        torch.save(torch.load(published / "vae.pth", weights_only=True), target)
    return target


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("code", "could run code; refused"),
        ("code-in-zip", "could run code; refused"),
        ("truncated", "cut short"),
        ("text", "not a checkpoint"),
        ("empty", "empty"),
        ("list", "holds no state dict"),
        ("shape", "head.bias has shape (65,), its configuration asks for (64,)"),
        ("nan", "head.bias holds values that are not finite"),
        ("missing", "lacks 'blocks.2.ffn.fc1.weight'"),
        ("tokenizer", "not a published file of this kind"),
        ("integers", "head.bias is torch.int64"),
        ("flat", "missing or misshapen tensors"),
        ("scrambled", "damaged"),
    ],
)
def test_files_that_cannot_be_trusted_are_refused_in_one_line(name, words, published, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = damaged(name, published, tmp_path)
    out = tmp_path / "model"
    files = ["--tokenizer", str(published / "vae.pth"), "--backbone", str(target)]
    assert main(["convert", "--family", "var", *files, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(target) in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert not (tmp_path / "evil-was-here").exists()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"backbone": {"depth": 5}}, "says depth is 5; the tensors say 4"),
        ({"backbone": {"dept": 4}}, "unknown field 'dept'"),
        ({"tokeniser": {}}, "'tokeniser'"),
        ({"tokenizer": {"vocab_size": 65}}, "says vocab_size is 65"),
        ([], "config.json holds list"),
    ],
)
def test_a_configuration_that_disagrees_is_refused_by_name(config, words, published, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert convert(published, tmp_path / "model", "--config", str(tmp_path / "config.json")) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("backbone/config.json", {"depth": 2.5}, "depth"),
        ("backbone/config.json", {"depht": 4}, "unknown key 'depht'"),
        ("tokenizer/config.json", {"quant_resi": "x"}, "quant_resi"),
        ("tokenizer/config.json", {"_class_name": "Other"}, "_class_name is 'Other'"),
        ("model_index.json", {"_sampling": {"top_k": "many"}}, "top_k"),
        ("model_index.json", {"_sampling": [1]}, "_sampling"),
    ],
)
def test_a_model_directory_with_a_wrong_value_is_refused_by_name(file, change, words, published, tmp_path, capsys):
    convert(published, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    capsys.readouterr()
    assert main(["sample", "--class", "1", "--model", str(tmp_path / "model"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_weights_are_as_readable_as_other_files(published, tmp_path):
    convert(published, tmp_path / "model")
    weights = tmp_path / "model" / "backbone" / "diffusion_pytorch_model.safetensors"
    (tmp_path / "plain").write_text("")
    assert weights.stat().st_mode & 0o777 == (tmp_path / "plain").stat().st_mode & 0o777


def test_an_existing_directory_is_not_overwritten(published, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("precious")
    assert convert(published, tmp_path / "model") == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "model" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("part", ["tokenizer", "backbone", "model_index.json", "backbone/config.json"])
def test_a_model_directory_that_misses_a_part_is_refused_by_name(part, published, tmp_path, capsys):
    convert(published, tmp_path / "model")
    target = tmp_path / "model" / part
    target.rename(tmp_path / "elsewhere")
    assert main(["sample", "--class", "1", "--model", str(tmp_path / "model"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert part.rsplit("/", 1)[-1] in error
    assert error.count("\n") == 1


def test_files_of_hmar_become_a_model_that_draws_the_published_tokens(tmp_path, small_tokenizer, small_hmar):
    torch.save(small_tokenizer.state_dict(), tmp_path / "vae.pth")
    buffers = {
        "lvl_1L": small_hmar.scales.level_ids()[None],
        "attn_bias_for_masking": torch.zeros(1, 1, 30, 30),
        "mask_blocks.1.attn.zero_k_bias": torch.zeros(256),
    }
    torch.save({**small_hmar.state_dict(), **buffers}, tmp_path / "hmar.pth")
    files = ["--tokenizer", str(tmp_path / "vae.pth"), "--backbone", str(tmp_path / "hmar.pth")]
    assert main(["convert", "--family", "hmar", *files, "--out", str(tmp_path / "model")]) == 0
    pipe, tokens = load(tmp_path / "model", device="cpu"), tmp_path / "tokens.safetensors"
    assert pipe.backbone.config == small_hmar.config
    assert (pipe.sampling.cfg, pipe.sampling.top_k, pipe.sampling.refine) == (1.7, 1000, "published")
    case = load_case("hmar-generate-mask")
    cfg = str(case.facts["sampling"]["cfg"])
    labels = map(str, case.tensors["label"].tolist())
    settings = ["--class", *labels, "--top-k", "1", "--top-p", "0", "--cfg", cfg, "--refine", "1;1,3;1,1,2,5;16"]
    out = ["--out", str(tmp_path), "--save-tokens", str(tokens)]
    assert main(["sample", "--model", str(tmp_path / "model"), *settings, *out]) == 0
    from safetensors.torch import load_file

    for k, expected in enumerate(case.maps("tokens")):
        assert torch.equal(load_file(tokens)[f"scale_{k}"], expected)


def test_a_file_of_another_family_is_refused_by_what_it_lacks(published, tmp_path, capsys):
    files = ["--tokenizer", str(published / "vae.pth"), "--backbone", str(published / "var.pth")]
    assert main(["convert", "--family", "hmar", *files, "--out", str(tmp_path / "model")]) == 2
    assert "lacks 'ns_head.weight'" in capsys.readouterr().err


@pytest.mark.parametrize("depth", [16, 20, 24, 30])
def test_the_settings_of_hmar_are_those_of_its_evaluation(depth):
    facts = json.loads((FOLDER / "hmar-published-settings" / "case.json").read_text())
    published = facts["sampling"]["by_depth_evaluate"][f"d{depth}"]
    ours = entry(f"hmar-d{depth}").sampling
    assert (ours.cfg, ours.top_k, ours.top_p) == tuple(published[key] for key in ("cfg", "top_k", "top_p"))
    assert (ours.refine, ours.smooth) == ("published", published["more_smooth"])


CCA = {
    **{f"cca-var-d{depth}": f"var-d{depth}" for depth in (16, 20, 24, 30)},
    **{f"cca-llamagen-{size}": f"llamagen-{size}" for size in ("xl", "xxl", "3b")},
    "cca-llamagen-b": "llamagen-b-384",
    "cca-llamagen-l": "llamagen-l-384",
}


@pytest.mark.parametrize("name", CCA)
def test_a_model_of_cca_is_its_base_without_guidance(name):
    found, base = skeleton(name), skeleton(CCA[name])
    assert found.backbone.config == base.backbone.config
    assert found.tokenizer.config == base.tokenizer.config
    assert {step.guidance for step in found.plan().steps} == {0}
    assert found.plan() == base.plan().changed(guidance=0.0)
    assert found.facts.license == "mit"
    repository, file = entry(name).source.files["backbone"]
    assert file.startswith(f"{repository.rpartition('/')[2]}_Guidance_Free/")


def test_a_file_of_cca_keeps_its_settings_under_its_published_name(published, tmp_path):
    (published / "VAR_d16_CCA.pth").write_bytes((published / "var.pth").read_bytes())
    files = ["--tokenizer", str(published / "vae.pth"), "--backbone", str(published / "VAR_d16_CCA.pth")]
    assert main(["convert", "--family", "var", *files, "--out", str(tmp_path / "model")]) == 0
    assert load(tmp_path / "model", device="cpu").sampling.cfg == 0
