"""Families and models are found in their files, and what is read there as text is what Python sees."""

import subprocess
import sys
from importlib import import_module

import pytest

from var_toolkit import registry
from var_toolkit.entries import entries_from

HOMES = [home for home in registry.HOMES.values() if home.networks or home.entries]


@pytest.mark.parametrize("home", HOMES, ids=[home.module for home in HOMES])
def test_tables_read_as_text_are_those_of_the_module(home):
    module = import_module(home.module)
    assert home.networks == module.NETWORKS
    assert entries_from(getattr(module, "MODELS", {}), home.module.rpartition(".")[2], where="") == home.entries


@pytest.mark.parametrize("name", registry.families())
def test_a_family_has_what_its_files_and_its_card_need(name):
    family = registry.family(name)
    assert family.name == name
    assert registry.home_of(family.network.__name__).family == name
    assert family.network.__name__ + "Config" == family.config.__name__
    assert family.required
    assert family.title and family.paper and family.way  # noqa: PT018
    assert family.tokenizer.network in registry.networks("tokenizer")


def test_every_model_is_of_a_part_that_it_names():
    parts = {part for home in HOMES for part in home.networks.values()}
    for entry in registry.ENTRIES.values():
        source = entry.source
        named = set(source.files) if isinstance(source, registry.Hub) else set(source.parts())
        assert named <= parts | {"adapter", "refiner"}
        assert named


def test_looking_up_models_imports_no_torch():
    code = (
        "import sys, var_toolkit; from var_toolkit import registry; registry.entry('var-d16'); registry.families(); "
        "print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)), *var_toolkit.list_models('flowar*'))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split("\n")[0].startswith("[] flowar-s")


def test_an_unknown_family_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"^family 'vra'.*var"):
        registry.family("vra")
