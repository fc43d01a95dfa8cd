"""CoDe's fine-tuning: the drafter on the first scales, the refiner from a teacher."""

import json

import pytest
import torch
from torch.nn import functional as F

from var_toolkit.formats.directory import load_network, save_network
from var_toolkit.models.var import VAR, VARConfig
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train
from var_toolkit.training.refiner_objective import drafted_weight, kl

CPU = torch.device("cpu")


def draws(step):
    return Draws(0, step, 0, 1, 8, CPU)


@pytest.mark.parametrize("draft_scales", [1, 2])
def test_a_drafter_learns_from_the_drafted_tokens_alone(build, draft_scales):
    objective, batch = build("drafter", draft_scales=draft_scales)
    drafted = objective.scales.offsets[draft_scales]
    other = batch.tokens.clone()
    other[:, drafted:] = (other[:, drafted:] + 1) % 32
    expected = objective._loss(batch, draws(0))
    got = objective._loss(batch._replace(tokens=other), draws(0))
    assert torch.equal(got.total, expected.total)
    assert f"loss_scale_{draft_scales - 1}" in got.terms
    assert f"loss_scale_{draft_scales}" not in got.terms
    other[:, drafted - 1] = (other[:, drafted - 1] + 1) % 32
    assert objective._loss(batch._replace(tokens=other), draws(0)).total != expected.total


def test_a_drafter_is_trained_on_what_var_computes_for_its_scales(build, settings):
    drafter, batch = build("drafter", class_dropout=0.0)
    var, _ = build("var", initial=settings("drafter")["objective_options"]["initial"], class_dropout=0.0)
    tokens, inputs = var._forced(batch)
    logits = var.networks["var"](batch.labels, inputs)[:, :5]
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, :5].flatten())
    loss, terms = drafter._loss(batch, draws(0))
    torch.testing.assert_close(loss, expected)
    assert terms["loss_scale_1"] == pytest.approx(float(var._loss(batch, draws(0)).terms["loss_scale_1"]), rel=1e-5)


def test_every_parameter_of_a_drafter_has_a_gradient(build):
    objective, batch = build("drafter", draft_scales=1)
    objective._loss(batch, draws(0)).total.backward()
    assert all(parameter.grad is not None for parameter in objective.networks["var"].parameters())


def test_the_drafted_scales_fade_from_one_to_exactly_nothing():
    assert [drafted_weight(step, 5) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert drafted_weight(0, 1) == 1.0
    assert all(drafted_weight(steps - 1, steps) == 0.0 for steps in (2, 3, 7, 1000, 12_345))


def test_a_refiner_that_is_its_teacher_has_nothing_to_learn(build, settings):
    objective, batch = build("refiner", teacher=settings("refiner")["objective_options"]["initial"])
    loss, terms = objective._loss(batch, draws(0))
    assert abs(loss.item()) < 1e-6
    assert abs(terms["kl_refined"].item()) < 1e-6
    loss.backward()
    assert max(p.grad.abs().max().item() for p in objective.networks["var"].parameters()) < 1e-6
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


@pytest.mark.parametrize("direction", ["teacher-student", "student-teacher"])
@pytest.mark.parametrize("step", [0, 2, 5])
def test_the_refiner_minimises_the_weighted_divergence(build, direction, step):
    objective, batch = build("refiner", direction=direction, class_dropout=0.0)
    _, inputs = objective._forced(batch)
    with torch.no_grad():
        student = objective.networks["var"](batch.labels, inputs).double().softmax(dim=2)
        teacher = objective.teacher(batch.labels, inputs).double().softmax(dim=2)
    p, q = (teacher, student) if direction == "teacher-student" else (student, teacher)
    divergence = (p * (p / q).log()).sum(dim=2).mean(dim=0)
    weight = torch.ones(69, dtype=torch.float64)
    weight[:5] = 1 - step / 5
    loss, terms = objective._loss(batch, draws(step))
    torch.testing.assert_close(loss.double(), (weight * divergence).mean(), rtol=1e-4, atol=1e-6)
    assert loss > 1e-3
    assert terms["drafted_weight"] == pytest.approx(1 - step / 5)
    assert terms["kl_scale_0"] == pytest.approx(divergence[0].item(), rel=1e-3)


def test_at_the_end_drafted_scales_pull_at_nothing(build):
    objective, batch = build("refiner", class_dropout=0.0)
    logits = torch.zeros(8, 69, 32, requires_grad=True)
    objective.networks["var"] = lambda labels, inputs: logits
    objective._loss(batch, draws(5)).total.backward()
    assert logits.grad[:, :5].abs().max() == 0
    assert (logits.grad[:, 5:].abs().amax(dim=2) > 0).all()


def test_divergence_is_zero_from_itself_and_has_a_direction():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert kl(a, a).abs().max() == 0
    assert (kl(a, b) > 0).all()
    assert not torch.allclose(kl(a, b), kl(b, a))


def test_the_log_of_a_refiner_tells_divergence_and_accuracy(tiny, cache, tmp_path):
    final = train(tiny("refiner"), tmp_path, cache_dir=cache, device="cpu")
    header, first, *rest = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "drafted_weight" in header["note"]
    assert first["drafted_weight"] == 1.0
    keys = set().union(*rest)
    assert {"validation_kl", "validation_kl_refined", "validation_kl_scale_2", "validation_accuracy_scale_2"} <= keys
    assert isinstance(load_network(final / "backbone"), VAR)


@pytest.mark.parametrize("objective", ["drafter", "refiner"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft_scales": 0}, "draft_scales is 0; it must be from 1 to 2"),
        ({"draft_scales": 3}, "draft_scales is 3; it must be from 1 to 2"),
        ({"class_dropout": 1.0}, "class_dropout is 1.0; expected a number in [0, 1)"),
        ({"adaln_gamma": 1e-3}, "unknown key 'adaln_gamma'"),
    ],
)
def test_options_that_fit_nothing_are_refused_in_one_line(tiny, settings, objective, changes, message):
    with pytest.raises(ValueError, match="recipe: ") as caught:
        tiny(objective, objective_options=settings(objective)["objective_options"] | changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("objective", "key"), [("drafter", "initial"), ("refiner", "initial"), ("refiner", "teacher")])
def test_the_networks_to_go_on_from_are_asked_for(tiny, settings, objective, key):
    options = {k: v for k, v in settings(objective)["objective_options"].items() if k != key}
    with pytest.raises(ValueError, match=f"missing key '{key}'"):
        tiny(objective, objective_options=options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_nums": [1, 3, 8]}, r"teacher: patch_nums is \(1, 3, 8\).* \(1, 2, 8\)"),
        ({"vocab_size": 64}, "teacher: vocab_size is 64.* 32"),
        ({"num_classes": 10}, "teacher: num_classes is 10.* 1000"),
    ],
)
def test_a_teacher_that_draws_something_else_is_refused_before_an_image_is_drawn(
    tiny, settings, tmp_path, changes, message
):
    save_network(VAR(VARConfig(**settings("var")["model"] | changes)), tmp_path / "teacher")
    options = settings("refiner")["objective_options"] | {"teacher": str(tmp_path / "teacher")}
    with pytest.raises(ValueError, match=message):
        train(tiny("refiner", objective_options=options), tmp_path / "out", cache_dir=tmp_path / "cache", device="cpu")
    assert not (tmp_path / "cache").exists()
