"""The weights that come with the package do what they are for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import var_toolkit
from var_toolkit.cli import main
from var_toolkit.formats.directory import load_network
from var_toolkit.images import to_uint8
from var_toolkit.registry import ENTRIES, Embedded, embedded_part
from var_toolkit.still_life.classifier import StillLifeClassifier
from var_toolkit.still_life.data_set import render
from var_toolkit.still_life.scene_judge import prompts
from var_toolkit.still_life.scene_quality import edge_f1, prompt_scores
from var_toolkit.still_life.scene_quality import renderings as scenes_of

EMBEDDED = [name for name, entry in ENTRIES.items() if isinstance(entry.source, Embedded) and entry.draws]
DRAWING = [name for name in EMBEDDED if not ENTRIES[name].takes_prompts]
FRESH = 2**42


@pytest.fixture(scope="module")
def judge() -> StillLifeClassifier:
    network = load_network(embedded_part("stilllife-classifier"))
    assert isinstance(network, StillLifeClassifier)
    return network


@pytest.fixture(scope="module")
def renderings() -> tuple[torch.Tensor, torch.Tensor]:
    labels = list(range(3, 1000, 5))
    return render(labels, [FRESH + i for i in labels]) / 127.5 - 1, torch.tensor(labels)


def test_the_classifier_knows_fresh_renderings(judge, renderings):
    images, labels = renderings
    with torch.no_grad():
        assert (judge.predict(images) == labels).float().mean() >= 0.96


def test_the_tokenizer_keeps_fresh_renderings(renderings):
    images = renderings[0][:64]
    tokenizer = var_toolkit.load(DRAWING[0], device="cpu").tokenizer
    errors = (tokenizer.reconstruct(images) - images).square().mean((1, 2, 3)) / 4
    assert (-10 * errors.log10()).mean() > 27.5


@pytest.mark.parametrize("name", [name for name in DRAWING if name != "stilllife-gpt-small"])  # which only drafts
def test_samples_show_what_their_class_says(name, judge):
    """Chance is one in a thousand; see docs/measurements.md for what a thousand images reach."""
    pipe = var_toolkit.load(name, device="cpu")
    labels = list(range(7, 1000, 50))
    images = pipe(labels, seeds=labels, output_type="pt", batch_size=20).images
    with torch.no_grad():
        agree = (judge.predict(images * 2 - 1) == torch.tensor(labels)).float().mean()
    assert agree > 0.25


def test_the_text_model_draws_what_a_prompt_asks_for():
    """Most of it: several different solids are often mixed up (docs/measurements.md)."""
    pipe, asked = var_toolkit.load("scenes-infinity", device="cpu"), prompts(24)
    images = pipe(prompt=[one.caption.text for one in asked], seeds=range(24), output_type="pt", batch_size=24).images
    scores = prompt_scores((images * 255).round().to(torch.uint8), asked)
    assert scores.attributes["ground"] > 0.8
    assert scores.attributes["light"] > 0.8
    assert scores.attributes["count"] > 0.6
    assert scores.whole > 0.4


def test_the_tokenizer_of_scenes_keeps_real_renderings_and_their_edges():
    real = scenes_of(prompts(48))
    again = load_network(embedded_part("scenes-tokenizer")).reconstruct(real / 127.5 - 1).clamp(-1, 1)
    errors = (again - (real / 127.5 - 1)).square().mean((1, 2, 3)) / 4
    assert (-10 * errors.log10()).mean() > 31
    assert edge_f1(to_uint8((again + 1) / 2), real) > 0.8


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_image_drawn_alone_has_the_tokens_of_a_batch_of_four(name):
    pipe = var_toolkit.load(name, device="cpu")
    one = {"prompt": ["a red cone on sand"]} if ENTRIES[name].takes_prompts else {"class_labels": [207]}
    together = pipe(**{key: value * 4 for key, value in one.items()}, seeds=range(4), output_type="latent")
    alone = pipe(**one, seeds=[3], output_type="latent")
    for one, other in zip(alone.tokens, together.tokens, strict=True):
        # Continuous tokens are as equal as rounding, which depends on the batch, leaves them.
        torch.testing.assert_close(one[0], other[3], rtol=0, atol=1e-3 if one.is_floating_point() else 0)


def test_all_embedded_weights_together_stay_small():
    folder = Embedded.folder("")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 48e6


def test_the_first_command_of_the_readme_draws_an_image_without_a_network(tmp_path):
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise OSError('no network here')\n"
        "socket.socket.connect = refuse\n"
        "from var_toolkit.cli import main\n"
        "sys.exit(main(['sample', '--class', '207', '--json']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["names"] == ["red cylinder on marble"]
    assert (tmp_path / Path(facts["files"][0])).is_file()
    assert "--model var-d16" in result.stderr


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ("--speculate jacobi --jacobi-keep", 2),
        ("--speculate jacobi --accept lantern --lambda 20 --neighbours 30", 3),
        ("--speculate draft", 1.2),
        ("--speculate eagle", 1.2),
        ("--speculate early-exit", 1.2),
        ("--speculate medusa", 1.1),
        ("--speculate hydra --draft-codes 900", 1.1),
        ("--speculate ngram", 1),
    ],
)
def test_drafts_spare_the_next_token_model_passes(options, least, capsys, tmp_path):
    """With the draft models that belong to it by name; see docs/measurements.md for what more images say."""
    out = ["--out", str(tmp_path), "--json"]
    assert main(["sample", "--class", "207", "--model", "stilllife-gpt", *options.split(), *out]) == 0
    assert json.loads(capsys.readouterr().out)["speculation"]["tokens_per_pass"] > least
