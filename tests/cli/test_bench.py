"""`vargen bench` as a user meets it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from small_bench import Here, here_except

from var_toolkit.cli import main
from var_toolkit.evaluation.bench import quality, rounds
from var_toolkit.pipeline import Pipeline


@pytest.fixture(scope="session")
def painter(tmp_path_factory, small_tokenizer, small_var) -> str:
    """A model directory that says it draws still lifes, of classes 0 to 9."""
    folder = tmp_path_factory.mktemp("models") / "painter"
    Pipeline(small_tokenizer, small_var, data_set="still-lifes").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def _rows_in_this_process(monkeypatch):
    monkeypatch.setattr(rounds, "Child", Here)


def a_table(text: str, path: str = "table.yaml") -> str:
    Path(path).write_text(text)
    return path


@pytest.mark.usefixtures("_rows_in_this_process")
def test_two_rows_become_a_table_a_file_and_a_plot(painter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "RENDERINGS", 20)
    monkeypatch.setenv("VARGEN_CACHE", str(tmp_path / "cache"))
    table = a_table(
        f"""
        rounds: 2
        seconds: 0
        defaults: {{model: {painter}, device: cpu, batch: 2, quality: 12}}
        rows:
          - {{name: plain}}
          - {{name: half the work, plan: {{cfg: 0}}, dtype: bfloat16}}
          - {{name: one by one, batch: 1}}
        """
    )
    assert main(["bench", table, "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "half the work" in printed
    assert sorted(path.name for path in Path("out").iterdir()) == ["table.json", "table.md", "table.png"]
    told = json.loads(Path("out/table.json").read_text())
    plain, half, single = told["rows"]
    assert len(plain["raw_rounds"]) == told["rounds"] == 2
    assert plain["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert half["ratio"]["low"] <= half["ratio"]["median"] <= half["ratio"]["high"]
    assert half["cache_bytes_per_image"] * 4 == plain["cache_bytes_per_image"]
    assert half["predicted"]["transformer_ratio"] == 2
    assert plain["quality_found"]["images"] == 12
    assert single["quality_found"] == plain["quality_found"]  # the same images, drawn once
    assert told["machine"]["threads"] >= 1
    assert Path("out/table.md").read_text().count("| plain |") == 1
    assert Image.open("out/table.png").width > 1000


@pytest.mark.usefixtures("_rows_in_this_process")
def test_without_quality_there_is_no_plot(model, capsys):
    table = a_table(f"rows: [{{name: a, model: {model}, device: cpu}}, {{name: b, model: {model}, device: cpu}}]")
    assert main(["bench", table, "--rounds", "1", "--only", "b", "--out", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in told["rows"]] == ["b"]
    assert told["files"] == ["out/table.json", "out/table.md"]
    assert told["rows"][0]["seconds_per_image"] > 0


def test_a_row_that_fails_says_why_and_the_others_go_on(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rounds, "Child", here_except("bad"))
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    (damaged / "backbone" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    table = a_table(
        f"{{rounds: 1, seconds: 0, defaults: {{device: cpu}}, rows: [{{name: good, model: {model}}}, "
        f"{{name: bad, model: {damaged}}}]}}"
    )
    assert main(["bench", table, "--out", "out"]) == 1
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("bad ")]
    assert "failed: " in line
    assert "damaged/backbone/diffusion_pytorch_model.safetensors is a text" in line
    good, bad = json.loads(Path("out/table.json").read_text())["rows"]
    assert good["error"] is None
    assert "damaged/backbone/diffusion_pytorch_model.safetensors is a text" in bad["error"]


@pytest.mark.usefixtures("_rows_in_this_process")
def test_an_interruption_keeps_what_has_been_measured(model, monkeypatch, capsys):
    class Interrupted(rounds.Children):
        asked = 0

        def ask(self, *given, **order):
            Interrupted.asked += 1
            if Interrupted.asked == 5:
                raise KeyboardInterrupt
            return super().ask(*given, **order)

    monkeypatch.setattr(rounds, "Children", Interrupted)
    rows = ", ".join(f"{{name: {name}}}" for name in ("first", "second", "third"))
    table = a_table(f"{{rounds: 3, seconds: 0, defaults: {{model: {model}, device: cpu, batch: 1}}, rows: [{rows}]}}")
    assert main(["bench", table, "--out", "out"]) == 130
    said = capsys.readouterr()
    assert said.err.endswith("vargen: interrupted\n")
    left_out = "interrupted, unfinished: first (2 of 3 rounds); second (1 of 3 rounds); third (1 of 3 rounds)"
    assert left_out in said.out
    assert left_out in Path("out/table.md").read_text()
    told = json.loads(Path("out/table.json").read_text())
    assert told["interrupted"]
    assert [len(row["raw_rounds"]) for row in told["rows"]] == [2, 1, 1]
    assert [row["unfinished"] for row in told["rows"]] == ["2 of 3 rounds", "1 of 3 rounds", "1 of 3 rounds"]
    assert told["rows"][1]["ratio"]["low"] == told["rows"][1]["ratio"]["high"] > 0


def test_an_interruption_before_any_figure_writes_nothing(model, monkeypatch, capsys):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "Child", interrupted)
    table = a_table(f"{{rounds: 1, rows: [{{name: a, model: {model}, device: cpu}}]}}")
    assert main(["bench", table, "--out", "out"]) == 130
    assert capsys.readouterr().out == ""
    assert not Path("out").exists()


BAD = [
    ("nowhere.yaml", None, "nowhere.yaml"),
    ("table.yaml", "rows: [{name: a, model: stilllife-var, plan: {method: 'a:b'}}]", "--allow-code"),
    ("table.yaml", "rows: [{name: a, model: stilllife-var, colour: red}]", "row 'a': unknown key 'colour'"),
    ("table.yaml", "rows: [{name: a, model: stilllife-war}]", "did you mean 'stilllife-var'"),
    ("table.yaml", "rows: [{name: a, model: stilllife-var, plan: {top_p: 3}}]", "row 'a': top_p is 3"),
]


@pytest.mark.parametrize(("path", "content", "words"), BAD, ids=[words for *_, words in BAD])
def test_bad_tables_are_one_line_before_any_work(path, content, words, monkeypatch, capsys):
    def no_child(*given):
        raise AssertionError("a row was started before the table was checked")

    monkeypatch.setattr("var_toolkit.evaluation.bench.rounds.Child", no_child)
    if content is not None:
        a_table(content, path)
    assert main(["bench", path]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="children are found in /proc")
def test_an_interruption_ends_all_processes(model):
    table = a_table(f"{{rounds: 1000, seconds: 0.1, rows: [{{name: a, model: {model}, device: cpu}}]}}")
    run = subprocess.Popen([sys.executable, "-m", "var_toolkit", "bench", table], stderr=subprocess.PIPE, text=True)
    for _ in range(300):
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        if children.is_file() and children.read_text().split():
            break
        time.sleep(0.2)
    else:
        run.kill()
        pytest.fail("no process of a row was seen")
    (child,) = children.read_text().split()
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    assert run.stderr.read().endswith("vargen: interrupted\n")
    assert not Path(f"/proc/{child}").exists()
