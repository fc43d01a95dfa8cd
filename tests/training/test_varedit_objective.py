"""VAREdit's objective: pairs of source and target, words added to known ones, and a run that delivers an editor."""

import json

import numpy as np
import pytest
import torch
from golden.cases import fill
from PIL import Image
from torch.testing import assert_close

from var_toolkit.cli import main
from var_toolkit.conditions.words import WordEncoder, WordEncoderConfig
from var_toolkit.heads.bits import bit_losses
from var_toolkit.loading import load
from var_toolkit.still_life.captions import vocabulary
from var_toolkit.still_life.scene_edits import inverted, pair_of, training_instruction, unseen_instruction
from var_toolkit.training.draws import Draws
from var_toolkit.training.infinity_objective import random_flips, token_weights
from var_toolkit.training.loop import train
from var_toolkit.training.varedit_objective import with_words

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def cache(noisy_cache):
    return noisy_cache


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_edit_and_its_inverse_are_shown_in_turns(epoch, build):
    objective, _ = build("varedit")
    numbers = torch.tensor([5, 2])
    (batch,) = objective.source.batches([numbers], epoch)
    before, after = objective.source.before, objective.source.after
    assert batch.captions == tuple(training_instruction(number, epoch) for number in numbers.tolist())
    for row, number in enumerate(numbers.tolist()):
        source, target = (after, before) if inverted(number, epoch) else (before, after)
        assert np.array_equal(batch.sources[row], source[number].astype(np.float32))
        assert np.array_equal(batch.features[row], target[number].astype(np.float32))


def test_held_out_pairs_have_unseen_instructions_of_known_words(build):
    objective, _ = build("varedit")
    (batch,) = list(objective.held_out)
    told = tuple(unseen_instruction(pair_of(n, "validation"), n).text for n in batch.labels.tolist())
    assert batch.captions == told
    objective.empty_network().encoder.check(told)


def test_a_step_predicts_the_target_from_the_source(build):
    objective, batch = build("varedit", caption_dropout=0.5)
    network, seen = fill(objective.networks["infinity"]), []
    objective.networks["infinity"] = lambda *given: seen.append(given) or network(*given)
    draws = Draws(0, 0, 0, 1, 8, CPU)
    loss = objective._loss(batch, draws)
    captions, source, inputs, dropped = seen[0]
    assert captions == batch.captions
    assert_close(source, batch.sources.flatten(2).transpose(1, 2))
    assert 0 < dropped.sum() < 8
    found = objective.tokenizer.pyramid.corrected(batch.features, random_flips(objective.scales, 4, 0.3, draws))
    losses = bit_losses(network(captions, source, inputs, dropped), torch.cat(found.bits, dim=1))
    assert_close(loss.total, (losses * token_weights(objective.scales, True)).sum(1).mean())


def test_every_parameter_of_both_networks_learns(build):
    objective, batch = build("varedit", caption_dropout=0.5)
    network = fill(objective.networks["infinity"]).train()
    objective._loss(batch, Draws(0, 0, 0, 1, 8, CPU)).total.backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_an_infinity_becomes_an_editor_that_knows_more_words(tiny, settings, cache, tmp_path):
    options = settings("infinity")["objective_options"] | {"words": [*vocabulary(), "zebra"]}
    drawing = tiny("infinity", steps=1, objective_options=options, ema=None)
    drawing = train(drawing, tmp_path / "infinity", cache_dir=cache, device="cpu")
    options = settings("varedit")["objective_options"] | {"initial": str(drawing)}
    recipe = tiny("varedit", steps=1, objective_options=options, ema=None, optimiser={"lr": 1e-9})
    base, editor = load(drawing, device="cpu"), load(train(recipe, tmp_path / "editor", cache_dir=cache), device="cpu")
    known = base.text_encoder.config.words
    assert editor.text_encoder.config.words[: len(known)] == known
    assert {"remove", "paint", "left"} <= set(editor.text_encoder.config.words)
    old, new = base.text_encoder.embedding.weight, editor.text_encoder.embedding.weight
    assert_close(new[: len(old)], old)
    assert new[len(old) :].abs().sum(1).min() > 0
    others = {name for name in base.backbone.state_dict() if ".sa." not in name}
    for name in others:
        weight = base.backbone.state_dict()[name]
        assert_close(editor.backbone.state_dict()[name], weight, atol=1e-6, rtol=0)
    image = np.zeros((128, 128, 3), np.uint8)
    found = editor.edit(image, instruction="make the cube red", seeds=[0], output_type="pt")
    assert found.images.shape == (1, 3, 128, 128)
    again = options | {"initial": str(tmp_path / "editor" / "final")}
    train(tiny("varedit", steps=1, objective_options=again), tmp_path / "again", cache_dir=cache, device="cpu")


