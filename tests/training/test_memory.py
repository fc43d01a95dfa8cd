"""What saves memory in training changes no result: micro-batches to rounding, activations computed again to the bit."""

import re
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch
from small_captions import write
from torch import distributed, nn
from torch.testing import assert_close
from torch.testing._internal.distributed.fake_pg import FakeStore

from var_toolkit.cli import main
from var_toolkit.models import star
from var_toolkit.models.layers.blocks import blocks_within
from var_toolkit.processes import Team
from var_toolkit.training import parallel
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train
from var_toolkit.training.memory import Memory, _no_numbers, fit, memory_of, outline
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import read_recipe, recipe_from
from var_toolkit.training.registry import objective_class, objective_names
from var_toolkit.training.state import TrainingState

CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[2] / "configs"
FIELDS = {"accumulate": 2, "checkpoint_activations": True}
MEASURED = ("var", "himar", "raster-gpt")
REFUSED = FIELDS | {"parallel": "fsdp"}


def objectives(field, *, taken):
    return [name for name in objective_names() if (field not in objective_class(name).refused) == taken]


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def objective(made, tiny, cache, noisy_cache, tmp_path):
    """An objective by name with a batch; it is built once."""

    def find(name):
        if name not in made:
            data = {}
            if name == "infinity":  # its scenes would be rendered for long
                root = write(tmp_path / "root", "text", [("a red cube",), ("grass",)] * 4)
                data = {"data": {"kind": "captions", "root": str(root), "size": 128, "workers": 0}}
            recipe = tiny(name, precision="fp32", ema=None, **data)
            torch.manual_seed(0)
            folder = noisy_cache if name == "varedit" else cache
            found = objective_class(name)(recipe, Workplace(folder, Team(0, 1, CPU)))
            made[name] = found, next(iter(found.source.batches([torch.arange(8)], 0)))
        return made[name]

    return find


def gradients(objective, batch, **changes):
    """The gradients of the first step of the main network, and what the log says of it."""
    torch.manual_seed(0)
    state = TrainingState(replace(objective.recipe, **changes), objective, Team(0, 1, CPU), steps=6)
    step, phase = next((step, one) for step in range(6) for one in objective.phases(step) if state.main in one.updates)
    terms = state._gradients(phase, batch, Draws(0, step, 0, 1, 8, CPU))
    network = state.networks[state.main]
    found = {name: one.grad for name, one in network.named_parameters() if one.grad is not None}
    network.zero_grad()
    return found, terms


@pytest.mark.parametrize("name", objectives("accumulate", taken=True))
def test_micro_batches_have_the_gradients_of_the_whole_batch(name, objective):
    own, batch = objective(name)
    own.networks[next(iter(own.networks))].eval()  # without dropout, which draws for each micro-batch
    whole, of_whole = gradients(own, batch)
    parts, of_parts = gradients(own, batch, accumulate=4)
    assert whole.keys() == parts.keys()
    largest = max(float(one.abs().max()) for one in whole.values())
    for key, expected in whole.items():
        assert_close(parts[key], expected, rtol=1e-3, atol=2e-6 * largest)
    assert_close(of_parts["loss"], of_whole["loss"])


@pytest.mark.parametrize("name", objectives("checkpoint_activations", taken=True))
def test_what_blocks_compute_again_changes_no_bit(name, objective):
    own, batch = objective(name)
    network = next(iter(own.networks.values())).train()
    blocks, runs = [block for block in blocks_within(network) if list(block.children())], Counter()
    learned = {block for block in blocks if any(one.requires_grad for one in block.parameters())}
    for block in blocks:
        for part in list(block.modules())[1:]:
            part.register_forward_hook(lambda *_, block=block: runs.update([block]))
    plain, of_plain = gradients(own, batch)
    once = runs.copy()
    again, of_again = gradients(own, batch, checkpoint_activations=True)
    assert any(runs[block] > 2 * once[block] for block in blocks)
    assert all(runs[block] > 2 * once[block] for block in learned if once[block])
    assert all(torch.equal(of_plain[key], of_again[key]) for key in of_plain)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[key], again[key]) for key in plain)


