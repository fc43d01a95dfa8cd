"""Speculative decoding on the command line: what it draws, what it tells, what it refuses."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file
from small_llamagen import tiny_gpt, tiny_gpt_config, tiny_vq

from var_toolkit.cli import main
from var_toolkit.formats.directory import save_network
from var_toolkit.formats.frequent_codes import write_frequent
from var_toolkit.loading import Drafting, load, skeleton
from var_toolkit.models.draft_heads import EagleHead, EagleHeadConfig, ExitHead, ExitHeadConfig
from var_toolkit.models.judge_head import JudgeHead, JudgeHeadConfig
from var_toolkit.models.medusa_heads import HydraHeads, MedusaHeads, MedusaHeadsConfig
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling

PLAIN = Sampling(2.0, top_k=0, top_p=0.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A target, a smaller model that is drawn without guidance, one of other tokens, and two heads."""
    folder = tmp_path_factory.mktemp("models")
    Pipeline(tiny_vq(), tiny_gpt(), PLAIN).save_pretrained(folder / "target")
    Pipeline(tiny_vq(), tiny_gpt(depth=1), Sampling(1.0, top_k=0, top_p=0.0)).save_pretrained(folder / "small")
    other = {"vocab_size": 8}
    Pipeline(tiny_vq(**other), tiny_gpt(**other), PLAIN).save_pretrained(folder / "other")
    sizes = asdict(tiny_gpt_config())
    sizes = {name: sizes[name] for name in ("embed_dim", "num_heads", "mlp_hidden", "side", "vocab_size")}
    save_network(EagleHead(EagleHeadConfig(**sizes)), folder / "eagle")
    save_network(ExitHead(ExitHeadConfig(**sizes, layers=1)), folder / "exit")
    heads = MedusaHeadsConfig(sizes["embed_dim"], sizes["vocab_size"], heads=3, hidden=8)
    save_network(MedusaHeads(heads), folder / "medusa")
    save_network(HydraHeads(heads), folder / "hydra")
    save_network(JudgeHead(JudgeHeadConfig(sizes["embed_dim"])), folder / "judge")
    save_network(JudgeHead(JudgeHeadConfig(3)), folder / "narrow-judge")
    for name in ("hydra", "small"):
        write_frequent(folder / name, list(range(sizes["vocab_size"] - 1, -1, -1)))
    return {path.name: str(path) for path in folder.iterdir()}


def run(models, *options: str) -> int:
    filled = [models.get(option.removeprefix("@"), option) if option.startswith("@") else option for option in options]
    return main(["sample", "--class", "3", "1", "--device", "cpu", "--model", models["target"], *filled])


@pytest.mark.parametrize(
    "options",
    [
        "--speculate auto",
        "--speculate auto --draft-length 3",
        "--speculate jacobi",
        "--speculate jacobi --jacobi-start random --jacobi-keep --draft-length auto",
        "--speculate draft --draft-model @small --draft-length 3",
        "--speculate draft --draft-model @small --draft-tree 2,2",
        "--speculate draft --draft-model @small --accept kseq --draft-confidence 0.2",
        "--speculate early-exit --exit-layers 1",
        "--speculate early-exit --draft-model @exit",
        "--speculate eagle --draft-model @eagle --draft-tree 3,2,1",
        "--speculate medusa --draft-model @medusa --draft-tree 3,2",
        "--speculate hydra --draft-model @hydra",
        "--speculate hydra --draft-model @hydra --accept kseq --draft-confidence 0.2",
        "--speculate hydra --draft-model @hydra --draft-codes 5",
        "--speculate draft --draft-model @small --draft-codes 1 --draft-tree 2,2",
        "--speculate draft --draft-model @small --draft-codes 1000",
        "--speculate ngram",
        "--speculate jacobi --draft-length 1000",
        "--speculate jacobi --accept lantern --delta 0.3",
        "--speculate jacobi --accept lantern --lambda 5 --neighbours 4 --raw-codes",
        "--speculate jacobi --accept grouped --group 4",
        "--speculate hydra --draft-model @hydra --accept judge --judge @judge --judge-threshold 0.4",
        "--speculate eagle --draft-model @eagle --accept decayed --boost 1.5 --decay 0.5",
    ],
)
def test_every_way_draws_and_tells_what_became_of_the_drafts(models, options, capsys):
    assert run(models, *options.split(), "--json", "-n", "2", "--batch-size", "3") == 0
    told = json.loads(capsys.readouterr().out)
    speculation = told["speculation"]
    assert 0 < speculation["passes_per_image"] <= 9
    assert speculation["tokens_per_pass"] == pytest.approx(9 / speculation["passes_per_image"], abs=0.01)
    # The first pass of an image has no drafts.
    assert sum(speculation["accepted_histogram"].values()) == round(4 * speculation["passes_per_image"]) - 4
    assert told["forward_passes"] <= 2 * 9


