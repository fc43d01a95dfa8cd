"""`vargen sample --prompt` and `vargen embed` as a user meets them."""

import json

import pytest
from small_encoders import write_encoder
from small_text import text_pipeline

from var_toolkit.cli import main
from var_toolkit.cli.subjects import file_names
from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.conditions.text_encoders import TransformersEncoder


@pytest.fixture(scope="module")
def text_model(tmp_path_factory) -> str:
    """A directory with a model of text and its T5, which know a few words."""
    folder = tmp_path_factory.mktemp("text")
    encoder = TransformersEncoder(write_encoder("t5", folder), 8)
    text_pipeline(text_encoder=encoder).save_pretrained(folder / "model")
    return str(folder / "model")


def facts(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_prompts_name_their_files(text_model, tmp_path, capsys):
    told = facts(capsys, "sample", "--model", text_model, "--prompt", "a Red cube", "--prompt", "a sphere", "-n", "2")
    names = [f"{text}_seed-{seed}.png" for text in ("a-red-cube", "a-sphere") for seed in (0, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert told["files"] == names
    assert told["prompts"] == ["a Red cube", "a Red cube", "a sphere", "a sphere"]


def test_embedded_prompts_draw_the_same_image(text_model, tmp_path, capsys):
    assert main(["embed", "a red cube", "--model", text_model, "--out", "cube.safetensors"]) == 0
    assert PromptEmbeds.read("cube.safetensors").prompts == ("a red cube",)
    main(["sample", "--model", text_model, "--prompt-embeds", "cube.safetensors", "--out", "one"])
    main(["sample", "--model", text_model, "--prompt", "a red cube", "--out", "other"])
    files = [tmp_path / folder / "a-red-cube_seed-0.png" for folder in ("one", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_dry_run_tells_the_prompts(text_model, tmp_path, capsys):
    told = facts(capsys, "sample", "--model", text_model, "--prompt", "a", "--negative-prompt", "blue", "--dry-run")
    assert told["prompts"] == ["a"]
    assert not list(tmp_path.iterdir())


BAD = {
    "class-model": (["sample", "--prompt", "a", "--model", "var-d16"], "var-d16"),
    "text-model": (["sample", "--class", "3", "--model", "llamagen-t2i-xl-256"], "llamagen-t2i-xl-256"),
    "class-folder": (["sample", "--class", "3", "--model", "MODEL"], "--prompt"),
    "negative-alone": (["sample", "--class", "3", "--negative-prompt", "a"], "--negative-prompt"),
    "bits-alone": (["sample", "--class", "3", "--text-bits", "8"], "--text-bits"),
    "empty": (["sample", "--prompt", " ", "--model", "MODEL"], "prompt is empty"),
    "no-file": (["sample", "--prompt-embeds", "gone.safetensors", "--model", "MODEL"], "gone.safetensors"),
    "device": (["sample", "--prompt", "a", "--model", "MODEL", "--text-device", "mars"], "mars"),
    "embed-class": (["embed", "a", "--model", "var-d16", "--out", "a.safetensors"], "var-d16"),
    "embed-name": (["embed", "a", "--model", "MODEL", "--out", "a.pt"], "a.pt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_line_that_names_it(name, text_model, capsys):
    words, named = BAD[name]
    assert main([text_model if word == "MODEL" else word for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert named in lines[0]


@pytest.mark.parametrize("options", [[], ["--class", "3", "--prompt", "a"]], ids=["neither", "both"])
def test_a_class_or_a_prompt_is_needed(options, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["sample", *options])
    assert exit_.value.code == 2
    assert "--prompt" in capsys.readouterr().err


def test_prompts_that_begin_alike_have_files_of_their_own():
    texts = ["A cube!", "a cube", "\u7acb\u65b9\u4f53", "a-cube"]
    assert file_names(texts) == ["a-cube", "a-cube-2", "prompt", "a-cube-3"]
