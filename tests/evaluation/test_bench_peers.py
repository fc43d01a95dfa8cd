"""Published code and ours are measured in turns, with the same weights."""

import pytest

from var_toolkit.cli import main
from var_toolkit.evaluation.bench import peers
from var_toolkit.evaluation.bench.peer_rows import PEERS, chosen, require_checkout


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


def test_rows_are_chosen_by_name():
    assert chosen(None) == list(PEERS)
    assert {peer.batch for peer in chosen(["*-batch-8-*"])} == {8}


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


def test_a_checkout_is_known_by_its_network(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "var.py").touch()
    assert require_checkout(tmp_path) == tmp_path.resolve()
