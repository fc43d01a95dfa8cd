"""VARiant's training: which depth each step trains, and what that reaches."""

import json
import re

import pytest
import torch

from var_toolkit.formats.directory import load_network
from var_toolkit.models.var import VAR
from var_toolkit.processes import Team
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.registry import objective_class
from var_toolkit.training.variant_objective import subnet_probability

CPU = torch.device("cpu")
TEAM = Team(0, 1, CPU)
PUBLISHED = {"between": (0.2, 1.0), "ends": (0.2, 0.8)}


def draws(step, rank=0, size=1):
    return Draws(0, step, rank, size, 8, CPU)


@pytest.fixture
def build(tiny, settings, cache):
    """An objective with changed options, and the first batch of its data."""

    def make(name, **changes):
        options = settings(name)["objective_options"] | changes
        recipe = tiny(name, objective_options=options, precision="fp32", model=settings("variant")["model"])
        objective = objective_class(name)(recipe, Workplace(cache, TEAM))
        objective.networks["var"].init_weights(head=1.0)
        return objective, next(iter(objective.source.batches([torch.arange(8)], 0)))

    return make


@pytest.mark.parametrize(("passed", "expected"), [(0.0, 0.2), (0.2, 0.2), (0.5, 0.6), (0.8, 1.0), (1.0, 1.0)])
def test_the_three_phases_have_their_probabilities_at_the_borders(passed, expected):
    assert subnet_probability(passed, **PUBLISHED) == pytest.approx(expected, abs=1e-12)
    if passed != 0.5:
        assert subnet_probability(passed, **PUBLISHED) == expected


def test_phases_may_be_empty():
    assert subnet_probability(0.0, (0.2, 1.0), (0.0, 0.0)) == 1.0
    assert subnet_probability(0.9999, (0.2, 1.0), (1.0, 1.0)) == 0.2
    assert subnet_probability(0.5, (0.1, 0.1), (0.2, 0.8)) == 0.1


def test_steps_choose_depths_as_often_as_asked_and_alike_in_every_process(build):
    objective, _ = build("variant", subnets=[2, 3], subnet_probability=[0.5, 0.5])
    chosen = [objective._chosen(draws(step)) for step in range(2000)]
    shares = {layers: chosen.count(layers) / 2000 for layers in (0, 2, 3)}
    assert shares == pytest.approx({0: 0.5, 2: 0.25, 3: 0.25}, abs=0.03)
    assert chosen[:50] == [objective._chosen(draws(step, rank=1, size=2)) for step in range(50)]


def test_the_last_phase_trains_subnets_alone(build):
    objective, _ = build("variant", subnet_probability=[0.0, 1.0], phase_ends=[0.5, 0.5])
    assert [objective._chosen(draws(step)) for step in range(6)] == [0, 0, 0, 2, 2, 2]


def test_a_step_of_the_whole_network_is_a_step_of_var(build):
    variant, batch = build("variant", subnet_probability=[0.0, 0.0])
    var, _ = build("var")
    var.networks["var"].load_state_dict(variant.networks["var"].state_dict())
    got, expected = variant._loss(batch, draws(0)), var._loss(batch, draws(0))
    assert torch.equal(got.total, expected.total)
    assert got.terms["loss_full"] == expected.terms["loss"]
    assert got.terms["accuracy_scale_2_full"] == expected.terms["accuracy_scale_2"]


def test_a_subnet_of_every_layer_is_the_whole_network(build):
    objective, batch = build("variant", subnets=[3], subnet_probability=[1.0, 1.0])
    var, _ = build("var")
    var.networks["var"].load_state_dict(objective.networks["var"].state_dict())
    assert torch.equal(objective._loss(batch, draws(0)).total, var._loss(batch, draws(0)).total)


def test_a_skipped_layer_learns_through_the_first_scales_alone(build):
    objective, batch = build("variant", full_scales=2, subnet_probability=[1.0, 1.0])
    network, subnet = objective.networks["var"], objective.subnets[2]
    _, inputs = objective._forced(batch)
    seen = []
    network.blocks[1].register_forward_hook(lambda block, args, output: seen.append(output))
    logits = network(batch.labels, inputs, subnet)
    logits[:, 5:].sum().backward()  # finer scales look at the first ones, and reach the layer through them
    assert seen[0].shape[1] == 5 == objective.scales.offsets[2]
    assert network.blocks[1].ffn.fc2.weight.grad.abs().max() > 0
    kept = [block.ffn.fc2.weight for block in (network.blocks[0], network.blocks[2])]
    assert all(weight.grad.abs().max() > 0 for weight in kept)


def test_with_the_first_scales_detached_a_skipped_layer_learns_nothing(build):
    objective, batch = build("variant", full_scales=2, subnet_probability=[1.0, 1.0])
    network = objective.networks["var"]
    _, inputs = objective._forced(batch)
    network.blocks[1].register_forward_hook(lambda block, args, output: output.detach())
    network(batch.labels, inputs, objective.subnets[2]).sum().backward()
    assert all(parameter.grad is None for parameter in network.blocks[1].ffn.parameters())


def test_every_parameter_has_a_gradient_when_a_subnet_is_trained(build):
    objective, batch = build("variant", full_scales=1, subnet_probability=[1.0, 1.0])
    objective._loss(batch, draws(0)).total.backward()
    assert all(parameter.grad is not None for parameter in objective.networks["var"].parameters())


def test_the_log_tells_the_depths_apart(tiny, cache, tmp_path):
    final = train(tiny("variant", steps=8), tmp_path, cache_dir=cache, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()][1:]
    losses = [line for line in lines if "loss" in line]
    assert len(losses) == 8
    for line in losses:
        own = "loss_full" if "loss_full" in line else "loss_subnet_2"
        assert line["loss"] == line[own]
        assert ("loss_full" in line) != ("loss_subnet_2" in line)
    assert len({"loss_full" in line for line in losses}) == 2
    validation = next(line for line in lines if "validation_loss_full" in line)
    assert {"validation_loss_subnet_2", "validation_accuracy_scale_1_subnet_2"} <= validation.keys()
    assert isinstance(load_network(final / "backbone"), VAR)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subnets": [4]}, "subnets: subnet is 4; it must be from 2 to 3"),
        ({"subnets": [2, 1]}, "subnets: subnet is 1; it must be from 2 to 3"),
        ({"subnets": []}, "subnets is []; expected different numbers of layers"),
        ({"subnets": [2, 2]}, "subnets is [2, 2]; expected different"),
        ({"full_scales": 0}, "full_scales is 0; it must be from 1 to 2, of 3 scales"),
        ({"full_scales": 3}, "full_scales is 3; it must be from 1 to 2"),
        ({"subnet_probability": [0.2, 1.1]}, "subnet_probability is [0.2, 1.1]; expected two numbers in [0, 1]"),
        ({"phase_ends": [0.8, 0.2]}, "phase_ends is [0.8, 0.2]; expected two growing shares"),
        ({"phases": 3}, "unknown key 'phases'"),
        ({"class_dropout": 1.5}, "class_dropout is 1.5; expected a number in [0, 1)"),
    ],
)
def test_options_that_fit_nothing_are_refused_in_one_line(tiny, settings, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        tiny("variant", objective_options=settings("variant")["objective_options"] | changes)
    assert "\n" not in str(caught.value)


def test_the_options_that_have_no_default_are_asked_for(tiny):
    with pytest.raises(ValueError, match="missing key 'subnets'"):
        tiny("variant", objective_options={"full_scales": 1})
