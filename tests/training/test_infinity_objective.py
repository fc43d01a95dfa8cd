"""Infinity's objective: self-correction, the published loss, text that is dropped, and a model that takes prompts."""

import json

import pytest
import torch
from golden.cases import fill, load_case
from torch.testing import assert_close

from var_toolkit.conditions.words import words_of
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.bits import bit_losses
from var_toolkit.loading import Pair, load
from var_toolkit.training.draws import Draws
from var_toolkit.training.infinity_objective import random_flips, token_weights
from var_toolkit.training.loop import train

CPU = torch.device("cpu")


def draws(step=0, rank=0, world_size=1):
    return Draws(0, step, rank, world_size, 8, CPU)


@pytest.mark.parametrize(("reweight", "name"), [(True, "reweighted"), (False, "plain")])
def test_the_loss_is_the_published_one(reweight, name):
    case = load_case("infinity-self-correction")
    scales = Schedule(tuple((h, w) for _, h, w in case.facts["config"]["schedule_thw"]))
    losses = bit_losses(case.tensors["logits"], case.tensors["labels"])
    found = (losses * token_weights(scales, reweight)).sum(1).mean()
    assert_close(float(found), case.facts["losses"][name], rtol=1e-6, atol=0)


def test_flips_of_a_scale_have_one_probability_and_do_not_depend_on_the_number_of_processes():
    scales, shares = Schedule((1, 4, 16)), []
    for step in range(40):
        whole = random_flips(scales, 16, 0.3, draws(step))
        halves = [random_flips(scales, 16, 0.3, draws(step, rank, 2)) for rank in (0, 1)]
        assert all(torch.equal(torch.cat(parts), one) for *parts, one in zip(*halves, whole, strict=True))
        shares.append([one.float().mean() for one in whole[1:]])
    shares = torch.tensor(shares)
    assert 0 <= shares.min() < 0.05
    assert 0.25 < shares.max() < 0.33
    assert_close(shares.mean(), torch.tensor(0.15), atol=0.03, rtol=0)
    assert random_flips(scales, 16, 0.0, draws()) == []


def test_a_step_predicts_clean_bits_from_flipped_ones_and_drops_text(build, monkeypatch):
    objective, batch = build("infinity", caption_dropout=0.5)
    network, seen = fill(objective.networks["infinity"]), []
    objective.networks["infinity"] = lambda *given: seen.append(given) or network(*given)
    loss = objective._loss(batch, draws())
    captions, inputs, dropped = seen[0]
    assert captions == batch.captions
    assert 0 < dropped.sum() < 8
    flips = random_flips(objective.scales, 4, 0.3, draws())
    found = objective.tokenizer.pyramid.corrected(batch.features, flips)
    assert_close(inputs, found.inputs)
    losses = bit_losses(network(captions, inputs, dropped), torch.cat(found.bits, dim=1))
    assert_close(loss.total, (losses * token_weights(objective.scales, True)).sum(1).mean())
    assert loss.terms.keys() >= {"loss", "accuracy", "loss_scale_2", "accuracy_scale_0"}


