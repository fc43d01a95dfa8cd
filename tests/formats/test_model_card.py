"""What a model says of itself: it is true, it travels with the weights, and what is not known is said to be so."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from named_models import DRAWING, by_size

from var_toolkit.cli import main
from var_toolkit.cli.models import _parameters, _short
from var_toolkit.formats import facts
from var_toolkit.formats.facts import SIGNATURE, Facts, of_entry, of_files
from var_toolkit.formats.model_card import model_card
from var_toolkit.loading import Pair, load, skeleton
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import ENTRIES, Embedded, Sampling

MEASURED = (Path(__file__).parent.parent.parent / "docs" / "measurements.md").read_text(encoding="utf-8")


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("name", by_size())
def test_every_model_has_a_card_with_its_sizes_and_its_plan(name):
    pipe = skeleton(name)
    card = model_card(pipe, f"someone/{name}")
    told = front_matter(card)
    assert told["library_name"] == "var_toolkit"
    assert told["pipeline_tag"] == ("unconditional-image-generation" if pipe.text is None else "text-to-image")
    assert f"{pipe.tokenizer.image_side} x {pipe.tokenizer.image_side} pixels" in card
    for backbone in pipe.backbones:
        assert f"{backbone.config.depth} layers, width {backbone.config.embed_dim}" in card
    assert str(pipe.bind(pipe.plan())) in card
    assert f'load("someone/{name}")' in card
    subject = "--class 207" if pipe.text is None else "--prompt "
    assert f"vargen sample --model someone/{name} {subject}" in card
    assert card.rstrip().endswith(SIGNATURE)
    assert "None" not in card


@pytest.mark.parametrize("name", [n for n in DRAWING if isinstance(ENTRIES[n].source, Embedded)])
def test_embedded_models_tell_their_recipes_and_the_figures_of_the_docs(name):
    entry, pipe = ENTRIES[name], skeleton(name)
    card = model_card(pipe, name)
    assert front_matter(card)["license"] == "mit"
    counted = sum(p.numel() for b in pipe.backbones for p in b.parameters())
    assert counted == _parameters(entry)
    assert _short(sum(p.numel() for p in pipe.backbone.parameters())) in card
    for recipe in entry.training.recipes:
        assert f"# configs/{recipe}.yaml" in card
    if entry.training.judged:
        assert f"| {entry.training.agreement} % |" in card
        assert f"{entry.training.agreement} %" in MEASURED
    if entry.training.distance is not None:
        assert f"| {entry.training.distance:g} |" in card
        assert f" {entry.training.distance:g} |" in MEASURED
    if entry.training.images is not None:
        assert f"| images seen | {entry.training.images:,} |" in card


@pytest.mark.parametrize(
    ("name", "front", "words"),
    [
        ("var-d16", {"license": "mit", "base_model": ["FoundationVision/var"]}, "as its authors report | 3.55 |"),
        ("code-8", {"license": "mit", "base_model": ["FoundationVision/var", "Zigeng/VAR_CoDe"]}, "2411.17787"),
        ("hmar-d16", {"license": "other", "license_name": "nvidia-non-commercial"}, "`nvidia-non-commercial`"),
        ("llamagen-b", {"license": "mit"}, "next-token prediction"),
        ("flowar-s", {"license": None}, "## Licence\n\nNot known."),
    ],
)
def test_published_models_have_the_licences_and_figures_of_their_authors(name, front, words):
    card = model_card(skeleton(name), name)
    assert {key: front_matter(card).get(key) for key in front} == front
    assert words in card
    assert "recipe is not known." in card
    assert "| images seen | Not known. |" in card


def test_a_model_of_which_nothing_is_known_says_so(small_tokenizer, small_var, tmp_path):
    Pipeline(small_tokenizer, small_var).save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "license" not in front_matter(card)
    assert "| weights | Not known. |" in card
    assert "## Evaluation\n\nNo scores are known." in card
    assert "## Licence\n\nNot known." in card
    assert "vargen sample --model model --class 9" in card


def test_facts_travel_with_a_directory(small_tokenizer, small_var, tmp_path):
    known = Facts("here", "mit", ("a/b",), "images", 7, "objective: var\n", {"loss": 3.5}, {"FID": "2"})
    Pipeline(small_tokenizer, small_var, facts=known).save_pretrained(tmp_path / "a")
    load(tmp_path / "a", device="cpu").save_pretrained(tmp_path / "b")
    assert load(tmp_path / "b", device="cpu").facts == skeleton(tmp_path / "b").facts == known
    card = (tmp_path / "b" / "README.md").read_text()
    for words in ("| loss at the end | 3.5 |", "| FID | 2 |", "```yaml\nobjective: var\n```", "| images seen | 7 |"):
        assert words in card


def test_a_card_written_by_hand_travels_and_ours_does_not(small_tokenizer, small_var, tmp_path):
    Pipeline(small_tokenizer, small_var).save_pretrained(tmp_path / "a")
    assert load(tmp_path / "a", device="cpu").facts.card is None
    path = tmp_path / "a" / "README.md"
    path.write_text(path.read_text().replace(SIGNATURE, "Drawn on a Sunday."))
    load(tmp_path / "a", device="cpu").save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "README.md").read_text() == path.read_text()
    path.write_text("---\nlicense: mit\n---\n")  # as the hub makes it for a new repository
    assert load(tmp_path / "a", device="cpu").facts.card is None


def test_damaged_facts_are_one_line(small_tokenizer, small_var, tmp_path):
    Pipeline(small_tokenizer, small_var).save_pretrained(tmp_path / "a")
    for content, words in (("{", "is not JSON"), ('{"images_seen": "many"}', "images_seen is 'many'")):
        (tmp_path / "a" / "facts.json").write_text(content)
        with pytest.raises(ValueError, match=rf"facts\.json.*{words}[^\n]*$"):
            load(tmp_path / "a", device="cpu")


def test_figures_and_licence_do_not_survive_another_tokenizer():
    whole, changed = skeleton("stilllife-flowar"), skeleton("stilllife-flowar", tokenizer="stilllife-kl")
    assert whole.facts.figures
    assert whole.facts.license == "mit"
    assert (changed.facts.figures, changed.facts.license) == ({}, None)
    assert "stilllife-kl" in changed.facts.origin


def test_two_models_that_draw_together_have_a_licence_only_if_they_share_it():
    ours = skeleton(Pair("stilllife-var", "stilllife-var-small", 4)).facts
    assert ours.license == "mit"
    assert ours.figures == {}
    assert "stilllife-var " in ours.origin
    assert "stilllife-var-small " in ours.origin
    assert skeleton(Pair("hmar-d16", "var-d16", 4)).facts.license is None


def test_a_licence_can_be_given_and_not_changed():
    assert Facts().licensed("mit").license == "mit"
    assert Facts(license="mit").licensed(None).license == "mit"
    apache = copy(skeleton("stilllife-var-small"))
    apache.facts = Facts().licensed("apache-2.0")
    assert front_matter(model_card(apache, "a/b"))["license"] == "apache-2.0"
    with pytest.raises(
        ValueError, match="license is 'mit', but these weights have the licence 'nvidia-non-commercial'"
    ):
        of_entry(ENTRIES["hmar-d16"]).licensed("mit")


def test_converted_files_with_published_names_have_their_licence_and_others_none():
    published = of_files("hmar", {"tokenizer": "vae.pth", "backbone": "hmar-d16.pth"})
    assert published.license == "nvidia-non-commercial"
    assert published.origin == "converted from vae.pth and hmar-d16.pth, the names of published files"
    own = of_files("var", {"tokenizer": "vae.pth", "backbone": "my.pth"})
    assert own == Facts(origin="converted from vae.pth and my.pth")


def test_conversion_notes_where_weights_come_from(small_tokenizer, small_var, tmp_path):
    torch.save(small_tokenizer.state_dict(), tmp_path / "vae.pth")
    for name, told in (("var_d16.pth", "mit"), ("mine.pth", None)):
        torch.save({**small_var.state_dict(), "lvl_1L": small_var.scales.level_ids()[None]}, tmp_path / name)
        files = ["--tokenizer", str(tmp_path / "vae.pth"), "--backbone", str(tmp_path / name)]
        assert main(["convert", "--family", "var", *files, "--out", str(tmp_path / f"from-{name}")]) == 0
        found = skeleton(tmp_path / f"from-{name}").facts
        assert found.license == told
        assert found.origin.startswith(f"converted from vae.pth and {name}")


def test_settings_do_not_change_what_is_known(small_tokenizer, small_var):
    pipe = Pipeline(small_tokenizer, small_var, Sampling(top_k=3), facts=Facts(figures={"FID": "2"}))
    assert "top-k 3" in model_card(pipe, "a/b")
    assert replace(pipe.facts, figures={}) == Facts()
    assert facts.DATA["still-lifes"] not in model_card(pipe, "a/b")
