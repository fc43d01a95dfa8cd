"""Candidates of coarse scales: which one goes on, what the others cost, and that images stay their own."""

import json
from dataclasses import replace

import pytest
import torch

import var_toolkit
from var_toolkit.core.engine import decode
from var_toolkit.core.forecast import forecast
from var_toolkit.core.noise import Noise, candidate_seeds
from var_toolkit.core.plan import Plan
from var_toolkit.core.preserved import Preserved
from var_toolkit.formats.directory import save_network
from var_toolkit.loading import skeleton
from var_toolkit.models.latent_scorer import LatentScorer, LatentScorerConfig
from var_toolkit.pipeline import Pipeline

LABELS, SEEDS, COUNT = [3, 7], [11, 12], 3


@pytest.fixture(scope="module")
def scorer(tmp_path_factory, small_tokenizer, small_var) -> str:
    folder = tmp_path_factory.mktemp("scorer") / "scorer"
    torch.manual_seed(0)
    network = LatentScorer(config_for(small_tokenizer, small_var))
    torch.nn.init.normal_(network.class_emb.weight)
    save_network(network, folder)
    return str(folder)


def config_for(tokenizer, network, **changes) -> LatentScorerConfig:
    sizes = {"latent_channels": tokenizer.channels, "side": tokenizer.scales.finest, "cells": 2, "scales": (1, 2)}
    return LatentScorerConfig(**{**sizes, "num_classes": network.config.num_classes, **changes})


@pytest.fixture(scope="module")
def pipe(small_tokenizer, small_var) -> Pipeline:
    return Pipeline(small_tokenizer, small_var)


@torch.inference_mode()
@pytest.mark.parametrize("size", [1, 2])
def test_the_scorer_chooses_among_draws_from_the_same_features(pipe, scorer, size):
    network, schedule = pipe._scorer(scorer), pipe.backbone.scales
    run, searched = pipe.bind(pipe.plan()), pipe.bind(pipe.plan(candidates=COUNT, latent_scorer=scorer))

    def forced(known, label, seed):
        """All maps of one image by a plain plan, given its first ones."""
        maps = [*known, *(torch.zeros(1, length, dtype=torch.int64) for length in schedule.lengths[len(known) :])]
        masks = [torch.full((1, length), k < len(known)) for k, length in enumerate(schedule.lengths)]
        latents = pipe.tokenizer.pyramid_of(schedule).latents(maps)
        events = []
        decode(run, label, Noise([seed]), preserved=Preserved(maps, masks, latents), on_scale=events.append)
        return events

    for first in range(0, 2, size):
        part = slice(first, first + size)
        drawn = decode(searched, torch.tensor(LABELS[part]), Noise(SEEDS[part]))
        for row, (label, seed) in enumerate(zip(LABELS[part], SEEDS[part], strict=True)):
            asked, known = torch.tensor([label]), []
            for scale in range(len(schedule)):
                seeds = [one for (one,) in candidate_seeds([seed], COUNT if scale in (1, 2) else 1)]
                every = [forced(known, asked, one)[scale] for one in seeds]
                scores = [float(network(one.latent, asked, scale)) if len(every) > 1 else 0.0 for one in every]
                known.append(every[scores.index(max(scores))].tokens)
                assert torch.equal(drawn.tokens[scale][row], known[-1][0])


def test_candidates_are_fields_of_a_plan_that_other_methods_keep(pipe, scorer):
    plan = pipe.plan(candidates=COUNT, latent_scorer=scorer, best_of=2, scorer="builtins:len", top_k=5)
    assert [step.search and step.search.count for step in plan.steps[:4]] == [None, COUNT, COUNT, None]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert f"{COUNT} candidates" in str(pipe.bind(plan))


