"""Drafters of next-token models: the numbers they are judged by, what they learn from, and that they learn it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.cases import fill
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit import streaming
from var_toolkit.core.engine import decode
from var_toolkit.core.filters import filter_top_k_top_p, guide
from var_toolkit.core.noise import Noise
from var_toolkit.formats.directory import load_network
from var_toolkit.formats.frequent_codes import read_frequent
from var_toolkit.loading import load
from var_toolkit.models.draft_heads import EagleHead, ExitHead, early_exit
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.models.medusa_heads import HydraHeads, MedusaHeads
from var_toolkit.training import sample_cache
from var_toolkit.training.acceptance import acceptance, soft_cross_entropy, tvd_plus_plus
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train
from var_toolkit.training.sample_cache import cached_samples, spread_labels

NAMES = ["raster-distil", "eagle-head", "exit-head", "medusa-heads", "hydra-heads"]
DRAFT = 2 * torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
TARGET = 2 * torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
FILTERED = filter_top_k_top_p(TARGET, top_k=3)
DRAWS = Draws(0, 0, 0, 1, 8, torch.device("cpu"))


def probabilities(logits, row, place):
    return logits[row, place].softmax(dim=0).tolist()


@pytest.mark.parametrize("target", [TARGET, FILTERED], ids=["whole", "filtered"])
def test_acceptance_and_cross_entropy_are_the_sums_over_the_vocabulary(target):
    kept, crossed = acceptance(DRAFT, target), soft_cross_entropy(DRAFT, target)
    assert kept.shape == crossed.shape == (2, 3)
    for row in range(2):
        for place in range(3):
            q, p = probabilities(DRAFT, row, place), probabilities(target, row, place)
            assert kept[row, place].item() == pytest.approx(sum(map(min, q, p)), abs=1e-6)
            apart = sum(abs(a - b) for a, b in zip(q, p, strict=True)) / 2
            assert kept[row, place].item() == pytest.approx(1 - apart, abs=1e-6)
            expected = -sum(b * np.log(a) for a, b in zip(q, p, strict=True))
            assert crossed[row, place].item() == pytest.approx(expected, rel=1e-5)


def test_a_drafter_that_is_the_target_is_always_kept_and_one_apart_never():
    assert_close(acceptance(TARGET, TARGET), torch.ones(2, 3))
    assert_close(acceptance(FILTERED, FILTERED + 5), torch.ones(2, 3))
    others = TARGET.masked_fill(FILTERED.isfinite(), -torch.inf)
    assert acceptance(others, FILTERED).eq(0).all()


@pytest.mark.parametrize("target", [TARGET, FILTERED], ids=["whole", "filtered"])
def test_tvd_plus_plus_is_total_variation_with_its_gradient_over_the_deviation_of_the_reward(target):
    draft = DRAFT.clone().requires_grad_()
    loss = tvd_plus_plus(draft, target)
    variation = 1 - acceptance(draft, target).mean()
    assert loss.item() == pytest.approx(variation.item(), abs=1e-6)
    q, p = draft.softmax(dim=-1).detach(), target.softmax(dim=-1)
    reward = (p > q).float()
    mean = (q * reward).sum(dim=-1).mean()
    deviation = ((q * (reward - mean) ** 2).sum(dim=-1)).mean().sqrt()
    (found,) = torch.autograd.grad(loss, draft, retain_graph=True)
    (plain,) = torch.autograd.grad(variation, draft)
    assert plain.abs().max() > 1e-3
    assert_close(found, plain / deviation, atol=1e-6, rtol=1e-4)


def test_a_drafter_that_cannot_be_better_has_no_gradient():
    draft = TARGET.clone().requires_grad_()
    tvd_plus_plus(draft, TARGET).backward()
    assert_close(draft.grad, torch.zeros_like(draft), atol=1e-6, rtol=0)


def test_every_class_comes_as_often_and_the_first_ones_are_spread():
    labels = spread_labels(25, 10, "train")
    assert labels.bincount(minlength=10).tolist() == pytest.approx([2.5] * 10, abs=0.5)
    assert labels[:10].sort().values.tolist() == list(range(10))
    assert labels[:10].tolist() != list(range(10))
    assert not torch.equal(labels, spread_labels(25, 10, "validation"))
    assert torch.equal(labels[:12], spread_labels(12, 10, "train"))


def test_what_is_learned_from_is_what_the_target_draws(build):
    objective, batch = build("raster-distil", cfg=3.0, top_k=5)
    target = objective.target
    assert (target.guidance, target.head.top_k, target.head.top_p, target.rows) == (2.0, 5, 0.0, 2)
    labels = spread_labels(24, 1000, "train")
    assert torch.equal(batch.labels, labels[:8])
    expected = decode(objective.target_run(), labels[:8], Noise(range(8))).tokens[0]
    assert torch.equal(batch.tokens, expected)
    (held_out,) = objective.held_out
    assert not torch.equal(held_out.tokens, batch.tokens)


def test_samples_are_drawn_once_and_a_killed_drawing_goes_on(build, tmp_path, monkeypatch):
    objective, _ = build("exit-head")
    run = objective.target_run()
    monkeypatch.setattr(sample_cache, "BATCH", 4)
    whole, labels = cached_samples(run, 10, "train", tmp_path / "a", progress=False)
    assert (whole.shape, whole.dtype, labels.shape) == ((10, 64), np.int16, (10,))
    calls = []

    def fail_on_the_second(plan, labels, noise, **options):
        calls.append(len(labels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(plan, labels, noise, **options)

    monkeypatch.setattr(streaming, "decode", fail_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        cached_samples(run, 10, "train", tmp_path / "b", progress=False)
    for _ in range(2):
        again, _ = cached_samples(run, 10, "train", tmp_path / "b", progress=False)
        assert np.array_equal(again, whole)
    assert calls == [4, 4, 4, 2]


def test_another_target_or_other_settings_have_other_samples_on_disk(build, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_cache, "spread_labels", lambda count, classes, split: torch.arange(count))

    def drawn(objective, split="train"):
        return np.array(cached_samples(objective.target_run(), 4, split, tmp_path, progress=False)[0])

    objective, _ = build("exit-head")
    before = drawn(objective)
    assert not np.array_equal(drawn(objective, "validation"), before)
    for changes in ({"cfg": 1.0}, {"top_k": 2}, {"top_p": 0.1}):
        assert not np.array_equal(drawn(build("exit-head", **changes)[0]), before), changes
    with torch.no_grad():
        objective.teacher.norm.weight.mul_(-1)
    assert not np.array_equal(drawn(objective), before)


def test_data_set_tokens_serve_as_well(tiny, settings, cache, tmp_path):
    recipe = tiny("exit-head", data=settings("raster-gpt")["data"], steps=1)
    train(recipe, tmp_path, cache_dir=cache, device="cpu")
    kept = [path.name for path in cache.glob("tokens-still-lifes-*-24-*.npy")]
    assert kept


def taught(objective, batch):
    """The target's features of both rows and its choices, by the book."""
    seen, null = batch.tokens[:, :-1].long(), torch.full_like(batch.labels, 1000)
    with torch.no_grad():
        rows = [
            objective.teacher.next_hidden(objective.teacher.prefix(labels), seen) for labels in (batch.labels, null)
        ]
    logits = guide(torch.cat([objective.teacher.next_logits(row) for row in rows]), 1.0)
    return rows, logits


