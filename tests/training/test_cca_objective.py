"""CCA: the loss in numbers for both families, what counts as positive, the frozen reference, and runs."""

import json
from math import exp, log

import pytest
import torch
from torch import nn

from var_toolkit.loading import load
from var_toolkit.processes import Team
from var_toolkit.training.cca_objective import contrastive_loss
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import recipe_from
from var_toolkit.training.registry import objective_class

CPU = torch.device("cpu")
FAMILIES = ("var", "llamagen")
OFF = {"var": 0.0, "llamagen": 1.0}  # the number at which guidance is off
WEIGHTS = (50.0, 0.25)


def draws(step=0, rank=0, world_size=1):
    return Draws(0, step, rank, world_size, 8, CPU)


def softplus(value):
    return log(1 + exp(value))  # -log sigmoid(-value)


@pytest.fixture
def written(settings, parts):
    """The settings of a tiny recipe for a family, with changed options of the objective and other changes."""

    def make(family, options=None, **changes):
        if family == "llamagen":
            other = settings("raster-gpt")
            changes = {"family": family, "model": other["model"], "tokenizer": other["tokenizer"]} | changes
        initial = parts / {"var": "var", "llamagen": "raster-teacher"}[family]
        return settings("cca", objective_options={"initial": str(initial)} | (options or {}), **changes)

    return make


@pytest.fixture
def prepared(written, cache):
    """An objective whose network has learned something since it was the reference, and a batch with equal labels."""

    def make(family, options=None, *, apart=0.1, **changes):
        recipe = recipe_from(written(family, options, precision="fp32", **changes))
        objective = objective_class("cca", recipe.family)(recipe, Workplace(cache, Team(0, 1, CPU)))
        network, _ = objective.networks["var"].eval(), objective.reference.eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(apart * torch.randn_like(parameter))
        return objective, next(iter(objective.source.batches([torch.arange(8)], 0)))

    return make


def log_likelihood(objective, network, label, tokens):
    """The sum of log p over all tokens of one image, in float64."""
    if objective.tokenizer_type.__name__ == "MultiScaleVQ":
        seen = objective.tokenizer.teacher_inputs(objective.scales.split(tokens[None]))
    else:
        seen = tokens[None, :-1]
    with torch.no_grad():
        logits = network(torch.tensor([label]), seen)[0].double()
    return sum(float(row[token] - row.logsumexp(0)) for row, token in zip(logits, tokens, strict=True))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_loss_by_hand(weight):
    own, other, positive = [3.0, -20.0, 0.5, 40.0], [-7.0, 5.0, 11.0, -2.0], [False, True, False, True]
    found = contrastive_loss(
        torch.tensor(own), torch.tensor(other), torch.tensor(positive), beta=0.1, negative_weight=weight
    )
    each = [
        softplus(-0.1 * a) + (softplus(-0.1 * b) if same else weight * softplus(0.1 * b))
        for a, b, same in zip(own, other, positive, strict=True)
    ]
    assert found.item() == pytest.approx(sum(each) / 4 / max(weight, 1), rel=1e-6)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_of_whole_images_with_their_own_labels_and_the_next_ones(prepared, family, weight):
    objective, batch = prepared(family, {"beta": 0.05, "negative_weight": weight, "class_dropout": 0.4})
    labels = batch.labels.clone()
    labels[3] = labels[2]
    batch = batch._replace(labels=labels)
    dropped = (objective._labels(batch, draws()) == 1000).tolist()
    assert True in dropped
    assert not dropped[2]
    network, total, ratios = objective.networks["var"], 0.0, []
    for place, tokens in enumerate(batch.tokens.long()):
        own, other = (int(labels[(place + shift) % 8]) for shift in (0, 1))
        if dropped[place]:
            own = other = 1000
        a, b = (
            log_likelihood(objective, network, label, tokens)
            - log_likelihood(objective, objective.reference, label, tokens)
            for label in (own, other)
        )
        ratios.append(a)
        total += softplus(-0.05 * a) + (softplus(-0.05 * b) if own == other else weight * softplus(0.05 * b))
    with torch.no_grad():
        loss = objective._loss(batch, draws())
    assert max(map(abs, ratios)) > 0.5
    assert loss.total.item() == pytest.approx(total / 8 / max(weight, 1), rel=1e-4)
    assert loss.terms["ratio"].item() == pytest.approx(sum(ratios) / 8, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_first_step_nothing_is_more_likely_than_by_the_reference(prepared, family, weight):
    objective, batch = prepared(family, {"negative_weight": weight, "class_dropout": 0.0}, apart=0.0)
    with torch.no_grad():
        loss = objective._loss(batch, draws())
    assert loss.total.item() == pytest.approx(log(2) * (1 + weight) / max(weight, 1), rel=1e-5)
    assert loss.terms["ratio"].item() == pytest.approx(0, abs=1e-3)
    assert loss.terms["ratio_other"].item() == pytest.approx(0, abs=1e-3)


def test_dropped_labels_count_as_positive_with_weight_one(prepared):
    objective, batch = prepared("var", {"negative_weight": 50.0, "class_dropout": 0.4}, apart=0.0)
    dropped = int((objective._labels(batch, draws()) == 1000).sum())
    assert 0 < dropped < 8
    with torch.no_grad():
        found = objective._loss(batch, draws()).total.item()
    assert found == pytest.approx(log(2) * (1 + (dropped + 50 * (8 - dropped)) / 8) / 50, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_on_in_both_networks_in_training_and_off_in_judging(prepared, settings, family):
    own = settings("raster-gpt" if family == "llamagen" else "var")["model"]
    noisy = own | ({"dropout": 0.3} if family == "llamagen" else {"drop_path": 0.8})
    objective, batch = prepared(family, {"class_dropout": 0.0}, apart=0.0, model=noisy)
    network, seen = objective.networks["var"], []
    objective.reference.register_forward_hook(lambda module, *_: seen.append(module.training))
    with torch.no_grad():
        trained = objective._loss(batch, draws()) if network.train() else None
        judged = objective._judged(network.eval(), batch)
    assert seen == [True, False]
    assert abs(trained.terms["ratio"].item()) > 0.01
    assert judged["ratio"].item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_network_has_gradients(prepared, family):
    objective, batch = prepared(family)
    before = [tensor.clone() for tensor in objective.reference.state_dict().values()]
    objective._loss(batch, draws()).total.backward()
    network = objective.networks["var"]
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in network.parameters())
    assert all(each.grad is None and not each.requires_grad for each in objective.reference.parameters())
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    after = objective.reference.state_dict().values()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert list(objective.networks) == ["var"]


def test_each_process_takes_the_next_label_of_the_whole_batch(prepared):
    objective, batch = prepared("var", {"class_dropout": 0.0})
    seen = []

    class Spy(nn.Module):
        def forward(self, labels, inputs):
            seen.append(labels.chunk(2)[1].tolist())
            return torch.zeros(len(labels), objective.scales.total, 32, requires_grad=True)

    class Two(Team):
        def rows(self, own):
            return batch.labels

    objective.networks["var"], expected = Spy(), batch.labels.roll(-1).tolist()
    for rank, rows in enumerate((slice(4), slice(4, 8))):
        objective.team = Two(rank, 2, CPU)
        objective._loss(batch._replace(labels=batch.labels[rows], tokens=batch.tokens[rows]), draws(0, rank, 2))
    assert seen[0] + seen[1] == expected


def test_steps_tell_the_own_label_of_an_image_from_another(prepared):
    options = {"beta": 0.5, "negative_weight": 1.0, "class_dropout": 0.0}
    objective, batch = prepared("llamagen", options, apart=0.0)
    optimiser = torch.optim.Adam(objective.networks["var"].parameters(), lr=3e-3)
    for _ in range(25):
        loss = objective._loss(batch, draws())
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert loss.total < 1.2  # from 2 log 2
    assert loss.terms["ratio"] > loss.terms["ratio_other"] + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_delivers_a_model_that_draws_without_guidance(written, cache, tmp_path, family):
    recipe = recipe_from(written(family, steps=1, validate_every=1, sample_every=1))
    final = train(recipe, tmp_path, cache_dir=cache, device="cpu")
    assert load(final, device="cpu").sampling.cfg == OFF[family]
    assert len(list((tmp_path / "samples").iterdir())) == 1
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"loss", "ratio", "ratio_other", "validation_ratio", "validation_ratio_other"} <= set().union(*lines)


