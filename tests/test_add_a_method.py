"""docs/add-a-method.md is correct: the test writes its files and runs its commands literally, and checks the results.

So is the short version in the README.
"""

import json
import re
import shlex
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import BLOCK, commands_of, files_of, here
from PIL import Image
from small_bench import here_except

from var_toolkit.cli import main
from var_toolkit.core.plan import Step
from var_toolkit.evaluation.bench import rounds
from var_toolkit.evaluation.bench.table import table_from
from var_toolkit.loading import skeleton
from var_toolkit.methods.by_name import GROUP

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "add-a-method.md").read_text()


@pytest.fixture
def folder(tmp_path):
    """A folder outside of the package that contains only the files of the page."""
    for name, text in files_of(PAGE).items():
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in ("shy_method", "likely_rule"):
        sys.modules.pop(name, None)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def test_the_files_and_commands_of_the_page_work(folder, monkeypatch, capsys):
    assert set(files_of(PAGE)) == {"shy_method.py", "draw.py", "shy.yaml", "likely_rule.py"}
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    # A process of its own looks for the method in the current folder.
    monkeypatch.setattr(rounds, "Child", here_except("shy"))
    dry, drawn, script, bench, rule = (here(command, capsys) for command in commands_of(PAGE))

    (plan,) = (line for line in dry.splitlines() if line.startswith("plan "))
    first, second = plan.split("; ")
    assert "scales 0-2:" in first
    assert first.endswith("temperature 1")
    assert "scales 3-5:" in second
    assert second.endswith("temperature 0.5")
    assert not list(folder.glob("class-*"))  # the dry run writes nothing

    assert drawn.startswith("shy.png: class 207")
    assert np.abs(pixels(folder / "shy.png") - pixels(folder / "plain.png")).mean() > 1
    equal = script.splitlines()[0]
    assert equal.startswith("[True, True, False")  # scales 0 and 1 are as before, scale 2 is not
    assert "guidance 0.8 to 2, " in script
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


def test_the_rule_of_the_page_decides_which_drafts_are_accepted(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (command,) = (line for line in commands_of(PAGE) if "likely_rule:likely" in line)
    words = command.replace("share=0.1", "share={}").split()[1:]
    passes = []
    for share in ("0", "1"):  # accept every draft; accept only the most likely token
        assert main([word.format(share) for word in words] + ["--json"]) == 0
        passes.append(json.loads(capsys.readouterr().out)["speculation"]["passes_per_image"])
    assert passes[0] == 1 + -(-255 // 16)  # windows of 16
    assert passes[1] > 2 * passes[0]
    assert main([*words[: words.index("--speculate")], "--method", "likely_rule:likely"]) == 2
    assert "--speculate" in capsys.readouterr().err


def test_an_installed_package_gives_its_method_the_name_of_the_page(folder, monkeypatch, capsys):
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


def test_the_table_of_the_page_has_every_field_of_a_step():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == [field.name for field in fields(Step)]


GUIDANCES = {
    "only at the last scale": lambda k, count: k == count - 1,
    "off at the last scale": lambda k, count: k < count - 1,
    "off from scale 3 on": lambda k, count: k < 3,
}


def test_switching_guidance_costs_what_the_table_of_the_page_has():
    table = PAGE.partition("\n| Guidance |")[2].partition("\n\n")[0].splitlines()
    models, cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in (table[0], *table[2:])], {}
    names, *rows = models
    for case, *costs in rows:
        cells |= {(case, name): float(cost) for name, cost in zip(names, costs, strict=True) if cost}
    assert len(cells) == 6
    for (case, name), cost in cells.items():
        pipe = skeleton(name)
        plan = pipe.plan(guidance_scale=2.5)
        count = len(plan.schedule)
        steps = (replace(step, guidance=step.guidance * GUIDANCES[case](step.scale, count)) for step in plan.steps)
        found = pipe.bind(replace(plan, steps=steps)).cost().multiply_adds / pipe.bind(plan).cost().multiply_adds
        assert round(found, 2) == cost, (case, name)


def test_the_short_version_in_the_readme_works(tmp_path, monkeypatch, capsys):
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
    (read,) = table_from({"defaults": {"model": "stilllife-var"}, "rows": [yaml.safe_load(row)]}, allow_code=True).rows
    assert skeleton(read.source).plan(**read.plan).steps[0].head.temperature == 0.5
    sys.modules.pop(Path(name).stem)