@pytest.mark.parametrize("name", ["raster-distil", "exit-head"])
def test_the_conditional_row_alone_learns_the_guided_choices(build, name):
    objective, batch = build(name)
    network = fill(objective.networks["var"]).eval()
    _, target = taught(objective, batch)
    drafter = network if name == "raster-distil" else early_exit(objective.teacher, 1, network)
    with torch.no_grad():
        draft = drafter(batch.labels, batch.tokens[:, :-1].long())
        loss = objective._loss(batch, DRAWS)
    assert_close(loss.total, soft_cross_entropy(draft, target).mean(), atol=1e-5, rtol=1e-5)
    assert_close(loss.terms["acceptance"], acceptance(draft, target).mean(), atol=1e-5, rtol=1e-5)
    objective.options = replace(objective.options, loss="tvd++")
    with torch.no_grad():
        assert_close(objective._loss(batch, DRAWS).total, 1 - acceptance(draft, target).mean(), atol=1e-5, rtol=1e-5)


def test_an_eagle_head_learns_features_of_both_rows_and_the_guided_choices(build):
    objective, batch = build("eagle-head", feature_noise=0.0, choice_weight=0.3)
    network = fill(objective.networks["var"])
    rows, target = taught(objective, batch)
    tokens = batch.tokens[:, :-1].long()
    with torch.no_grad():
        guesses = [network.next_features(objective.teacher, tokens, row[:, :-1]) for row in rows]
        draft = guide(objective.teacher.next_logits(torch.cat(guesses)), 1.0)
        loss = objective._loss(batch, DRAWS)
    features = sum(F.smooth_l1_loss(ours, row[:, 1:]) for ours, row in zip(guesses, rows, strict=True)) / 2
    choice = soft_cross_entropy(draft, target[:, 1:]).mean()
    assert features > 0.01
    assert_close(loss.total, features + 0.3 * choice, atol=1e-5, rtol=1e-5)
    assert_close(loss.terms["acceptance"], acceptance(draft, target[:, 1:]).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["medusa-heads", "hydra-heads"])