def test_what_a_run_delivers_is_judged(tiny, cache, tmp_path, capsys):
    model = train(tiny("varedit", steps=1), tmp_path / "run", cache_dir=cache, device="cpu")
    capsys.readouterr()
    command = ["evaluate", "edits", "-n", "8", "--sheet", str(tmp_path / "sheet.png"), "--model"]
    assert main([*command, str(model), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["edits"] == 8
    assert told["renderings"]["all"]["both"] > told["model"]["all"]["both"]
    assert told["model"]["light"]["psnr"] is None
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= 8 * 128
    assert main([*command, "scenes-infinity"]) == 2
    assert "scenes-infinity" in capsys.readouterr().err
    assert main(command[:2]) == 2
    assert "--model" in capsys.readouterr().err


def test_an_infinity_begins_to_edit_by_copying_the_source(build):
    objective, batch = build("varedit")
    network, read = fill(objective.networks["infinity"]), []
    objective._let_copy(network)
    attention, source = network.backbone.blocks[0].sa, objective._source(batch)
    hook = attention.proj.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        network(batch.captions, source, objective._forced(batch, [])[1])
    hook.remove()
    (head,) = (attention.scale_mul_1H11.flatten() == attention.scale_mul_1H11.max()).nonzero().flatten().tolist()
    copied = read[0][:, source.shape[1] :, 8 * head : 8 * head + 4]
    first, *_, last = objective.scales.split(copied)
    for found, expected in ((first, source.mean(1, keepdim=True)), (last, source)):
        assert (found - expected).square().mean() < 0.2 * expected.var()


def test_words_are_found_by_name_and_not_by_number():
    sizes = {"width": 8, "depth": 1, "longest": 6}
    words = (("b", "d"), ("a", "b", "c", "d"))
    saved, other = (fill(WordEncoder(WordEncoderConfig(some, num_heads=2, **sizes))) for some in words)
    with torch.no_grad():
        other.embedding.weight.add_(1)
    rows = with_words(saved, other)["embedding.weight"]
    learned, own = saved.embedding.weight, other.embedding.weight
    assert torch.equal(rows, torch.stack([learned[0], own[1], learned[1], own[3], learned[2]]))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer": None}, "missing key 'tokenizer'"),
        ({"data": {"kind": "scenes"}}, "kind is 'scenes'"),
        ({"data": {"kind": "scene-edits", "count": 0}}, "count is 0"),
        ({"data": {"kind": "scene-edits", "validation_count": -1}}, "validation_count is -1"),
        ({"objective_options": {"text_encoder": "scenes-words"}}, "text_encoder is of the objective infinity"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny, changes, named):
    with pytest.raises(ValueError, match=named):
        tiny("varedit", **changes)


def test_initial_weights_of_other_sizes_are_refused(tiny, settings, cache, tmp_path):
    options = settings("varedit")["objective_options"] | {"initial": "scenes-infinity"}
    with pytest.raises(ValueError, match="scenes-infinity has depth 6"):
        train(tiny("varedit", objective_options=options), tmp_path, cache_dir=cache, device="cpu")
