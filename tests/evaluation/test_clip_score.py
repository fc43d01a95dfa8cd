"""CLIPScore with a tiny random CLIP: its definition, batches, the command, and what is refused."""

import json

import pytest
import torch
from PIL import Image
from small_encoders import write_clip
from small_infinity import words_pipeline
from transformers import CLIPImageProcessor, CLIPModel

from var_toolkit.cli import main
from var_toolkit.evaluation import clip_score
from var_toolkit.evaluation.clip_score import ClipScore

PROMPTS = ["red cube", "cube", "red"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "text"
    words_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images():
    return torch.randint(256, (3, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_score_is_a_hundred_times_the_cosine(clip, images):
    network, read = CLIPModel.from_pretrained(clip), CLIPImageProcessor.from_pretrained(clip)
    with torch.inference_mode():
        text = network.get_text_features(torch.tensor([[4, 6, 1]]))
        shown = network.get_image_features(
            **read(Image.fromarray(images[0].permute(1, 2, 0).numpy()), return_tensors="pt")
        )
    text, shown = (getattr(found, "pooler_output", found) for found in (text, shown))
    expected = 100 * torch.cosine_similarity(text, shown).clamp(min=0)
    torch.testing.assert_close(
        ClipScore(clip)(images[:1], PROMPTS[:1]), expected, atol=0.5, rtol=0
    )  # resized otherwise


def test_scores_do_not_depend_on_the_batch(clip, images, monkeypatch):
    judge = ClipScore(clip)
    together = judge(images, PROMPTS)
    monkeypatch.setattr(clip_score, "BATCH", 2)
    torch.testing.assert_close(judge(images, PROMPTS), together)
    assert len(together.unique()) > 1


def test_every_image_has_a_prompt(clip, images):
    with pytest.raises(ValueError, match="2 prompts"):
        ClipScore(clip)(images, PROMPTS[:2])


def test_the_lines_of_a_file_are_drawn_and_scored(clip, text_model, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("red cube\n\ncube\nred\n")
    words = ["evaluate", "prompts", "--model", text_model, "--prompts", "mine.txt", "--clip-score", clip, "--json"]
    assert main([*words, "--sheet", "sheet.png", "-n", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompts"] == 2
    assert 0 <= told["clip_score"]["model"] <= 100
    assert (tmp_path / "sheet.png").is_file()


BAD = {
    "no-judge": (["--prompts", "mine.txt"], "--clip-score"),
    "no-file": (["--prompts", "gone.txt", "--clip-score", "CLIP"], "gone.txt"),
    "no-lines": (["--prompts", "empty.txt", "--clip-score", "CLIP"], "empty.txt"),
    "no-clip": (["--prompts", "mine.txt", "--clip-score", "nobody/nothing"], "nobody/nothing"),
    "classes": (["--prompts", "mine.txt", "--clip-score", "CLIP", "--model", "stilllife-gpt-small"], "draws classes"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_line_says_what_is_wrong(name, clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words, named = BAD[name]
    (tmp_path / "mine.txt").write_text("red cube\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main(["evaluate", "prompts", *[clip if word == "CLIP" else word for word in words]]) == 2
    told = capsys.readouterr().err.strip()
    assert named in told
    assert "\n" not in told
