"""A setting is declared once: the command line, tables of benchmarks, the documents and the checks follow."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from settings_table import PAGE, written
from small_flowar import tiny_flowar, tiny_kl
from small_llamagen import tiny_gpt, tiny_vq

from var_toolkit.cli import main, parser
from var_toolkit.cli.options import sampling_settings
from var_toolkit.entries import Sampling
from var_toolkit.evaluation.bench.table import Row
from var_toolkit.pipeline import Pipeline
from var_toolkit.setting_table import CONTINUOUS, SETTINGS

OPTIONS = {name: setting.option for name, setting in SETTINGS.items()}
del OPTIONS["method_options"]  # which follow the name after --method
COMMANDS = {
    "sample": ("--class", "3"),
    "edit": ("image.png", "--expand", "8"),
    "vary": ("image.png", "--from-scale", "2"),
    "evaluate": ("sample", "--out", "set"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_an_option_and_none_is_set_unasked(command, capsys):
    assert sampling_settings(parser().parse_args([command, *COMMANDS[command]])) == dict.fromkeys(SETTINGS)
    with pytest.raises(SystemExit):
        main([command, *COMMANDS[command], "--help"])
    shown = "".join(capsys.readouterr().out.split())  # without line breaks
    for name, option in OPTIONS.items():
        assert option in shown
        assert "".join(SETTINGS[name].help.split()) in shown


def test_every_setting_is_a_key_of_a_bench_plan():
    assert Row("any", "stilllife-var", plan=dict.fromkeys(SETTINGS)).plan.keys() == SETTINGS.keys()


def test_the_table_in_the_documents_is_current():
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "run scripts/settings_table.py"
    assert all(f"| `{option}` |" in page for option in OPTIONS.values())


@pytest.mark.parametrize("field", fields(Sampling), ids=lambda field: field.name)
def test_the_default_of_a_model_is_a_value_of_a_setting(field):
    setting = SETTINGS[field.name]
    hint = get_type_hints(Sampling)[field.name]
    assert {hint, *get_args(hint)} & {*setting.types}


OUTSIDE = [
    (name, value)
    for name, setting in SETTINGS.items()
    if setting.range is not None
    for value in (setting.range.low - 2, setting.range.high * 2 + 1)  # 2, since 0 is off in every count of guidance
]


@pytest.fixture(scope="module")
def pipelines():
    return Pipeline(tiny_vq(), tiny_gpt(), Sampling(2.0)), Pipeline(tiny_kl(), tiny_flowar(), Sampling(2.0))


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_a_value_out_of_range_is_refused_by_name(name, value, pipelines, monkeypatch, capsys):
    pipe = pipelines[SETTINGS[name].of == CONTINUOUS]
    two = SETTINGS[name].types == (tuple[float, float],)
    with pytest.raises(ValueError, match=f"^{name} is [^\n]*; it must be [^\n]*$"):
        pipe.plan(**{name: (value, value) if two else value})
    monkeypatch.setattr("var_toolkit.loading.skeleton", lambda *source, **options: pipe)
    typed = [OPTIONS[name], str(value), str(value)] if two else [f"{OPTIONS[name]}={value}"]
    try:
        status = main(["sample", "--class", "none", *typed])
    except SystemExit as stop:  # argparse's way out
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert OPTIONS[name] in error
    assert error.count("\n") == 1