def test_each_head_learns_the_guided_choices_of_the_token_that_it_drafts(build, name):
    objective, batch = build(name, decay=0.5)
    network = fill(objective.networks["var"])
    rows, target = taught(objective, batch)
    embedded = objective.teacher.tok_embeddings(batch.tokens.long())
    losses, accepted = [], []
    with torch.no_grad():
        for head in range(2):
            # By the book: the features that predicted the first of some tokens, then these; the next one is drafted.
            starts = range(63 - head)
            logits = [
                objective.teacher.next_logits(
                    network(
                        torch.stack(
                            [torch.cat((row[:, i], *embedded[:, i : i + head + 1].unbind(1)), dim=-1) for i in starts],
                            1,
                        )
                    )
                )
                for row in rows
            ]
            draft = guide(torch.cat(logits), 1.0)
            losses.append(soft_cross_entropy(draft, target[:, head + 1 :]).mean())
            accepted.append(acceptance(draft, target[:, head + 1 :]).mean())
        loss = objective._loss(batch, DRAWS)
    assert_close(loss.total, losses[0] + 0.5 * losses[1], atol=1e-5, rtol=1e-5)
    assert_close(loss.terms["acceptance_2"], accepted[1], atol=1e-5, rtol=1e-5)
    assert_close(loss.terms["acceptance"], sum(accepted) / 2, atol=1e-5, rtol=1e-5)


def test_noise_is_on_the_features_in_training_alone(build):
    objective, batch = build("eagle-head", feature_noise=0.5)
    network = objective.networks["var"]
    torch.manual_seed(0)
    with torch.no_grad():
        noisy = [float(objective._loss(batch, replace(DRAWS, step=step)).total) for step in range(2)]
        judged = [float(objective._judged(network, batch)["loss"]) for _ in range(2)]
    assert noisy[0] != noisy[1]
    assert judged[0] == judged[1]


@pytest.mark.parametrize("name", NAMES)
def test_without_guidance_there_is_one_row(build, name):
    objective, batch = build(name, cfg=1.0)
    rows = []
    hidden = objective.teacher.next_hidden
    objective.teacher.next_hidden = lambda labels, seen: rows.append(len(labels)) or hidden(labels, seen)
    objective._loss(batch, DRAWS)
    assert rows == [8]


def test_drafts_are_judged_with_the_filters_of_the_target(build):
    objective, batch = build("raster-distil", top_k=4)
    network = fill(objective.networks["var"]).eval()
    with torch.no_grad():
        found = objective._judged(network, batch)["acceptance"]
        draft = network(batch.labels, batch.tokens[:, :-1].long())
    target = filter_top_k_top_p(taught(objective, batch)[1], top_k=4)
    assert_close(found, acceptance(filter_top_k_top_p(draft, top_k=4), target).mean(), atol=1e-5, rtol=1e-5)
    assert found > acceptance(draft, target).mean() + 0.01


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {}) for name in NAMES],
        ("raster-distil", {"loss": "tvd++"}),
        ("exit-head", {"loss": "tvd++", "cfg": 1.0}),
        ("eagle-head", {"cfg": 1.0, "top_k": 16}),
    ],
)
def test_a_short_run_lowers_the_loss_and_raises_acceptance(tiny, settings, cache, tmp_path, name, options):
    model = settings(name)["model"]
    recipe = tiny(
        name,
        model=model | {"dropout": 0.0} if "dropout" in model else model,
        objective_options=settings(name)["objective_options"] | options,
        optimiser={"lr": 1e-2, "weight_decay": 0.0},
        steps=20,
        validate_every=1,
        sample_every=100,
        ema=None,
    )
    train(recipe, tmp_path, cache_dir=cache, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "validation_acceptance" in line]
    assert judged[-1]["validation_loss"] < judged[0]["validation_loss"] - 0.003
    assert judged[-1]["validation_acceptance"] > judged[0]["validation_acceptance"] + 0.003
    assert {"loss", "acceptance"} <= lines[1].keys()


def test_the_teacher_stays_as_it_is(tiny, parts, cache, tmp_path, weights):
    before = {name: tensor.clone() for name, tensor in weights(parts / "raster-teacher").items()}
    recipe = tiny("exit-head", steps=2)
    final = train(recipe, tmp_path, cache_dir=cache, device="cpu")
    assert all(name.startswith("block.") for name in weights(final))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(parts / "raster-teacher").items())


