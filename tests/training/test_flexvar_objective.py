"""FlexVAR's objective: the schedules of its steps, the loss on them, and what its runs start from and deliver."""

import json
from collections import Counter

import pytest
import torch
from golden.cases import fill
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.cli import main
from var_toolkit.core.schedule import Schedule
from var_toolkit.loading import load
from var_toolkit.training.draws import Draws
from var_toolkit.training.flexvar_objective import FlexVarOptions, random_schedule
from var_toolkit.training.loop import train

PUBLISHED = Schedule((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))


def draws(step: int = 0) -> Draws:
    return Draws(0, step, 0, 1, 8, torch.device("cpu"))


def schedules(count: int, own: Schedule = PUBLISHED, **options) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [random_schedule(own, FlexVarOptions(**options), generator).patch_nums for _ in range(count)]


def test_schedules_follow_the_published_rule():
    found = schedules(3000)
    drawn = [sides for sides in found if sides != PUBLISHED.patch_nums]
    assert 0.03 < 1 - len(drawn) / len(found) < 0.07
    assert all(Schedule(sides).total <= 680 for sides in found)
    assert all(sides[0] == 1 and list(sides) == sorted(set(sides)) for sides in drawn)
    free = schedules(3000, token_limit=10_000, own_share=0.0)
    assert {sides[-1] for sides in free} == {16}
    counts = Counter(len(sides) for sides in free)
    assert counts[10] / 3000 == pytest.approx(0.9, abs=0.02)
    assert counts[9] / 3000 == pytest.approx(0.05, abs=0.015)
    assert min(counts) == 6
    whole = [sides for sides in free if len(sides) == 10]
    assert all(sum(3 <= side <= 10 for side in sides) == 5 for sides in whole)
    assert all(sum(11 <= side <= 15 for side in sides) == 2 for sides in whole)
    assert any(16 not in sides for sides in drawn)  # too many tokens may leave the finest side out


@pytest.mark.parametrize("own", [(1, 2), (1, 2, 3), (1, 4), (1, 2, 12)], ids=str)
def test_small_schedules_work_too(own):
    found = schedules(200, Schedule(own), token_limit=5)
    assert all(1 <= Schedule(sides).total <= 5 or sides == own for sides in found)
    assert {sides[-1] for sides in schedules(200, Schedule(own), own_share=0.0)} == {own[-1]}


def test_the_loss_is_the_mean_cross_entropy_of_a_schedule_of_the_step(build):
    objective, batch = build("flexvar", class_dropout=0.0, own_share=0.0, coarse_sides=2)
    network, tokenizer = fill(objective.networks["var"]), objective.tokenizer
    seen = set()
    for step in range(4):
        schedule = random_schedule(objective.scales, objective.options, draws(step).generator("schedule"))
        tokens = tokenizer.pyramid_of(schedule).encode(batch.features)
        inputs = tokenizer.pyramid_of(schedule).teacher_inputs(tokens)
        logits = network(batch.labels, inputs, schedule=schedule)
        expected = F.cross_entropy(logits.flatten(0, 1), torch.cat(tokens, dim=1).flatten())
        assert_close(objective._loss(batch, draws(step)).total, expected)
        seen.add(schedule.patch_nums)
    assert len(seen) > 1


def test_stored_latents_are_those_of_the_images(build):
    objective, batch = build("flexvar", class_dropout=0.0)
    network, images = fill(objective.networks["var"]), torch.rand(8, 3, 64, 64) * 2 - 1
    features = objective.tokenizer.features(images).detach()
    stored, fresh = batch._replace(features=features), batch._replace(features=None, images=images)
    assert_close(objective._judged(network, stored)["loss"], objective._judged(network, fresh)["loss"])
    assert batch.features.shape == features.shape


def test_a_run_delivers_a_model_that_draws_any_schedule(tiny, cache, tmp_path, capsys):
    final = train(tiny("flexvar"), tmp_path / "run", cache_dir=cache, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("validation_loss_scale_2" in line for line in lines)
    drawing = ["sample", "--model", str(final), "--class", "3", "--device", "cpu", "--out", str(tmp_path / "drawn")]
    assert main([*drawing, "--schedule", "1,4,8,10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forward_passes"] == 4
    sampling = load(final, device="cpu").sampling
    assert (sampling.cfg, sampling.top_k, sampling.top_p) == (2.5, 900, 0.95)


def test_layers_of_a_var_are_a_start(build, parts, weights):
    objective, _ = build("flexvar", initial=str(parts / "var"))
    theirs, ours = weights(parts / "var"), objective.networks["var"].state_dict()
    for name in ("blocks.1.ffn.fc1.weight", "class_emb.weight", "word_embed.weight"):
        assert torch.equal(theirs[name], ours[name])
    assert theirs["pos_1LC"].shape != ours["pos_1LC"].shape
    for other in ("hmar", "raster-tokenizer"):
        with pytest.raises(ValueError, match=f"initial.*{other}"):
            build("flexvar", initial=str(parts / other))


@pytest.mark.parametrize(("name", "value"), [("own_share", 1.0), ("coarse_sides", -1), ("token_limit", 4)])
def test_odd_options_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        FlexVarOptions(**{name: value})
