"""Adapters: trained by every objective that starts from weights, saved as peft does, merged where a model draws."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_captions import write
from torch.nn import functional as F
from torch.testing import assert_close

import var_toolkit
from var_toolkit.cli import main
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.lora import target_layers
from var_toolkit.processes import Team
from var_toolkit.training.adapters import TrainedAdapter
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import AdapterConfig, recipe_from
from var_toolkit.training.registry import objective_class, objective_names
from var_toolkit.training.state import TrainingState

CPU = torch.device("cpu")
WITHOUT = {"car"}  # its light branch has no blocks


def takes_adapters(name):
    cls = objective_class(name)
    return "adapter" not in cls.refused and "initial" in {field.name for field in fields(cls.options_type)}


NAMES = [name for name in objective_names() if takes_adapters(name) and name not in WITHOUT]


@pytest.fixture(scope="session")
def bases(tmp_path_factory, tiny, cache, noisy_cache):
    """Model directories of untrained networks by objective, and the recipes that would train them."""
    made, folder = {}, tmp_path_factory.mktemp("bases")

    def find(name):
        if name not in made:
            changes = {"precision": "fp32", "ema": None}
            if name == "infinity":
                root = write(folder / "root", "text", [("a red cube",), ("grass",)] * 4)
                changes["data"] = {"kind": "captions", "root": str(root), "size": 128, "workers": 0}
            recipe = tiny(name, **changes)
            torch.manual_seed(0)
            data = noisy_cache if name == "varedit" else cache
            objective = objective_class(name)(recipe, Workplace(data, Team(0, 1, CPU)))
            network = next(iter(objective.networks.values()))
            with torch.no_grad():
                for weight in network.parameters():
                    weight.add_(0.1 * torch.randn_like(weight))  # no layer is zero, as some are before training
            objective.save(network, folder / name)
            made[name] = folder / name, recipe, objective
        return made[name]

    return find


def adapted(bases, cache, name, **config):
    """An objective whose network has an adapter, after a step."""
    base, recipe, _ = bases(name)
    recipe = replace(recipe, objective_options=replace(recipe.objective_options, initial=str(base)))
    recipe = replace(recipe, adapter=small(**config))
    objective = objective_class(name)(recipe, Workplace(cache, Team(0, 1, CPU)))
    adapter = TrainedAdapter(recipe, objective)
    state = TrainingState(replace(recipe, optimiser=replace(recipe.optimiser, lr=0.05)), objective, Team(0, 1, CPU), 6)
    batch = next(iter(objective.source.batches([torch.arange(8)], 0)))
    for step in range(3, 5):
        state.train_step(batch, Draws(0, step, 0, 1, 8, CPU))
    return adapter, objective, state.networks[state.main].eval()


def small(**config):
    return AdapterConfig(rank=2, alpha=3.0, **config)


@pytest.mark.parametrize(("name", "kind"), [*((name, "lora") for name in NAMES), ("var", "dora"), ("mar", "dora")])
@torch.no_grad()
def test_a_model_with_an_adapter_computes_what_was_trained(name, kind, bases, cache, noisy_cache, tmp_path):
    cache = noisy_cache if name == "varedit" else cache
    with torch.enable_grad():
        adapter, objective, network = adapted(bases, cache, name, kind=kind)
    part, base = objective.adapted(network), bases(name)[0]
    adapter.save(network.state_dict(), tmp_path)
    plain, pipe = (var_toolkit.load(base, adapters=found, device="cpu") for found in ([], [(tmp_path, 1.0)]))
    assert {each for each, weight in part.named_parameters() if weight.requires_grad} == {
        each for each, _ in part.named_parameters() if ".lora_" in each
    }
    merged, before = dict(pipe.backbone.named_modules()), dict(plain.backbone.named_modules())
    moved = 0.0
    for layer in adapter.layers:
        trained = part.get_submodule(layer)
        assert torch.equal(trained.base_layer.weight, before[layer].weight)
        x = torch.randn(3, trained.in_features)
        assert_close(F.linear(x, merged[layer].weight, merged[layer].bias), trained(x), atol=1e-5, rtol=1e-4)
        moved += float((merged[layer].weight - before[layer].weight).abs().max())
    assert moved > 1e-3
    others = {each for each in before if each not in adapter.layers}
    own = dict(plain.backbone.named_parameters())
    for each, weight in pipe.backbone.named_parameters():
        if each.rpartition(".")[0] in others:
            assert torch.equal(weight, own[each])


@pytest.fixture(scope="module")
def run(tiny, cache, tmp_path_factory, bases):
    """A finished run, and the settings of its recipe."""
    recipe = replace(bases("var")[1], ema=0.9, steps=2, schedule=replace(bases("var")[1].schedule, kind="constant"))
    recipe = replace(recipe, objective_options=replace(recipe.objective_options, initial=str(bases("var")[0])))
    recipe = replace(recipe, adapter=small(), optimiser=replace(recipe.optimiser, lr=0.05))
    out = tmp_path_factory.mktemp("run")
    train(recipe, out, cache_dir=cache, device="cpu")
    return out, recipe


def test_a_run_delivers_what_peft_reads(run, bases):
    from peft import PeftModel

    final, base = run[0] / "final", bases("var")[0]
    config = json.loads((final / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.name
    assert config["auto_mapping"]["base_model_class"] == "VAR"
    facts = json.loads((final / "facts.json").read_text())
    assert base.name in facts["origin"]
    assert base.name in (final / "README.md").read_text()
    ours = var_toolkit.load(base, adapters=[(final, 1.0)], device="cpu").backbone.state_dict()
    theirs = PeftModel.from_pretrained(var_toolkit.load(base, device="cpu").backbone, final).merge_and_unload()
    for name, weight in theirs.state_dict().items():
        assert_close(ours[name], weight)


def test_what_peft_trained_elsewhere_is_merged_as_peft_does(bases, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = bases("var")[0]
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["proj", "fc2"], use_rslora=True, init_lora_weights=False)
    with torch.random.fork_rng():
        theirs = get_peft_model(var_toolkit.load(base, device="cpu").backbone, config)
    theirs.save_pretrained(tmp_path)
    ours = var_toolkit.load(base, adapters=[(tmp_path, 1.0)], device="cpu").backbone.state_dict()
    plain = var_toolkit.load(base, device="cpu").backbone.state_dict()
    assert any(not torch.equal(ours[name], plain[name]) for name in plain)
    for name, weight in theirs.merge_and_unload().state_dict().items():
        assert_close(ours[name], weight)


def test_a_resumed_run_ends_with_the_same_bits(run, cache, tmp_path):
    out, recipe = run
    for steps in (1, 2):
        train(replace(recipe, steps=steps), tmp_path, cache_dir=cache, device="cpu")
    whole, resumed = (load_file(folder / "final" / "adapter_model.safetensors") for folder in (out, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_weights_of_several_adapters_add_up_and_can_be_set(run, bases):
    final, base = run[0] / "final", bases("var")[0]
    pipe = var_toolkit.load(base, device="cpu")
    before = {name: weight.clone() for name, weight in pipe.backbone.state_dict().items()}
    pipe.pack().load_lora_weights(final, "a", weight=0.75).load_lora_weights(final, "b", weight=-0.25)
    half = pipe.backbone.state_dict()
    one = var_toolkit.load(base, adapters=[(final, 0.5)], device="cpu").backbone.state_dict()
    for name in before:
        assert_close(half[name], one[name])
    pipe.set_adapters([])
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.backbone.state_dict().items())
    pipe.set_adapters(["b"], [0.5])
    assert all(torch.equal(weight, one[name]) for name, weight in pipe.backbone.state_dict().items())
    with pytest.raises(ValueError, match="no adapter is named 'c'; loaded are a, b"):
        pipe.set_adapters("c")


def test_the_command_line_draws_with_adapters_and_merges_them(run, bases, tmp_path, capsys):
    final, base = run[0] / "final", bases("var")[0]
    drawing = ["sample", "--class", "3", "--device", "cpu", "--json"]
    with_adapter = ["--model", str(base), "--adapter", f"{final}:0.5", "--adapter", str(final)]
    assert main([*drawing, *with_adapter, "--out", str(tmp_path / "a.png")]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == [[str(final), 0.5], [str(final), 1.0]]
    assert main(["merge", *with_adapter, "--out", str(tmp_path / "merged")]) == 0
    merged, whole = (tmp_path / "merged", [(final, 1.5)])
    loaded = var_toolkit.load(base, adapters=whole, device="cpu").backbone.state_dict()
    for name, weight in var_toolkit.load(merged, device="cpu").backbone.state_dict().items():
        assert_close(weight, loaded[name])
    assert final.name in json.loads((merged / "facts.json").read_text())["origin"]


def changed(config=None, tensors=None):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **(config or {})}))
        if tensors is not None:
            found = load_file(folder / "adapter_model.safetensors")
            save_file(tensors(found), folder / "adapter_model.safetensors")

    return change


def first(found, part, made):
    name = next(each for each in found if f"lora_{part}" in each)
    return {**found, name: made(found[name]).contiguous()}


BAD = {
    "nothing": (lambda folder: [path.unlink() for path in folder.iterdir()], "adapter_config.json is missing"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "safetensors is missing"),
    "no json": (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json"),
    "other method": (changed({"peft_type": "IA3"}), "peft_type is 'IA3'"),
    "rank": (changed({"r": "8"}), "r is '8'; expected a rank"),
    "huge rank": (changed({"r": 10**9}), "r is 1000000000"),
    "alpha": (changed({"lora_alpha": None}), "lora_alpha is None"),
    "pattern": (changed({"rank_pattern": {"(a+)+$": 4}}), "rank_pattern is set"),
    "bias": (changed({"bias": "all"}), "bias is 'all'"),
    "changed base": (changed({"init_lora_weights": "pissa_niter_4"}), "init_lora_weights is 'pissa_niter_4'"),
    "dora without": (changed({"use_dora": True}), "lacks the magnitudes of"),
    "other network": (
        changed({"auto_mapping": {"base_model_class": "MAR"}}),
        r"adapter of MAR \(var\); the model is VAR",
    ),
    "half": (changed({}, lambda found: dict([next(iter(found.items()))])), "expected .2, inputs. and .outputs, 2."),
    "foreign": (changed({}, lambda found: {"conv.weight": torch.ones(2)}), "'conv.weight' is no tensor of LoRA"),
    "nan": (changed({}, lambda found: first(found, "A", lambda t: t * float("nan"))), "not finite"),
    "sizes": (changed({}, lambda found: first(found, "A", lambda t: t[:, :-1])), "sizes 15 to .*the model has 16 to"),
    "layer": (
        changed({}, lambda found: {k.replace("blocks.0", "blocks.9"): v for k, v in found.items()}),
        "'blocks.9.attn.*no linear layer of VAR",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_adapter_is_one_line(name, run, bases, tmp_path, capsys):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).write_bytes((run[0] / "final" / file).read_bytes())
    change, match = BAD[name]
    change(folder)
    with pytest.raises(ValueError, match=match) as caught:
        var_toolkit.load(bases("var")[0], adapters=[(folder, 1.0)], device="cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_an_adapter_in_place_of_a_model_is_named(run):
    with pytest.raises(ValueError, match="final holds an adapter; give its base model, and this folder as --adapter"):
        var_toolkit.load(run[0] / "final", device="cpu")


def test_peft_is_imported_without_a_word_on_standard_error():
    code = (
        "from torch import nn; from var_toolkit.models.layers.lora import inject; "
        "inject(nn.Sequential(nn.Linear(2, 2)), ['0'], rank=1, alpha=1.0, dora=False)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stderr == ""


@pytest.mark.parametrize("weight", ["x", "nan"])
def test_a_bad_weight_is_one_line(weight, run, bases, capsys):
    try:
        status = main(
            ["sample", "--class", "3", "--model", str(bases("var")[0]), "--adapter", f"{run[0] / 'final'}:{weight}"]
        )
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert weight in error


def test_int8_weights_take_no_adapter_afterwards(run, bases):
    pipe = var_toolkit.load(bases("var")[0], device="cpu", dtype="int8")
    with pytest.raises(ValueError, match="int8"):
        pipe.load_lora_weights(run[0] / "final")


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("var", {"adapter": {"rank": 0}}, "rank is 0; expected 1"),
        ("var", {"adapter": {"kind": "vera"}}, "kind is 'vera'; allowed: lora, dora"),
        ("var", {"adapter": {}}, "adapter needs the weights that it adapts; give initial"),
        ("kl", {"adapter": {}}, "objective kl takes no adapter"),
        ("score-distillation", {"adapter": {}}, "objective score-distillation takes no adapter"),
    ],
)
def test_a_recipe_that_does_not_fit_is_named(settings, name, changes, match):
    with pytest.raises(ValueError, match=match):
        recipe_from(settings(name, **changes))


def test_layers_are_chosen_by_the_ends_of_their_names(bases):
    network = var_toolkit.load(bases("var")[0], device="cpu").backbone
    every = target_layers(network)
    assert target_layers(network, ["attn.proj"]) == [name for name in every if name.endswith("attn.proj")]
    assert all(isinstance(network.get_submodule(name), Linear) for name in target_layers(network, ["attn.proj", "fc1"]))
    with pytest.raises(ValueError, match=r"targets: no layer is named 'rn\.proj'; .*blocks\.attn\.proj"):
        target_layers(network, ["rn.proj"])


def test_an_adapter_of_another_number_of_classes_is_refused(bases, cache, settings):
    values = settings("var", objective_options={"initial": str(bases("var")[0])}, adapter={"rank": 2})
    values["model"] = values["model"] | {"num_classes": 10}
    values["data"] = {"kind": "folders", "root": str(Path(bases("var")[0])), "size": 64}
    recipe = recipe_from(values)
    objective = bases("var")[2]
    network = type(next(iter(objective.networks.values())))(recipe.model)
    with pytest.raises(ValueError, match="num_classes 1000, but the recipe asks for num_classes 10"):
        TrainedAdapter(recipe, type("Fake", (), {"networks": {"var": network}, "adapted": lambda self, one: one})())