@pytest.mark.parametrize(
    ("name", "cls"),
    [("eagle-head", EagleHead), ("exit-head", ExitHead), ("medusa-heads", MedusaHeads), ("hydra-heads", HydraHeads)],
)
def test_heads_are_delivered_alone_and_can_be_embedded(tiny, cache, tmp_path, monkeypatch, name, cls):
    final = train(tiny(name, steps=1), tmp_path / "run", cache_dir=cache, device="cpu")
    assert isinstance(load_network(final), cls)
    frequent = read_frequent(final, 32)
    assert sorted(frequent) == list(range(32))
    monkeypatch.setattr("var_toolkit.registry.Embedded.folder", staticmethod(lambda part: tmp_path / part))
    script = Path(__file__).parents[2] / "scripts" / "embed_weights.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(final), "kept"])
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__"})
    assert load_network(tmp_path / "kept").config == load_network(final).config
    assert read_frequent(tmp_path / "kept", 32) == frequent


def test_codes_are_delivered_by_how_often_they_were_learnt(build, tmp_path):
    objective, _ = build("raster-distil")
    objective.save(objective.networks["var"], tmp_path / "final")
    counts = np.bincount(objective.source.values.ravel(), minlength=32)[list(read_frequent(tmp_path / "final", 32))]
    assert (np.diff(counts) <= 0).all()
    assert counts[0] > counts[-1]


def test_a_small_model_is_delivered_with_settings_that_fit_it(tiny, settings, cache, tmp_path):
    options = settings("raster-distil")["objective_options"] | {"class_embedding": "still-life-factors", "top_k": 9}
    recipe = tiny("raster-distil", steps=1, objective_options=options)
    pipe = load(train(recipe, tmp_path, cache_dir=cache, device="cpu"), device="cpu")
    assert (pipe.sampling.cfg, pipe.sampling.top_k, pipe.data_set) == (1.0, 9, "still-lifes")
    assert isinstance(pipe.backbone, RasterGPT)


def test_heads_go_on_from_delivered_ones(tiny, settings, cache, tmp_path, weights):
    for name in ("eagle-head", "exit-head", "hydra-heads"):
        first = train(tiny(name, steps=2, ema=None), tmp_path / name, cache_dir=cache, device="cpu")
        options = settings(name)["objective_options"] | {"initial": str(first)}
        recipe = tiny(name, steps=1, ema=None, objective_options=options)
        again = weights(train(recipe, tmp_path / f"{name}-again", cache_dir=cache, device="cpu"))
        for key, tensor in weights(first).items():
            assert_close(again[key], tensor, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("raster-distil", {"num_classes": 10}, "model: num_classes is 10, but the teacher has 1000"),
        ("raster-distil", {"vocab_size": 64}, "model: vocab_size is 64, but the teacher has 32"),
        ("eagle-head", {"embed_dim": 32}, "embed_dim is 32 .* 16"),
        ("hydra-heads", {"embed_dim": 32}, "embed_dim is 32 .* 16"),
        ("medusa-heads", {"heads": 63}, "heads is 63; .* 62 at most"),
        ("exit-head", {"layers": 2}, "layers is 2; .* 1 to 1"),
        ("exit-head", {"num_heads": 1}, "num_heads is 1 .* 2"),
    ],
)
def test_a_drafter_that_does_not_fit_is_refused_before_anything_is_drawn(
    tiny, settings, tmp_path, name, changes, words
):
    recipe = tiny(name, model=settings(name)["model"] | changes)
    with pytest.raises(ValueError, match=words):
        train(recipe, tmp_path / "out", cache_dir=tmp_path / "cache", device="cpu")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("eagle-head", {}, "missing key 'teacher'"),
        ("eagle-head", {"teacher": "a", "choice_weight": -1.0}, "choice_weight is -1.0; .*0 or more"),
        ("eagle-head", {"teacher": "a", "feature_noise": -0.1}, "feature_noise is -0.1; .*0 or more"),
        ("hydra-heads", {"teacher": "a", "decay": 0.0}, "decay is 0.0; .*above 0"),
        ("exit-head", {"teacher": "a", "loss": "kl"}, "loss is 'kl'; allowed: cross-entropy, tvd"),
        ("raster-distil", {"teacher": "a", "class_dropout": 0.1}, "unknown key 'class_dropout'"),
    ],
)
def test_options_that_cannot_be_are_refused(tiny, name, options, words):
    with pytest.raises(ValueError, match=words):
        tiny(name, objective_options=options)


def test_a_missing_teacher_and_a_negative_guidance_are_refused_before_anything_is_drawn(tiny, settings, tmp_path):
    for options, words in (({"teacher": "nowhere"}, "teacher: 'nowhere'"), ({"cfg": -1}, "cfg is -1")):
        recipe = tiny("exit-head", objective_options=settings("exit-head")["objective_options"] | options)
        with pytest.raises(ValueError, match=words):
            train(recipe, tmp_path / "out", cache_dir=tmp_path / "cache", device="cpu")
    assert not (tmp_path / "cache").exists()
