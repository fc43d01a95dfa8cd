"""Published files of Infinity become a model directory, in every form; other pairs are refused."""

import json

import pytest
import torch
from golden.cases import FOLDER, load_case
from safetensors.torch import save_file
from small_infinity import published_tensors, schedule_of

from var_toolkit.cli import main
from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.formats.json_files import read_json
from var_toolkit.loading import load, skeleton
from var_toolkit.registry import entry

CASE = load_case("infinity-generate")
TRANSFORMERS = read_json(FOLDER / "infinity-published-settings" / "case.json")["transformers"]
NAMES = {
    "infinity-125m": "infinity_layer12", "infinity-2b": "infinity_2b", "infinity-8b": "infinity_8b",
    "infinity-8b-512": "infinity_8b",
}  # fmt: skip


def write_shards(folder, tensors, ending):
    """Two shards with an index, as transformers writes them."""
    folder.mkdir()
    names, files, stem = sorted(tensors), {}, {"safetensors": "model", "bin": "pytorch_model"}[ending]
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05d}-of-00002.{ending}"
        (save_file if ending == "safetensors" else torch.save)({name: tensors[name] for name in part}, folder / file)
        files |= dict.fromkeys(part, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": files}))


def write(form, tensors, path):
    if form in ("safetensors", "bin"):
        write_shards(path, tensors, form)
    else:
        torch.save({"bare": tensors, "trainer": {"trainer": {"gpt_fsdp": tensors}, "epoch": 1}}[form], path)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "vae.pth"
    torch.save({"vae": published_tensors(CASE, "tokenizer")}, path)
    return path


def convert(folder, tokenizer, backbone, *more):
    files = ["--tokenizer", str(tokenizer), "--backbone", str(backbone), "--out", str(folder / "model")]
    return main(["convert", "--family", "infinity", *files, *more])


@pytest.mark.parametrize("form", ["bare", "trainer", "safetensors", "bin"])
def test_files_of_every_form_draw_the_published_bits(form, tokenizer_file, tmp_path, capsys):
    write(form, published_tensors(CASE, "infinity"), tmp_path / "infinity")
    assert convert(tmp_path, tokenizer_file, tmp_path / "infinity") == 0
    assert "Infinity with 4 layers" in capsys.readouterr().out
    pipe, lengths = load(tmp_path / "model", device="cpu"), CASE.facts["config"]["text_lens"]
    features = torch.nn.utils.rnn.pad_sequence(list(CASE.tensors["text"].split(lengths)), batch_first=True)
    prompt = PromptEmbeds(features, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])
    run = {"cfg": 3.0, "temperature": 0.5, "top_k": 1, "top_p": 0.0, "schedule": schedule_of(CASE)}
    drawn = pipe(prompt_embeds=prompt, seeds=[0, 1], **run)
    assert torch.equal(torch.cat(drawn.tokens, dim=1), CASE.tensors["plain.bits"])


def test_a_wrong_pair_is_refused_in_one_line_that_names_the_right_file(tokenizer_file, tmp_path, capsys):
    other = published_tensors(load_case("infinity-generate-patchify"), "infinity")
    torch.save(other, tmp_path / "infinity_2b_reg.pth")
    assert convert(tmp_path, tokenizer_file, tmp_path / "infinity_2b_reg.pth") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3 bits" in error
    assert "infinity_vae_d32reg.pth" in error


def test_tokenizers_of_equal_sizes_are_told_apart_by_name(tokenizer_file, tmp_path, capsys):
    torch.save(published_tensors(CASE, "infinity"), tmp_path / "infinity_2b_reg.pth")
    plain = tmp_path / "infinity_vae_d32.pth"
    plain.write_bytes(tokenizer_file.read_bytes())
    assert convert(tmp_path, plain, tmp_path / "infinity_2b_reg.pth") == 2
    assert "infinity_vae_d32reg.pth" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_published_models_have_the_published_sizes(name):
    pipe, facts = skeleton(name), TRANSFORMERS[NAMES[name]]
    assert sum(p.numel() for p in pipe.backbone.parameters()) == facts["parameters"]
    assert pipe.tokenizer.image_side == entry(name).resolution
    assert pipe.tokenizer.token_bits == facts["bits_a_token"]
    assert pipe.plan().schedule == pipe.backbone.scales
    assert entry(name).source.text_encoder.source == "google/flan-t5-xl"


def test_the_size_of_an_image_is_a_setting():
    plan = skeleton("infinity-2b").plan(size=(1024, 768))
    assert plan.schedule.image_size(16) == (768, 1024)
    assert skeleton("infinity-8b").plan(size=(720, 1440)).schedule.image_size(16) == (1440, 720)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"smooth": True}, "smooth"),
        ({"size": (1000, 1000)}, "1000x1000"),
        ({"size": (2048, 2048)}, "at most 64 x 64"),
        ({"schedule": "1,3,9"}, "schedule is 1,3,9"),
        ({"refine": "all"}, "refine"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused_by_name(settings, found):
    with pytest.raises(ValueError, match=found):
        skeleton("infinity-2b").plan(**settings)
