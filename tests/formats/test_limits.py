"""Configurations of networks from files of others: every value of a wrong kind or size is named, nothing is built."""

import dataclasses
import json
import typing
from importlib import import_module

import pytest
import torch
from small_flowar import tiny_kl

from var_toolkit.formats.directory import OF_DIFFUSERS, empty_network, require_buildable, save_network
from var_toolkit.formats.limits import RANGES, network_config
from var_toolkit.models.flowar import FlowARConfig
from var_toolkit.registry import HOMES
from var_toolkit.tokenizers.kl import KLConfig

CONFIGS = [
    typing.get_type_hints(getattr(import_module(home.module), name).__init__)["config"]
    for home in HOMES.values()
    for name in home.networks
    if name not in OF_DIFFUSERS
] + [KLConfig]
HUGE = 10**12
WRONG_NUMBERS = [HUGE, -HUGE, 10**400, "many", True, {}, [], float("nan"), float("inf"), float("-inf")]
WRONG_LISTS = [[HUGE], [-1], [0], [1.5], ["x"], [[1]], [], 3, [1] * 1000, "8", {}]
NUMBERS = (int, float, int | None, tuple[int, ...])
FIELDS = [
    pytest.param(cls, field.name, id=f"{cls.__name__}-{field.name}")
    for cls in CONFIGS
    for field in dataclasses.fields(cls)
    if typing.get_type_hints(cls)[field.name] in NUMBERS
]


def complete(cls):
    return json.loads(json.dumps(dataclasses.asdict(cls())))


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_a_number_of_any_field_is_bounded(cls, name):
    assert name in RANGES or "range" in cls.__dataclass_fields__[name].metadata
    may_be_empty = cls.__dataclass_fields__[name].metadata.get("least") == 0
    lists = [value for value in WRONG_LISTS if value != [] or not may_be_empty]
    for value in lists if typing.get_type_hints(cls)[name] == tuple[int, ...] else WRONG_NUMBERS:
        with pytest.raises(ValueError, match=rf"^c\.json: {name}[^\n]{{1,200}}$"):
            network_config(cls, {**complete(cls), name: value}, where="c.json", complete=True)


@pytest.mark.parametrize("cls", CONFIGS)
def test_a_missing_or_unknown_key_is_named(cls):
    for name in complete(cls):
        rest = {key: value for key, value in complete(cls).items() if key != name}
        with pytest.raises(ValueError, match=rf"c\.json: missing key '{name}'"):
            network_config(cls, rest, where="c.json", complete=True)
    with pytest.raises(ValueError, match=r"c\.json: unknown key 'foo'; Allowed"):
        network_config(cls, {**complete(cls), "foo": 1}, where="c.json", complete=True)
    assert network_config(cls, complete(cls), where="c.json", complete=True) == cls()


def test_parameters_are_counted_before_anything_is_allocated():
    with pytest.raises(ValueError, match=r"c\.json.*billion parameters; at most 100"):
        require_buildable(FlowARConfig(embed_dim=65_536, num_heads=64, encoder_depth=20), where="c.json")


@pytest.fixture
def autoencoder(tmp_path):
    """Writes a small autoencoder with changes to its config.json; gives its folder."""
    save_network(tiny_kl().autoencoder, tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"

    def changed(**changes):
        facts = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in facts.items() if value != "gone"}))
        return tmp_path / "vae"

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scalling_factor": 0.5, "scaling_factor": "gone"}, "'scalling_factor'; did you mean 'scaling_factor'"),
        ({"tiling": True}, r"'tiling'.*diffusers \d"),
        ({"scaling_factor": "gone"}, "missing key 'scaling_factor'"),
        ({"scaling_factor": "half"}, "scaling_factor"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"scaling_factor": -1}, "scaling_factor"),
        ({"latent_channels": 2.5}, "latent_channels"),
        ({"latent_channels": HUGE}, "latent_channels"),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"block_out_channels": [0, 8]}, "block_out_channels"),
        ({"layers_per_block": 10_000}, "layers_per_block"),
        ({"down_block_types": "DownEncoderBlock2D"}, "down_block_types"),
        ({"_class_name": ["AutoencoderKL"]}, "_class_name"),
        ({"norm_num_groups": 0}, "norm_num_groups"),
    ],
)
def test_a_config_of_diffusers_is_held_to_the_keys_and_kinds_of_its_class(change, words, autoencoder):
    with pytest.raises(ValueError, match=rf"vae/config\.json[^\n]*{words}[^\n]*$"):
        empty_network(autoencoder(**change))


def test_the_default_scaling_of_files_that_diffusers_wrote_is_said(autoencoder):
    folder = autoencoder(scaling_factor="gone", _diffusers_version="0.4.2", _name_or_path="x")
    with pytest.warns(UserWarning, match=r"vae/config\.json.*scaling_factor.*0\.18215"):
        network = empty_network(folder)
    assert network.config.scaling_factor == 0.18215
    assert next(network.parameters()).device == torch.device("meta")


def test_a_field_of_another_name_states_its_own_range():
    @dataclasses.dataclass(frozen=True)
    class Odd:
        rings: int = dataclasses.field(default=3, metadata={"range": (1, 9)})

    assert network_config(Odd, {"rings": 9}, where="c.json").rings == 9
    with pytest.raises(ValueError, match=r"rings is 10; expected 1 to 9"):
        network_config(Odd, {"rings": 10}, where="c.json")