@pytest.mark.parametrize(("smooth", "again"), [(False, 0), (True, 4)])
def test_the_cost_counts_what_heads_and_the_scorer_compute_for_candidates_and_nothing_else(pipe, scorer, smooth, again):
    """Codes are drawn from logits that all candidates share; mixtures of codes are computed for each."""
    search = {"candidates": 5, "latent_scorer": scorer}
    plain, searched = (pipe.bind(pipe.plan(smooth=smooth, **more)) for more in ({}, search))
    ours, theirs = searched.cost(), plain.cost()
    network, schedule = pipe._scorer(scorer), pipe.backbone.scales
    heads = sum(
        again * step.head.rows(step.guidance, one.rows) * pipe.backbone.head_work(schedule.lengths[step.scale])
        for one in searched.steps
        if (step := one.step).scale in network.config.scales
    )
    assert ours.multiply_adds - theirs.multiply_adds == heads + 2 * 5 * network.work()
    assert (ours.forward_passes, ours.cache_values) == (theirs.forward_passes, theirs.cache_values)


def test_a_forecast_tells_the_memory_of_the_candidates_at_the_scale_that_has_most(pipe, scorer):
    run = pipe.bind(pipe.plan(candidates=COUNT, latent_scorer=scorer))
    config, schedule, latent = pipe.backbone.config, pipe.backbone.scales, run.tokenizer.channels
    rows = next(one.rows for one in run.steps if one.step.scale == 2)
    values = rows * schedule.lengths[2] * (config.embed_dim + config.vocab_size) + COUNT * latent * schedule.finest**2
    told = forecast(run, images=5, batch=4, dtype="float32")["candidates_megabytes_per_batch"]
    assert told == round(4 * 4 * values / 1e6, 1)
    assert "candidates_megabytes_per_batch" not in forecast(pipe.bind(pipe.plan()), images=5, batch=4, dtype="float32")


def test_one_candidate_is_the_plain_draw(pipe, scorer):
    plan = pipe.plan(candidates=2, latent_scorer=scorer)
    single = replace(plan, steps=tuple(replace(s, search=s.search and replace(s.search, count=1)) for s in plan.steps))
    ours, theirs = (pipe(LABELS, seeds=SEEDS, plan=one, output_type="latent") for one in (single, pipe.plan()))
    assert all(torch.equal(a, b) for a, b in zip(ours.tokens, theirs.tokens, strict=True))


@pytest.mark.parametrize("changes", [{"num_classes": 9}, {"latent_channels": 3}, {"side": 64}, {"scales": (40,)}])
def test_a_scorer_of_other_sizes_is_refused(pipe, small_tokenizer, small_var, tmp_path, changes):
    save_network(LatentScorer(config_for(small_tokenizer, small_var, **changes)), tmp_path / "odd")
    with pytest.raises(ValueError, match=r"scorer|candidates"):
        pipe.plan(candidates=2, latent_scorer=str(tmp_path / "odd"))


@pytest.mark.parametrize(
    ("model", "settings", "named"),
    [
        ("stilllife-var-small", {"candidates": 0}, "candidates"),
        ("stilllife-var-small", {"candidates": 1001}, "candidates"),
        ("stilllife-var-small", {"latent_scorer": "stilllife-classifier"}, "latent_scorer"),
        ("stilllife-var-small", {"candidates": 2, "latent_scorer": "stilllife-classifier"}, "latent_scorer"),
        ("stilllife-var-small", {"candidates": 2, "latent_scorer": "missing"}, "missing"),
        ("stilllife-gpt-small", {"candidates": 2}, "latent_scorer"),
    ],
)
def test_candidates_without_a_scorer_that_fits_are_refused(model, settings, named):
    with pytest.raises(ValueError, match=named) as told:
        skeleton(model).plan(**settings)
    assert "\n" not in str(told.value)


def test_the_small_model_of_still_lifes_has_its_scorer():
    pipe = var_toolkit.load("stilllife-var-small", device="cpu")
    drawn = [pipe([207, 503], seeds=[0, 1], output_type="latent", **how).tokens for how in ({}, {"candidates": 16})]
    same = [torch.equal(one, other) for one, other in zip(*drawn, strict=True)]
    assert same[0]  # candidates begin at the second scale
    assert not all(same[1:3])