def test_without_speculation_nothing_is_told_of_it(models, capsys):
    assert run(models, "--json") == 0
    assert json.loads(capsys.readouterr().out)["speculation"] is None


def test_window_1_draws_what_plain_decoding_draws_and_the_batch_changes_nothing(models):
    found = {}
    for name, options in {
        "plain": "",
        "window": "--speculate jacobi --draft-length 1",
        "alone": "--speculate draft --draft-model @small --batch-size 1",
        "together": "--speculate draft --draft-model @small --batch-size 8",
    }.items():
        assert run(models, *options.split(), "--save-tokens", f"{name}.safetensors", "-n", "3") == 0
        found[name] = load_file(f"{name}.safetensors")["tokens"]
    assert torch.equal(found["plain"], found["window"])
    assert torch.equal(found["alone"], found["together"])


def test_the_plan_says_it_in_words(models, capsys):
    assert run(models, "--speculate", "jacobi", "--accept", "lantern", "--delta", "0.25", "--dry-run") == 0
    assert "Jacobi drafts, repeat start, LANTERN, delta 0.25, 15 neighbours, window 16" in capsys.readouterr().out
    assert run(models, "--speculate", "hydra", "--draft-model", "@hydra", "--draft-codes", "5", "--dry-run") == 0
    assert "drafts by Hydra heads, 5 codes, standard acceptance, window 4" in capsys.readouterr().out


def test_draft_models_load_beside_a_model_and_follow_it(models):
    pipe = load(models["target"], draft_model=models["small"], device="cpu", dtype=torch.bfloat16)
    assert pipe.draft_model.network.output.weight.dtype == torch.bfloat16
    assert not pipe.draft_model.guided
    assert skeleton(Drafting(models["target"], models["eagle"])).draft_model.network.fuse.weight.is_meta
    drawn = pipe([1, 2], seeds=[0, 1], speculate="draft", draft_length=3)
    assert drawn.speculation.images == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            "--accept lantern",
            "accept is for speculative decoding; give speculate as well: auto, jacobi, draft, early-exit",
        ),
        ("--speculate guess", "speculate is 'guess'; it must be one of auto, jacobi, draft, early-exit, ngram, eagle"),
        ("--speculate auto --accept lantern", "speculate auto gives the tokens of plain decoding; leave accept out"),
        ("--speculate auto --draft-tree 2,2", "--draft-tree is for speculate draft or early-exit or ngram or eagle"),
        ("--speculate jacobi --accept all", "accept is 'all'; it must be one of standard, kseq"),
        ("--speculate jacobi --accept kseq", "accept kseq needs independent drafts, which jacobi"),
        ("--speculate ngram --accept kseq", "accept kseq needs independent drafts, which ngram"),
        ("--speculate jacobi --draft-length 0", "'0' must be an integer of at least 1"),
        ("--speculate jacobi --draft-length far", "'far' must be an integer of at least 1"),
        ("--speculate jacobi --draft-tree 2,2", "--draft-tree is for speculate draft or early-exit or ngram or eagle"),
        (
            "--speculate jacobi --draft-confidence 0.5",
            "--draft-confidence is for speculate draft or early-exit or eagle",
        ),
        ("--speculate jacobi --jacobi-start zero", "--jacobi-start is 'zero'; it must be one of random, repeat"),
        ("--speculate draft", "speculate draft needs a draft model"),
        ("--speculate draft --draft-model @other", "has vocab_size 8, but the target has 16"),
        ("--speculate draft --draft-model @eagle", "is of kind EagleHead; speculate draft needs a next-token model"),
        ("--speculate eagle --draft-model @small", "is a RasterGPT; speculate eagle takes an EagleHead"),
        ("--speculate ngram --draft-codes 4", "--draft-codes is for speculate draft"),
        ("--speculate medusa --draft-model @medusa --draft-codes 4", "has no frequent_codes.json"),
        ("--speculate early-exit --draft-codes 4", "speculate early-exit needs a draft model"),
        ("--speculate hydra --draft-model @medusa", "is a MedusaHeads; speculate hydra takes HydraHeads"),
        ("--speculate medusa --draft-model @hydra", "is a HydraHeads; speculate medusa takes MedusaHeads"),
        ("--speculate hydra --draft-model @eagle", "is a EagleHead; speculate hydra takes HydraHeads"),
        ("--speculate hydra --draft-model @hydra --draft-length 5", "--draft-length is 4 at most"),
        ("--speculate medusa --draft-model @medusa --draft-tree 1,1,1,1", "a tree has 3 levels at most"),
        ("--speculate early-exit --draft-model @eagle", "is a EagleHead; speculate early-exit takes an ExitHead"),
        ("--speculate early-exit --exit-layers 2", "layers is 2;"),
        ("--speculate jacobi --accept lantern --delta 1.5", "--delta is 1.5; it must be a number from 0 to 1"),
        ("--speculate jacobi --accept lantern --lambda 0.5", "--lambda is 0.5; it must be a number from 1"),
        ("--speculate jacobi --accept lantern --delta 0.1 --lambda 2", "give one of them"),
        ("--speculate jacobi --accept lantern --neighbours 16", "neighbours is 16; it must be from 1 to 15"),
        ("--speculate jacobi --accept judge", "accept judge needs a trained judge"),
        ("--speculate jacobi --accept judge --judge nowhere", "judge nowhere: no such network"),
        ("--speculate jacobi --accept judge --judge=", "the judge's name is empty; give one of the package"),
        ("--speculate jacobi --accept judge --judge @eagle", "holds a EagleHead; it must hold a JudgeHead"),
        ("--speculate jacobi --accept judge --judge @narrow-judge", "the judge reads 3 features"),
        ("--speculate jacobi --accept judge --judge @judge --judge-threshold 2", "--judge-threshold is 2"),
        ("--speculate jacobi --judge @judge", "judge is for accept judge, not for standard"),
        ("--speculate jacobi --delta 0.1", "delta is for accept lantern, not for standard"),
        ("--speculate ngram --draft-tree 2,2 --draft-length 4", "both say how far to draft"),
        ("--speculate draft --draft-model @small --accept kseq --draft-tree 2,2", "widths are [2, 2]"),
        (
            "--speculate draft --draft-model @small --draft-confidence 2",
            "--draft-confidence is 2.0; it must be a number from 0",
        ),
        ("--speculate draft --draft-model nowhere", "'nowhere' is not known"),
    ],
)
def test_bad_input_is_one_line_and_status_2(models, options, words, capsys):
    try:
        status = run(models, *options.split())
    except SystemExit as stopped:  # argparse's own
        status = stopped.code
    told = capsys.readouterr().err
    assert status == 2
    assert words in told
    assert "Traceback" not in told


