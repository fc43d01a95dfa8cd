"""HMAR's two stages: scales by themselves with the published weights, then tokens that are hidden."""

import pytest
import torch
from torch.nn import functional as F

from var_toolkit.core.schedule import SCHEDULES, Schedule
from var_toolkit.formats.directory import load_network, read_json
from var_toolkit.training.draws import Draws
from var_toolkit.training.hmar_objective import as_next_scale, scale_weights
from var_toolkit.training.loop import train
from var_toolkit.training.recipe import recipe_from

CPU = torch.device("cpu")
# As in the paper's code at 256 px, rounded.
LOGNORMAL = [0.0247, 0.0642, 0.1150, 0.1379, 0.1402, 0.1329, 0.1208, 0.1054, 0.0882, 0.0709]


def draws(step):
    return Draws(0, step, 0, 1, 8, CPU)


def test_the_weights_of_scales_are_the_published_ones():
    scales = Schedule(SCHEDULES["256"])
    assert [round(weight, 4) for weight in scale_weights(scales, "lognormal")] == LOGNORMAL
    assert scale_weights(scales, "uniform") == [n / 680 for n in scales.lengths]
    assert scale_weights(scales, "equal") == [0.1] * 10


@pytest.mark.parametrize("kind", ["lognormal", "uniform", "equal"])
def test_weights_sum_to_one_for_any_schedule(kind):
    for sides in ((1,), (1, 2), (1, 2, 3, 4, 6, 8), SCHEDULES["1024"]):
        assert sum(scale_weights(Schedule(sides), kind)) == pytest.approx(1)


def test_the_loss_is_the_weighted_mean_of_each_scale(build):
    objective, batch = build("hmar", class_dropout=0.0)
    objective.networks["var"].init_weights(head=1.0)
    tokens, inputs = objective._forced(batch)
    logits = objective.networks["var"](batch.labels, inputs)
    parts = zip(objective.scales.split(logits), objective.scales.split(tokens), strict=True)
    each = [F.cross_entropy(part.flatten(0, 1), wanted.flatten()) for part, wanted in parts]
    weights = scale_weights(objective.scales, "lognormal")
    expected = sum(weight * loss for weight, loss in zip(weights, each, strict=True))
    torch.testing.assert_close(objective._loss(batch, draws(0)).total, expected)


def test_uniform_weights_are_the_loss_of_var(build):
    objective, batch = build("hmar", class_dropout=0.0, scale_weights="uniform")
    loss, terms = objective._loss(batch, draws(0))
    scales = objective.scales
    mean = sum(terms[f"loss_scale_{k}"] * n for k, n in enumerate(scales.lengths)) / scales.total
    torch.testing.assert_close(loss.detach(), mean)


def test_a_run_may_start_from_a_var_whose_last_layers_become_both_branches(build, parts):
    objective, _ = build("hmar", initial=str(parts / "var"))
    var, hmar = load_network(parts / "var"), objective.networks["var"].state_dict()
    for name, tensor in as_next_scale(var.state_dict(), 1).items():
        assert torch.equal(hmar[name], tensor), name
        if name.startswith("ns_"):
            assert torch.equal(hmar[name.replace("ns_", "mask_", 1)], tensor), name
    assert {name for name in hmar if not name.startswith("mask_")} == as_next_scale(var.state_dict(), 1).keys()


def test_a_start_of_other_sizes_is_refused(build, parts):
    with pytest.raises(ValueError, match=r"initial: depth is 3 .*teacher.* 2 in the recipe"):
        build("hmar", initial=str(parts / "teacher"))


def test_the_first_stage_delivers_its_branch_in_both_places(tiny, cache, tmp_path, weights):
    final = train(tiny("hmar", steps=2), tmp_path / "run", cache_dir=cache, device="cpu")
    saved = weights(final)
    for name in [name for name in saved if name.startswith("ns_")]:
        assert torch.equal(saved[name], saved[name.replace("ns_", "mask_", 1)]), name
    assert read_json(final / "model_index.json")["_sampling"]["refine"] == "off"


def test_the_second_stage_changes_the_masked_branch_alone(tiny, cache, tmp_path, weights, parts):
    final = train(tiny("hmar-mask", steps=3), tmp_path / "run", cache_dir=cache, device="cpu")
    before, after = weights(parts / "hmar"), weights(final)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("mask_")}
    assert read_json(final / "model_index.json")["_sampling"]["refine"] == "published"


def test_hidden_tokens_are_what_is_learnt_and_what_is_not_seen(build):
    objective, batch = build("hmar-mask", class_dropout=0.0)
    generator = draws(3).generator("mask")
    share = float(torch.rand((), generator=generator))
    hidden = objective._hidden(share, generator)
    assert [int(part.sum()) for part in hidden.split([4, 64])] == [-int(-share * n // 1) for n in (4, 64)]
    loss = objective._loss(batch, draws(3)).total
    tokens, inputs = objective._forced(batch)
    current = objective._current(tokens, hidden.expand(8, -1))
    current[:, hidden] = 7.0  # a hidden token is not looked at
    logits = objective.networks["var"](batch.labels, inputs, current, hidden.expand(8, -1))[:, 1:][:, hidden]
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:][:, hidden].flatten())
    torch.testing.assert_close(loss, expected)


def test_clean_hides_tokens_from_their_neighbours_as_well(build):
    objective, batch = build("hmar-mask", clean=True)
    tokens, _ = objective._forced(batch)
    hidden = torch.zeros(68, dtype=torch.bool)
    hidden[10] = True
    other = tokens.clone()
    other[:, 11] = (other[:, 11] + 1) % 32
    assert torch.equal(
        objective._current(tokens, hidden.expand(8, -1)), objective._current(other, hidden.expand(8, -1))
    )


def test_what_is_delivered_samples_as_it_was_trained(tiny, settings, cache, tmp_path):
    options = settings("hmar-mask")["objective_options"] | {"clean": True}
    final = train(tiny("hmar-mask", steps=1, objective_options=options), tmp_path, cache_dir=cache, device="cpu")
    assert read_json(final / "model_index.json")["_sampling"]["refine_clean"] is True


def test_the_second_stage_does_not_start_from_a_var(build, parts):
    with pytest.raises(ValueError, match=r"initial: .* holds a VAR; expected a HMAR"):
        build("hmar-mask", initial=str(parts / "var"))


@pytest.mark.parametrize("share", [0.0, 1e-9])
def test_one_token_of_each_scale_is_hidden_at_least(build, share):
    hidden = build("hmar-mask")[0]._hidden(share, torch.Generator())
    assert [int(part.sum()) for part in hidden.split([4, 64])] == [1, 1]


@pytest.mark.parametrize("objective", ["var", "hmar", "hmar-mask"])
def test_a_single_scale_is_refused(settings, objective):
    values = settings(objective)
    with pytest.raises(ValueError, match=r"patch_nums is \[8\];"):
        recipe_from(values | {"model": values["model"] | {"patch_nums": [8]}})