@pytest.mark.parametrize(
    ("field", "name"), [(field, name) for field in REFUSED for name in objectives(field, taken=False)]
)
def test_an_objective_that_cannot_says_so_in_one_line(field, name, settings):
    with pytest.raises(ValueError, match=f"objective {name} takes no {field}: .*; remove it") as caught:
        recipe_from(settings(name, **{field: REFUSED[field]}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("var", {"accumulate": 3}, "accumulate is 3; batch_size, 8"),
        ("var", {"accumulate": 0}, "accumulate is 0"),
        ("var", {"checkpoint_activations": "full"}, "checkpoint_activations is 'full'"),
        ("raster-distil", {"accumulate": 2, "objective_options": {"teacher": "a", "loss": "tvd++"}}, "tvd.*accumulate"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(settings, name, changes, match):
    with pytest.raises(ValueError, match=match):
        recipe_from(settings(name, **changes))


def test_a_run_in_micro_batches_ends_with_the_weights_of_whole_batches(tiny, cache, tmp_path, weights):
    settings = {"optimiser": {"kind": "muon", "lr": 1e-3, "eps": 1e-3}, "grad_clip": 0.5, "precision": "fp32"}
    whole = tiny("var", steps=3, schedule={"kind": "constant"}, **settings)
    parts = replace(whole, **FIELDS)
    expected = weights(train(whole, tmp_path / "whole", cache_dir=cache, device="cpu"))
    found = weights(train(parts, tmp_path / "parts", cache_dir=cache, device="cpu"))
    for name in expected:
        assert_close(found[name], expected[name], rtol=1e-3, atol=2e-5)
    train(replace(parts, steps=2), tmp_path / "resumed", cache_dir=cache, device="cpu")
    resumed = weights(train(parts, tmp_path / "resumed", cache_dir=cache, device="cpu"))
    assert all(torch.equal(found[name], resumed[name]) for name in found)


def test_processes_average_gradients_once_a_step(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        network = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
        with parallel.without_averaging([network, nn.Linear(2, 2)]):
            assert not network.require_backward_grad_sync
        assert network.require_backward_grad_sync
    finally:
        distributed.destroy_process_group()


def test_micro_batches_of_processes_have_the_draws_of_their_images():
    whole = Draws(0, 5, 0, 1, 8, CPU)
    parts = [part for rank in (0, 1) for part in Draws(0, 5, rank, 2, 8, CPU).split(2)]
    assert torch.equal(torch.cat([part.per_image("x") for part in parts]), whole.per_image("x"))
    of_rank = Draws(0, 5, 1, 2, 8, CPU)
    for drawn in ("uniform", "normal"):
        expected = getattr(of_rank.numbers("x"), drawn)(3, 4, 2, axis=1)
        found = [getattr(part.numbers("x"), drawn)(3, 2, 2, axis=1) for part in of_rank.split(2)]
        assert torch.equal(torch.cat(found, dim=1), expected)


@pytest.mark.parametrize("name", objective_names())
def test_the_outline_of_a_recipe_has_the_parameters_that_are_trained(name, objective):
    def parameters(networks):
        named = [one for network in networks.values() for one in network.named_parameters()]
        return [(name, p.shape, p.requires_grad) for name, p in named if name != "encoder.embedding.weight"]  # of words

    own, _ = objective(name)
    assert parameters(outline(own.recipe)) == parameters(own.networks)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", ["var", "himar"])
def test_a_process_holds_the_shards_that_a_dry_run_tells(name, processes, objective):
    own, _ = objective(name)
    recipe = replace(own.recipe, parallel="fsdp", ema=0.9)
    network = next(iter(deepcopy(own.networks).values()))
    told = memory_of(recipe, processes)
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        parallel.shard(network, recipe.precision)
        held = [4 * parameter.to_local().numel() for parameter in network.parameters() if parameter.requires_grad]
    finally:
        distributed.destroy_process_group()
    assert told.weights == told.average == told.gradients == told.optimiser / 2 == sum(held)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in MEASURED else pytest.mark.slow) for name in objective_names()]
)
def test_activations_are_about_what_a_step_keeps(name, objective, made):
    made.pop(name, None)  # another test may have let its blocks compute again
    own, batch = objective(name)
    told = memory_of(own.recipe, 1).activations
    if told is None:
        pytest.skip("is not measured")
    kept, held = {}, []

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    network = next(iter(own.networks.values())).train()
    step, phase = next((step, one) for step in range(6) for one in own.phases(step))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        phase.loss(batch, Draws(0, step, 0, 1, 8, CPU))
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    found = sum(size for key, size in kept.items() if key not in weights)
    assert 0.5 < told / found < 2


def test_what_saves_memory_is_told(tiny):
    plain = tiny("var", precision="bf16", model=tiny("var").model.__dict__ | {"depth": 8, "patch_nums": [1, 2, 8]})
    told = memory_of(plain, 2)
    assert memory_of(replace(plain, checkpoint_activations=True), 2).activations < 0.6 * told.activations
    assert memory_of(replace(plain, accumulate=4), 2).activations == told.activations / 4
    shards = memory_of(replace(plain, parallel="fsdp"), 2)
    assert shards.weights < 0.6 * told.weights
    assert shards.activations == told.activations
    assert memory_of(replace(plain, ema=None), 2).average == 0 < told.average


@pytest.mark.parametrize(
    ("name", "processes", "changes", "ways"),
    [
        ("var", 1, {}, {"processes", "fsdp", "checkpoint_activations"}),
        ("var", 8, {}, {"fsdp", "checkpoint_activations"}),
        ("var", 8, {"parallel": "fsdp", "checkpoint_activations": True}, set()),
        ("var", 1, {"optimiser": {"kind": "muon", "lr": 1e-3}}, {"processes", "checkpoint_activations"}),
        ("classifier", 1, {}, {"processes"}),
    ],
)
def test_what_fits_no_card_is_advised_what_the_recipe_may_take(name, processes, changes, ways, tiny):
    told = fit(tiny(name, **changes), processes, Memory(2**40, 0, 0, 0, 0, 0))
    assert {word for word in ("processes", "fsdp", "checkpoint_activations") if word in told} == ways


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(RECIPES.glob("imagenet*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_for_imagenet_states_the_cards_that_it_fits(path):
    recipe, processes = read_recipe(path), int(re.search(r"--dry-run --processes (\d+)", path.read_text())[1])
    assert fit(recipe, processes, memory_of(recipe, processes)) in path.read_text().replace("\n# ", " ")


def test_a_dry_run_tells_the_memory_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "imagenet256-var-d16", "--dry-run", "--processes", "8"]) == 0
    assert "cards of" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for options, word in ((["--dry-run", "--processes", "7"], "batch_size"), (["--processes", "8"], "--processes")):
        assert main(["train", "imagenet256-var-d16", *options]) == 2
        assert word in capsys.readouterr().err


@pytest.mark.parametrize("given", ["x", "0", "-1", ""])
def test_a_number_of_processes_that_is_none_is_named(given, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", given)
    assert main(["train", "imagenet256-var-d16", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"WORLD_SIZE is {given!r}" in line


def test_a_dry_run_leaves_no_table_without_numbers_to_a_star():
    with _no_numbers():
        star.known_rotation(star.STARConfig(), CPU)
    assert isfinite(star.known_rotation(star.STARConfig(), CPU).cos.sum().item())