def test_frequent_codes_are_saved_with_a_model(models, tmp_path, monkeypatch):
    codes = load(models["small"], device="cpu").frequent_codes
    assert codes == tuple(range(15, -1, -1))
    for _ in range(2):
        load(models["small"], device="cpu").save_pretrained(tmp_path / "again", overwrite=True)
        assert skeleton(Drafting(models["target"], str(tmp_path / "again"))).draft_model.frequent == codes
    monkeypatch.setattr("var_toolkit.loading.snapshot", lambda *_: tmp_path / "again")
    assert skeleton(Drafting(models["target"], "some-user/small")).draft_model.frequent == codes


def test_frequent_codes_of_an_embedded_model_are_known():
    assert skeleton("stilllife-gpt-small").frequent_codes is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--speculate jacobi", "speculate jacobi is for next-token models (LlamaGen); VAR has speculate draft"),
        ("--speculate draft --draft-model stilllife-flowar", "FlowAR"),
        ("--speculate draft --draft-model stilllife-var-small --draft-length auto", "must be a number of scales"),
        ("--speculate draft --draft-model stilllife-var-small --accept kseq", "accept kseq is for next-token models"),
        ("--speculate draft --draft-model stilllife-var-small --draft-tree 2,2", "a VAR's drafts are whole scales"),
        (
            "--speculate draft --draft-model stilllife-var-small --accept judge --judge x",
            "accept judge is for next-token",
        ),
        ("--speculate draft --draft-model stilllife-var-small --draft-codes 2", "a VAR's drafts are whole scales"),
        ("--speculate draft --draft-model stilllife-var-small --subnet 8 --full-scales 4", "without smooth, subnet"),
        ("--model stilllife-flowar --speculate draft", "FlowAR draws continuous tokens"),
        ("--speculate draft --draft-model stilllife-gpt-eagle", "EagleHead"),
        ("--draft-model stilllife-var-small", "--draft-model is for --speculate draft, early-exit, eagle"),
        ("--model stilllife-gpt --speculate ngram --draft-tree 40,40,40", "it must have 1000 drafts at most"),
        ("--model stilllife-gpt --speculate ngram --draft-tree 2000", "256 tokens of 1024 codes"),
        ("--model stilllife-hmar --speculate draft --draft-model stilllife-var-small", "HMAR cannot be its target"),
        ("--drafter stilllife-var --refiner stilllife-var-small --draft-scales 3 --speculate draft", "two models"),
        ("--drafter a --refiner b --draft-scales 3 --draft-model c", "give one of them"),
    ],
)
def test_what_a_model_of_scales_cannot_do_is_refused(options, words, capsys):
    assert main(["sample", "--class", "207", "--device", "cpu", *options.split()]) == 2
    assert words in capsys.readouterr().err


def test_a_smaller_var_drafts_whole_scales(capsys):
    options = "--speculate draft --draft-model stilllife-var-small --draft-length 3 --accept lantern --delta 0.3 --json"
    assert main(["sample", "--class", "207", "--device", "cpu", *options.split()]) == 0
    told = json.loads(capsys.readouterr().out)["speculation"]
    assert told["passes_per_image"] < 6
    assert set(told["token_acceptance_by_scale"]) <= set("01234")
