"""docs/add-a-method.md is true: its files are written, its commands run as they stand, and they do what it says.

So is the short form of it in the README.
"""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from var_toolkit.cli import main
from var_toolkit.evaluation.bench.table import table_from
from var_toolkit.loading import skeleton
from var_toolkit.sampling.methods import GROUP
from var_toolkit.sampling.plan import Stage

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "add-a-method.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`([a-z_]+\.(?:py|yaml))`")


def files_of(text: str) -> dict[str, str]:
    """Every block of Python or YAML, under the file name that the text before it gave last."""
    found, before = {}, 0
    for block in BLOCK.finditer(text):
        if block[1] in ("python", "yaml"):
            name = NAMED.findall(text[before : block.start()])[-1]
            assert name not in found, f"{name} stands twice"
            found[name] = block[2]
        before = block.end()
    return found


def commands_of_the_page() -> list[str]:
    return [line for language, text in BLOCK.findall(PAGE) if language == "sh" for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path):
    """An empty folder outside of the package, but for the files of the page."""
    for name, text in files_of(PAGE).items():
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in ("shy_method", "likely_rule"):
        sys.modules.pop(name, None)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def in_a_process(command: str) -> str:
    """What a line of the page prints, run by a shell in the current folder."""
    place = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(command, shell=True, env=place, capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def here(command: str, capsys) -> str:
    """The same without a process of its own, which would import torch first."""
    program, *words = shlex.split(command)
    if program == "python":
        sys.path.insert(0, os.getcwd())  # as Python itself does for the folder of a script
        runpy.run_path(*words, run_name="__main__")
    else:
        assert program == "vargen"
        assert main(words) == 0, f"{command}\n{capsys.readouterr().err}"
    return capsys.readouterr().out


def test_the_files_and_commands_of_the_page_do_what_it_says(folder, monkeypatch, capsys):
    assert set(files_of(PAGE)) == {"shy_method.py", "draw.py", "shy.yaml", "likely_rule.py"}
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    # A process, which has the folder from nowhere but the command, for the one that starts others from there.
    dry, drawn, script, bench, rule = (
        in_a_process(command) if command.startswith("vargen bench ") else here(command, capsys)
        for command in commands_of_the_page()
    )

    (plan,) = (line for line in dry.splitlines() if line.startswith("plan "))
    first, second = plan.split("; ")
    assert "scales 0-2:" in first
    assert first.endswith("temperature 1")
    assert "scales 3-5:" in second
    assert second.endswith("temperature 0.5")
    assert not list(folder.glob("class-*"))  # of the dry run

    assert drawn.startswith("shy.png: class 207")
    assert np.abs(pixels(folder / "shy.png") - pixels(folder / "plain.png")).mean() > 1
    equal = script.splitlines()[0]
    assert equal.startswith("[True, True, False")  # scales 0 and 1 are drawn as before, scale 2 is not
    assert "guidance 2, " in script
    assert "scales 2-5" in script
    assert pixels(folder / "other.png").shape == (64, 64, 3)

    rows = json.loads((folder / "bench" / "shy.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["VAR", "shy"]
    assert "scales 2-5" in rows[1]["plan_in_words"]
    assert "temperature 0.5" in rows[1]["plan_in_words"]
    assert all(row["seconds_per_image"] > 0 for row in rows)
    assert "shy" in bench

    assert rule.startswith("likely.png: class 207")
    assert pixels(folder / "likely.png").shape == (64, 64, 3)


def test_the_rule_of_the_page_decides_which_drafts_stand(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (command,) = (line for line in commands_of_the_page() if "likely_rule:likely" in line)
    words = command.replace("share=0.1", "share={}").split()[1:]
    passes = []
    for share in ("0", "1"):  # every draft stands; only the likeliest token does
        assert main([word.format(share) for word in words] + ["--json"]) == 0
        passes.append(json.loads(capsys.readouterr().out)["speculation"]["passes_per_image"])
    assert passes[0] == 1 + -(-255 // 16)  # windows of 16
    assert passes[1] > 2 * passes[0]
    assert main([*words[: words.index("--speculate")], "--method", "likely_rule:likely"]) == 2
    assert "give --speculate as well" in capsys.readouterr().err


def test_an_installed_package_gives_its_method_the_name_that_the_page_says(folder, monkeypatch, capsys):
    (block,) = (text for language, text in BLOCK.findall(PAGE) if language == "toml")
    package = tomllib.loads(block)
    ((name, target),) = package["project"]["entry-points"][GROUP].items()
    assert package["build-system"]["build-backend"] == "setuptools.build_meta"
    (module,) = package["tool"]["setuptools"]["py-modules"]
    assert target.partition(":")[0] == module
    assert (folder / f"{module}.py").exists()
    assert f"`--method {name}` is enough" in PAGE
    installed = folder / "shy-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shy\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {target}\n")
    monkeypatch.syspath_prepend(folder)
    assert main(["sample", "--class", "207", "--dry-run", "--method", name]) == 0
    assert "scales 3-5" in capsys.readouterr().out


def test_the_table_of_the_page_has_every_field_of_a_stage():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == [field.name for field in fields(Stage)]


@pytest.mark.parametrize(
    ("model", "guidance", "cost", "words"),
    [
        (
            "stilllife-var",
            [0] * 5 + [1.5],
            1.21,
            "1.21 times as much if it is on for the last scale of `stilllife-var`",
        ),
        ("var-d16", [0] * 9 + [1.5], 1.29, "1.29 times in `var-d16`"),
        ("stilllife-var", [1.5] * 3 + [0] * 3, 0.60, "off from scale 3 on, `stilllife-var` costs 0.60 times as much"),
        ("stilllife-var", [1.5] * 5 + [0], 0.98, "off for the last scale alone 0.98 times"),
        ("var-d16", [1.5] * 9 + [0], 1.10, "and `var-d16` 1.10"),
        ("stilllife-var", [1e-9] * 3 + [1.5] * 3, 1, "at the price of guidance throughout, give them 1e-9"),
        (
            "stilllife-hmar",
            [0] * 5 + [1.5],
            0.78,
            "for the last scale alone, `stilllife-hmar` costs 0.78 times as much",
        ),
    ],
)
def test_switching_guidance_costs_what_the_page_says(model, guidance, cost, words):
    plan = skeleton(model).plan(guidance_scale=1.5)
    stages = (replace(*plan.within(range(k, k + 1)), guidance=value) for k, value in enumerate(guidance))
    found = replace(plan, stages=stages).cost().multiply_adds / plan.cost().multiply_adds
    assert round(found, 2) == cost
    assert words in " ".join(PAGE.split())


def test_the_short_form_in_the_readme_is_true(tmp_path, monkeypatch, capsys):
    chapter = README.partition("\n## Add a method\n")[2].partition("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    ((name, text),) = files_of(chapter).items()
    Path(name).write_text(text)
    dry, drawn = (line for line in chapter.splitlines() if line.startswith("    vargen "))
    assert main(shlex.split(dry, comments=True)[1:]) == 0
    assert "temperature 0.3" in capsys.readouterr().out
    assert main(shlex.split(drawn, comments=True)[1:]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1
    (row,) = re.findall(r"`(\{name: .*\})`", chapter)
    (read,) = table_from({"defaults": {"model": "stilllife-var"}, "rows": [yaml.safe_load(row)]}).rows
    assert skeleton(read.source).plan(**read.plan).stages[0].temperature == 0.5
    sys.modules.pop(Path(name).stem)


def test_every_link_of_the_documents_resolves():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in path:
                continue
            there = (page.parent / path) if path else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(there.read_text()), f"{page.name}: {target}"


def anchors(text: str) -> set[str]:
    """What headings are called in links: lower case, spaces as hyphens, no punctuation."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
