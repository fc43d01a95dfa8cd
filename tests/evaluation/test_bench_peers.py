"""Published code and ours are measured in turns, with the same weights."""

import sys
from importlib import import_module
from types import ModuleType

import pytest
from torch import nn

from var_toolkit.cli import main
from var_toolkit.evaluation.bench import peers
from var_toolkit.evaluation.bench.peer_rows import CODES, chosen, code_in
from var_toolkit.evaluation.bench.published_code import importable, made


def test_each_is_called_once_to_warm_up_and_then_in_turns():
    calls = []
    draws = {name: lambda seed, name=name: calls.append((name, seed)) for name in ("ours", "published")}
    seconds = peers.in_turns(draws, 2, lambda what: None)
    assert calls == [(name, seed) for seed in range(3) for name in draws]
    assert {name: len(times) for name, times in seconds.items()} == {"ours": 2, "published": 2}


def test_ratios_are_those_of_the_rounds():
    found = peers.summary({"ours": [1.0, 2.0, 1.0], "published": [2.0, 3.0, 4.0]})
    assert (found["ratio_low"], found["ratio"], found["ratio_high"]) == (1.5, 2.0, 4.0)
    assert "1.50 to 4.00" in peers.as_text([{"row": "a", **found}])


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_rows_are_chosen_by_name(code):
    assert chosen(code, None) == list(code.peers)
    assert {peer.batch for peer in chosen(code, ["*-batch-1-*"])} == {1}
    assert chosen(code, ["*"]) == [*code.peers, *code.large]
    assert {peer.model.partition("-")[0] for peer in code.peers} <= set(peers.BOTH)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_a_checkout_is_known_by_its_network(code, tmp_path):
    file = tmp_path / code.file
    file.parent.mkdir(parents=True)
    file.touch()
    assert code_in(tmp_path) == code


def test_published_code_leaves_nothing_behind(tmp_path):
    (tmp_path / "someones").mkdir()
    (tmp_path / "someones" / "network.py").write_text(
        "from torch import nn\nimport stub\nnn.Linear.reset_parameters = None"
    )
    before, path = nn.Linear.reset_parameters, list(sys.path)
    with importable(tmp_path, stub=ModuleType("stub")):
        import_module("someones.network")
    assert nn.Linear.reset_parameters is before
    assert sys.path == path
    assert not {"someones", "someones.network", "stub"} & set(sys.modules)


def test_what_published_code_imports_of_others_stays(tmp_path, monkeypatch):
    """Some libraries register operators, and cannot be imported twice."""
    for name in ("published", "others"):
        (tmp_path / name).mkdir()
    (tmp_path / "others" / "library_of_others.py").touch()
    (tmp_path / "published" / "network_of_theirs.py").write_text("import library_of_others, json")
    monkeypatch.syspath_prepend(tmp_path / "others")
    before = sys.modules["json"]
    with importable(tmp_path / "published", json=ModuleType("json")):
        library = import_module("network_of_theirs").library_of_others
    assert sys.modules.pop("library_of_others") is library
    assert sys.modules["json"] is before


def test_a_network_is_built_without_its_own_initialisation():
    def build():
        layer = nn.Linear(2, 2)
        nn.init.trunc_normal_(layer.weight.data.fill_(float("nan")))
        return layer

    weight = made(build).weight
    assert weight.isfinite().all()
    assert weight.unique().numel() == 4


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], "--published"),
        (["--published", "."], "models/var.py"),
        (["--published", "VAR", "--only", "nothing"], "nothing"),
        (["--published", "VAR", "--out", "out"], "--out"),
    ],
    ids=["no-checkout", "another-folder", "no-such-row", "out"],
)
def test_what_cannot_be_measured_is_refused_in_one_line(options, names, tmp_path, monkeypatch, capsys):
    (tmp_path / "VAR" / "models").mkdir(parents=True)
    (tmp_path / "VAR" / "models" / "var.py").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "peers", *options]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert names in told
