"""Edits by instructions, in Python and on the command line, and the published files of such models."""

import json

import numpy as np
import pytest
import torch
from golden.cases import load_case
from PIL import Image
from small_infinity import embeds, published_tensors, schedule_of, small_varedit, words_pipeline

from var_toolkit.cli import main
from var_toolkit.conditions.condition import Condition, Request
from var_toolkit.conditions.images import WithImage
from var_toolkit.conditions.text import Prompts
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.loading import load, skeleton
from var_toolkit.registry import entry, prompt_models


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """The path of a wide photo, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((8, 6)).convert("RGB").save("photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="module")
def editor():
    return words_pipeline(small_varedit)


@pytest.fixture(scope="module")
def model(editor, tmp_path_factory):
    """The directory of a model that edits by instructions."""
    folder = tmp_path_factory.mktemp("editor") / "model"
    editor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_the_result_has_the_size_of_the_image(kind, editor, photo):
    found = editor.edit(photo, instruction=["red cube", "red"], seeds=[0, 1], output_type=kind)
    assert found.prompts == ["red cube", "red"]
    sizes = [image.size if kind == "pil" else tuple(image.shape) for image in found.images]
    assert sizes == [{"pil": (8, 6), "np": (6, 8, 3), "pt": (3, 6, 8)}[kind]] * 2


def test_the_source_is_encoded_once_for_all_batches(editor, photo, monkeypatch):
    seen, features = [], type(editor.tokenizer).features
    monkeypatch.setattr(type(editor.tokenizer), "features", lambda *given: seen.append(1) or features(*given))
    editor.edit(photo, instruction=["red"] * 5, seeds=range(5), batch_size=2)
    assert seen == [1]


def test_an_image_does_not_depend_on_the_batch(editor, photo):
    settings = {"output_type": "latent", "cfg": 2.0, "top_k": 1}
    several = editor.edit(photo, instruction=["red cube", "red"], seeds=[0, 1], **settings)
    alone = editor.edit(photo, instruction="red", seeds=1, **settings)
    assert torch.equal(several.tokens[-1][1:], alone.tokens[-1])


def test_the_image_is_on_white_at_the_top_left(editor, photo, monkeypatch):
    seen, features = [], type(editor.tokenizer).features
    monkeypatch.setattr(type(editor.tokenizer), "features", lambda *given: seen.append(given[1]) or features(*given))
    editor.edit(np.zeros((3, 6, 3), np.uint8), instruction="red", seeds=0)
    assert seen[0][0, :, :2].max() < 0  # a row at the border is mixed
    assert seen[0][0, :, 4:].min() > 0.9


BAD = {
    "mask": {"instruction": "red", "mask": (1, 1, 2, 2)},
    "prompt": {"instruction": "red", "prompt": "red"},
    "there is no instruction": {},
    "instruction": {"mask": (1, 1, 2, 2)},
    "control": {"instruction": "red", "control_image": np.zeros((6, 6, 3), np.uint8)},
    "unknown words": {"instruction": "green"},
    "too small": {"instruction": "red", "image": np.zeros((1, 9, 3), np.uint8)},
}


@pytest.mark.parametrize("named", BAD)
def test_what_an_edit_does_not_take_is_refused_by_name(named, editor, photo):
    with pytest.raises(ValueError, match=named):
        editor.edit(**{"image": photo, "seeds": 0, **BAD[named]})


def test_an_editor_draws_nothing_without_an_image_and_others_take_no_instruction(editor, photo):
    with pytest.raises(ValueError, match="VAREdit edits an image"):
        editor(prompt="red", seeds=0)
    with pytest.raises(ValueError, match="VAREdit edits an image"):
        editor.vary(photo, 1, prompt="red", seeds=0)
    with pytest.raises(ValueError, match="varedit-8b-512"):
        words_pipeline().edit(photo, instruction="red", seeds=0)


def test_the_command_writes_a_file_for_each_instruction_and_seed(model, photo, tmp_path, capsys):
    words = ["edit", "photo.png", "--instruction", "red cube", "--instruction", "red", "-n", "2", "--model", model]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = [f"photo_edit_{text}_seed-{seed}.png" for text in ("red-cube", "red") for seed in (0, 1)]
    assert told["files"] == names
    assert Image.open(names[0]).size == (8, 6)
    assert main([*words, "--dry-run"]) == 0
    assert "VAREdit 2 x 32" in capsys.readouterr().out


WORDS = {
    "--class": ["--instruction", "red", "--class", "3", "--model", "MODEL"],
    "varedit-8b-512": ["--instruction", "red"],
    "--model infinity-2b": ["--instruction", "red", "--model", "infinity-2b"],
    "--instruction": ["--mask", "1,1,2,2", "--model", "varedit-8b-512"],
    "VAREdit edits": ["--mask", "1,1,2,2", "--prompt", "red", "--model", "MODEL"],
    "unknown words": ["--instruction", "green", "--model", "MODEL"],
    "text.txt": ["text.txt", "--instruction", "red", "--model", "MODEL"],
}


@pytest.mark.parametrize("named", WORDS)
def test_bad_words_end_in_one_line(named, model, photo, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("no image")
    words = [model if word == "MODEL" else word for word in WORDS[named]]
    words = words if words[0].endswith(".txt") else ["photo.png", *words]
    assert main(["edit", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert named in lines[0]


def test_published_files_draw_the_published_bits(tmp_path):
    case = load_case("varedit-generate")
    torch.save(published_tensors(case, "infinity"), tmp_path / "own.pth")
    torch.save({"vae": published_tensors(case, "tokenizer")}, tmp_path / "vae.pth")
    grid = case.facts["config"]["rotary_reference_hw"]
    told = {"backbone": {"reference_map": grid, "patch_nums": list(range(1, min(grid) + 1))}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    files = ["--tokenizer", str(tmp_path / "vae.pth"), "--backbone", str(tmp_path / "own.pth")]
    where = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "model")]
    assert main(["convert", "--family", "varedit", *files, *where]) == 0
    pipe, schedule = load(tmp_path / "model", device="cpu"), schedule_of(case)
    source = pipe.tokenizer.pyramid_of(schedule).unquantised(case.tensors["source_features"])
    asked = Prompts(embeds(case.tensors["text"], case.facts["config"]["text_lens"]))
    image = Request(Condition(prefix=source), Condition(prefix=source))
    run = case.facts["runs"]["plain"]
    plan = pipe.plan(cfg=run["cfg"], temperature=run["tau"], top_k=run["top_k"], top_p=run["top_p"], schedule=schedule)
    drawn = decode(pipe.bind(plan), WithImage(asked, image), Noise([0]))
    assert torch.equal(torch.cat(drawn.tokens, dim=1), case.tensors["plain.bits"])


@pytest.mark.parametrize("name", prompt_models(edits=True))
def test_named_models_are_infinitys_with_a_source(name):
    pipe, base = skeleton(name), skeleton("infinity-8b" if "8b" in name else "infinity-2b")
    sizes = {key: tuple(weight.shape) for key, weight in pipe.backbone.state_dict().items()}
    assert sizes == {key: tuple(weight.shape) for key, weight in base.backbone.state_dict().items()}
    assert pipe.tokenizer.image_side == entry(name).resolution
    run = pipe.bind(pipe.plan())
    assert {one.capacities[0] for one in run.steps} == {run.schedule.total + run.schedule.lengths[-1]}
