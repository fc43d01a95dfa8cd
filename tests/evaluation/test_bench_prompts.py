"""Rows of models of text: which prompts they draw, that each is encoded once, and how their images are judged."""

import re

import numpy as np
import pytest
import torch
from small_bench import Here
from small_infinity import words_pipeline

from var_toolkit.conditions.words import WordEncoder
from var_toolkit.evaluation.bench import rounds
from var_toolkit.evaluation.bench.quality import judge, prompts_of
from var_toolkit.evaluation.bench.report import as_text, report
from var_toolkit.evaluation.bench.rounds import Measured, measure, size_of
from var_toolkit.evaluation.bench.table import Row, Table, table_from
from var_toolkit.evaluation.bench.worker import Worker
from var_toolkit.loading import load
from var_toolkit.still_life.scene_judge import prompts
from var_toolkit.still_life.scene_quality import renderings

PROMPTS = ("red cube", "cube", "red")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """The directory of a small model of text."""
    folder = tmp_path_factory.mktemp("models") / "text"
    words_pipeline().save_pretrained(folder)
    return str(folder)


def test_prompts_are_drawn_in_turns_and_encoded_once(text_model, monkeypatch, tmp_path):
    monkeypatch.setattr(rounds, "Child", Here)
    asked, encode = [], WordEncoder.encode

    def noted(self, texts):
        asked.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(WordEncoder, "encode", noted)
    row = Row("plain", text_model, device="cpu", batch=2, prompts=PROMPTS)
    shorter = Row("VARiant", text_model, device="cpu", batch=2, prompts=PROMPTS, plan={"subnet": 2, "full_scales": 1})
    table = Table((row, shorter), rounds=2, seconds=0)
    found = measure(table, cache=tmp_path, on_step=lambda what: None)
    assert asked == [*PROMPTS] * 2  # one process each
    assert [len(one.turns) for one in found] == [2, 2]
    assert "failed" not in as_text(report(table, found, "table.yaml"))
    drawn = torch.cat(list(Worker(row, torch.get_num_threads()).drawn(4)))
    pipe = load(text_model, device="cpu").pack()
    expected = pipe(prompt=[*PROMPTS, PROMPTS[0]], seeds=range(4), output_type="pt").images
    assert torch.equal(drawn, (expected * 255).round().to(torch.uint8))


def test_random_weights_need_no_prompt_and_no_encoder(text_model, monkeypatch):
    monkeypatch.delattr(WordEncoder, "encode")
    row = Row("random", text_model, device="cpu", batch=2, weights="random")
    assert size_of(row).cost.forward_passes == 3
    assert Worker(row, torch.get_num_threads()).turn(0, 0)["forward_passes"] == 3


BAD = {
    "classes": ({"model": "stilllife-var"}, "prompts are for models of text; stilllife-var draws classes"),
    "a word": ({"prompts": ("blue cube",)}, "prompt has unknown words: blue; known are cube, red"),
    "none": ({"prompts": ()}, "row 'r': prompt has unknown words: "),  # those of the judge
    "size": ({"prompts": (), "quality": 4}, "quality is judged on scenes of 128 px; .* draws 6 px"),
}


@pytest.mark.parametrize("name", BAD)
def test_prompts_that_cannot_be_drawn_are_refused_before_any_work(name, text_model):
    changes, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        size_of(Row(**{"name": "r", "model": text_model, "prompts": PROMPTS} | changes))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompts": ["a", " "]}, "row 'r': prompts has an empty one"),
        ({"prompts": "a"}, "prompts is 'a'; expected a list"),
        ({"prompts": ["a"], "quality": 4}, "quality is judged on prompts of its own"),
    ],
)
def test_prompts_of_a_table_are_checked(fields, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        table_from({"rows": [{"name": "r", "model": "m", **fields}]})


def test_images_are_judged_by_the_prompts_that_they_were_drawn_for(tmp_path):
    row = Row("r", "m", quality=7)
    assert prompts_of(row, 4) == [one.caption.text for one in prompts(7)]
    real = renderings(prompts(14)).numpy()
    np.save(tmp_path / "right.npy", real)
    np.save(tmp_path / "wrong.npy", np.roll(real, 1, axis=0))
    right, wrong = (judge(tmp_path / f"{name}.npy", None, tmp_path) for name in ("right", "wrong"))
    assert right["images"] == 14
    assert right["prompts_right"] > 0.7 > 0.3 > wrong["prompts_right"]


def test_the_report_has_a_column_for_prompts(text_model):
    row = Row("r", text_model, prompts=PROMPTS)
    turn = {"transformer": [1.0], "decoder": [1.0], "peak_memory_bytes": 5, "transformer_memory_bytes": 2}
    turn |= {"cache_bytes_per_image": 1, "forward_passes": 3}
    one = Measured(row, size_of(row), {"gpu": None, "process_memory_bytes": 2}, [turn])
    one.quality = {"images": 40, "prompts_right": 0.75, "categories": {}}
    told = as_text(report(Table((row,), rounds=1), [one], "table.yaml"))
    assert "prompts right" in told.splitlines()[0]
    assert "75.0 %" in told
    assert "share of 40 images" in told
    assert "agreement" not in told