def test_every_parameter_of_both_networks_learns(build):
    objective, batch = build("infinity", caption_dropout=0.5)
    network = fill(objective.networks["infinity"]).train()
    objective._loss(batch, draws()).total.backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_a_run_delivers_a_model_that_takes_prompts(tiny, cache, tmp_path):
    recipe = tiny("infinity", steps=8, optimiser={"lr": 1e-2}, ema=None)
    final = train(recipe, tmp_path / "run", cache_dir=cache, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert any("validation_accuracy" in line for line in lines)
    pipe = load(final, device="cpu")
    assert {"cube", "left", "on", ","} <= set(pipe.text_encoder.config.words)
    drawn = pipe(prompt="a red cube on sand", seeds=[0])
    assert drawn.images[0].size == (128, 128)
    with pytest.raises(ValueError, match="spheer"):
        pipe(prompt="a red spheer")
    again = tiny("infinity", steps=1, objective_options={"initial": str(final), "text_heads": 2, "text_depth": 1})
    train(again, tmp_path / "again", cache_dir=cache, device="cpu")


def test_a_second_model_learns_to_read_with_the_text_encoder_of_the_first_and_draws_with_it(
    tiny, settings, cache, tmp_path
):
    first = train(tiny("infinity", steps=1), tmp_path / "first", cache_dir=cache, device="cpu")
    options = {"text_encoder": str(first)}
    second = tiny("infinity", steps=2, optimiser={"lr": 1e-2}, objective_options=options)
    final = train(second, tmp_path / "second", cache_dir=cache, device="cpu")
    given, kept = (load(one, device="cpu").text_encoder for one in (first, final))
    assert_close(kept.state_dict(), given.state_dict(), rtol=0, atol=0)
    own = train(
        tiny("infinity", steps=1, objective_options={"words": ["red", "cube"]}),
        tmp_path / "own",
        cache_dir=cache,
        device="cpu",
    )
    more = train(
        tiny("infinity", steps=1, objective_options=options | {"initial": str(own)}),
        tmp_path / "more",
        cache_dir=cache,
        device="cpu",
    )
    assert_close(load(more, device="cpu").text_encoder.state_dict(), given.state_dict(), rtol=0, atol=0)
    pair = load(Pair(str(first), str(final), 1), device="cpu")
    assert pair(prompt="a red cube on sand", seeds=[0]).images[0].size == (128, 128)
    other = train(tiny("infinity", steps=1, seed=1), tmp_path / "other", cache_dir=cache, device="cpu")
    with pytest.raises(ValueError, match="different text encoders, words-"):
        load(Pair(str(first), str(other), 1), device="cpu")
    wide = settings("infinity")["model"] | {"text_longest": 30}
    with pytest.raises(ValueError, match="text_longest 30 do not fit"):
        train(tiny("infinity", model=wide, objective_options=options), tmp_path / "odd", cache_dir=cache, device="cpu")


def test_words_that_the_encoder_does_not_know_are_left_out_and_told_once(build, capsys):
    objective, batch = build("infinity", words=["red", "a", "cube"])
    texts = objective._texts(batch._replace(captions=("a giraffe and a red cube", "a cube", "red " * 100)))
    assert texts[:2] == ("a a red cube", "a cube")
    assert len(texts[2].split()) == objective.encoder_sizes.longest - 1
    objective._loss(batch, draws()).total.backward()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert "giraffe" in line


def test_held_out_captions_have_no_unknown_words(build):
    objective, _ = build("infinity")
    captions = [text for batch in objective.held_out for text in batch.captions]
    assert len(captions) == 8
    assert {word for text in captions for word in words_of(text)} <= set(objective.encoder_sizes.words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": None}, "missing key 'tokenizer'"),
        ({"objective_options": {"flips": 2.0}}, "flips is 2.0"),
        ({"objective_options": {"text_encoder": "a", "words": ["red"]}}, "text_encoder brings its own words"),
        ({"objective_options": {"text_encoder": "a", "text_depth": 7}}, "text_encoder brings its own text_depth"),
        ({"objective_options": {"caption_dropout": 1.0}}, "caption_dropout is 1.0"),
        ({"data": {"kind": "still-lifes"}}, "kind is 'still-lifes'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny, changes, words):
    with pytest.raises(ValueError, match=words):
        tiny("infinity", **changes)


def test_a_tokenizer_that_does_not_fit_is_refused(tiny, settings, cache, tmp_path):
    recipe = tiny("infinity", model=settings("infinity")["model"] | {"token_bits": 8})
    with pytest.raises(ValueError, match=r"token_bits .* 4 bits .* 8 bits"):
        train(recipe, tmp_path, cache_dir=cache, device="cpu")