def test_a_next_token_run_that_stops_ends_with_the_same_bits(written, cache, tmp_path, weights):
    steady = {"schedule": {"kind": "constant"}, "validate_every": 9, "sample_every": 9}
    half, whole = (recipe_from(written("llamagen", steps=steps, **steady)) for steps in (2, 4))
    at_once = weights(train(whole, tmp_path / "a", cache_dir=cache, device="cpu"))
    train(half, tmp_path / "b", cache_dir=cache, device="cpu")
    resumed = weights(train(whole, tmp_path / "b", cache_dir=cache, device="cpu"))
    assert at_once.keys() == resumed.keys()
    assert all(torch.equal(at_once[name], resumed[name]) for name in at_once)


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({"beta": 0.0}, {}, "beta is 0.0; expected a number above 0"),
        ({"negative_weight": -1.0}, {}, "negative_weight is -1.0; expected a number above 0"),
        ({"negative_weight": float("nan")}, {}, "negative_weight is nan"),
        ({"class_dropout": 1.0}, {}, r"class_dropout is 1.0; expected a number in \[0, 1\)"),
        ({"lambda": 50}, {}, "unknown key 'lambda'"),
        ({}, {"objective_options": {}}, "missing key 'initial'"),
        ({}, {"batch_size": 1}, "batch_size is 1; it must be 2 or more"),
        ({}, {"family": "flowar"}, "flowar draws for .*MultiScaleVQ"),
        ({}, {"tokenizer": None}, "missing key 'tokenizer'"),
    ],
    ids=["beta", "negative-weight", "nan", "dropout", "unknown", "initial", "batch", "family", "tokenizer"],
)
def test_what_does_not_fit_is_refused_in_one_line(written, options, changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        recipe_from(written("var", options) | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("var", {"num_classes": 10}, "initial: .* has num_classes 1000, but the recipe asks for num_classes 10"),
        ("teacher", {}, "initial: .* has depth 3, but the recipe asks for depth 2"),
        ("raster-teacher", {}, "initial: .* holds a RasterGPT; expected a VAR"),
        ("nowhere", {}, "initial: .*nowhere.* is not a directory"),
    ],
    ids=["classes", "depth", "network", "missing"],
)
def test_a_start_that_does_not_fit_is_refused_before_the_data(written, settings, parts, tmp_path, name, changes, words):
    model = settings("var")["model"] | changes
    recipe = recipe_from(written("var", {"initial": str(parts / name)}, model=model))
    with pytest.raises(ValueError, match=words) as caught:
        train(recipe, tmp_path / "out", cache_dir=tmp_path / "cache", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
