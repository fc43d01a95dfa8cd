"""The command line as a whole: instant help, the list of models, reconstruction, a frozen set of options."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import var_toolkit
from var_toolkit.cli import main, parser
from var_toolkit.cli.parsing import COMMANDS, as_typed


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from var_toolkit.cli import parser; parser().format_help(); "
        "print([m for m in ('torch', 'numpy', 'PIL', 'diffusers', 'timm', 'torchvision') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_program_begins_with_nothing_but_what_catches_ctrl_c():
    code = "import sys; before = set(sys.modules); from var_toolkit.cli import main; print(set(sys.modules) - before)"
    # Without site packages no installation is found.
    environment = {**os.environ, "PYTHONPATH": str(Path(var_toolkit.__file__).parents[1])}
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment)
    assert "argparse" not in found.stdout
    assert "var_toolkit.cli" in found.stdout


def test_ctrl_c_while_the_program_starts_is_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("var_toolkit.cli.parsing.parser", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "vargen: interrupted\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "vargen: give a command: sample,"),
        (["smaple"], "vargen: 'smaple' is not a command; did you mean sample?"),
        (["paint"], "'paint' is not a command; use sample,"),
        (["evaluate"], "vargen evaluate: give a step: sample, score, prompts or edits"),
        (
            ["evaluate", "score", "--imges", "x"],
            "vargen evaluate score: unknown option --imges; did you mean --images?",
        ),
        (["models", "var*", "more"], "vargen models: unexpected argument 'more'"),
        (["train", "x.yaml", "--ou", "y"], "vargen train: unknown option --ou; did you mean --out?"),
    ],
)
def test_a_command_line_that_is_none_is_one_line_with_the_way_out(words, told, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert "--help` shows" in error
    assert error.count("\n") == 1


def test_no_parser_takes_abbreviations():
    top = parser()
    commands = next(action for action in top._actions if action.dest == "command").choices
    steps = next(action for action in commands["evaluate"]._actions if action.dest == "step").choices
    assert not any(each.allow_abbrev for each in (top, *commands.values(), *steps.values()))


def test_settings_in_a_message_on_a_file_keep_their_names():
    sample = next(action for action in parser()._actions if action.dest == "command").choices["sample"]
    message = "m/model_index.json: _sampling: top_k is -1, guidance_scale is 2"
    assert as_typed(message, sample, ["--class", "3"]) == message
    message = "runs/batch_size/guidance_scale.png is not a folder"
    assert as_typed(message, sample, ["--batch-size=3"]) == message
    assert as_typed("top_k is -1; temperature is 2", sample, ["--temperature=2"]) == "--top-k is -1; temperature is 2"


def test_python_m_is_the_same_program():
    result = subprocess.run([sys.executable, "-m", "var_toolkit", "--version"], capture_output=True, text=True)
    assert result.stdout.startswith("vargen ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"vargen {command}" in capsys.readouterr().out


def test_the_options_are_the_documented_ones():
    """Growth of the surface is a decision: change this list when you change the options."""
    commands = next(action for action in parser()._actions if action.dest == "command").choices
    steps = next(action for action in commands["evaluate"]._actions if action.dest == "step").choices
    commands = commands | {f"evaluate {name}": step for name, step in steps.items()}
    options = {name: {o for a in command._actions for o in a.option_strings} for name, command in commands.items()}
    assert [name for name, found in options.items() if "--family" not in found] == ["evaluate"]
    options = {name: found - {"--family"} for name, found in options.items()}
    machine = {"-h", "--help", "--device", "--dtype"}
    drawing = {
        "--cfg",
        "--guidance-scale",
        "--schedule",
        "--size",
        "--top-k",
        "--top-p",
        "--temperature",
        "--smooth",
        "--batch-size",
        "--tokenizer",
    }
    drawing |= {"--solver", "--steps", "--guidance-interval", "--guidance-scales", "--guided-tokens"}
    drawing |= {"--cfg-schedule", "--denoising-steps", "--pivot-cfg", "--first-cfg", "--guidance-layer"}
    plans = {"--subnet", "--full-scales", "--refine", "--refine-clean", "--drafter", "--refiner", "--draft-scales"}
    plans |= {
        "--speculate", "--accept", "--draft-model", "--draft-length", "--draft-tree", "--draft-confidence",
        "--draft-codes", "--jacobi-start", "--jacobi-keep", "--exit-layers", "--delta", "--lambda", "--neighbours",
        "--raw-codes", "--group", "--boost", "--decay", "--judge", "--judge-threshold", "--method",
    }  # fmt: skip
    plans |= {
        "--coded",
        "--control-strength",
        "--skip-scales",
        "--prune-tokens",
        "--prune-layers",
        "--key-share",
        "--key-layers",
        "--best-of",
        "--candidates",
        "--latent-scorer",
        "--scorer",
        "--threshold",
    }
    encoder = {"--text-device", "--text-bits"}
    images = machine | drawing | plans | encoder | {
        "--class", "--prompt", "--prompt-embeds", "--negative-prompt",
        "-n", "--seed", "--model", "--out", "--grid", "--trace", "--save-tokens", "--plan", "--dry-run",
        "--json", "--compile", "--adapter", "--decoder",
    }  # fmt: skip
    assert options["sample"] == images | {"--control"}
    assert options["edit"] == images | {"--mask", "--expand", "--instruction", "--keep-pixels"}
    assert options["vary"] == images | {"--from-scale"}
    assert options["embed"] == encoder | {"-h", "--help", "--model", "--out", "--device"}
    assert options["reconstruct"] == machine | {"--model", "--out", "--json"}
    assert options["control"] == {"-h", "--help", "--kind", "--estimator", "--size", "--out"}
    assert options["classes"] == {"-h", "--help", "--model", "--json"}
    assert options["models"] == {"-h", "--help", "--json"}
    assert options["convert"] == {
        "-h", "--help", "--tokenizer", "--backbone", "--adapter", "--config", "--out", "--half", "--weights",
    }  # fmt: skip
    assert options["merge"] == {"-h", "--help", "--model", "--adapter", "--out"}
    assert options["evaluate sample"] == machine | drawing | plans | {
        "--model", "--out", "--classes", "--per-class", "--seed", "--npz", "--shards", "--json",
    }  # fmt: skip
    assert options["evaluate score"] == {
        "-h", "--help", "--images", "--reference", "--features", "--inception-weights", "-n", "--json",
        "--save-statistics", "--save-features",
    }  # fmt: skip
    assert options["evaluate prompts"] == machine | drawing | plans | {
        "-n", "--model", "--seed", "--sheet", "--prompts", "--clip-score", "--json",
    }  # fmt: skip
    assert options["evaluate edits"] == machine | (drawing - {"--batch-size"}) | plans | {
        "-n", "--model", "--seed", "--sheet", "--json",
    }  # fmt: skip
    assert options["bench"] == {"-h", "--help", "--rounds", "--only", "--out", "--json", "--allow-code", "--published"}
    assert options["demo"] == machine | {"--model", "--host", "--port"}
    assert options["serve"] == options["demo"] | {"--queue", "--batch", "--api-key-file"}
    assert options["push"] == {"-h", "--help", "--private", "--revision", "--license", "--dtype", "--json"}
    rest = {"--out", "--cache", "--device", "--skip-damaged", "--track", "--dry-run", "--processes"}
    assert options["train"] == {"-h", "--help"} | rest


def test_models_lists_names_sizes_and_whereabouts(capsys):
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows["var-d30"]["parameters"] == 2_010_000_000
    assert rows["var-d30"]["weights"] in ("on the hub", "cached")
    assert rows["stilllife-var"]["weights"] == "embedded"
    assert main(["models", "var*"]) == 0
    assert "stilllife" not in capsys.readouterr().out
    assert main(["models", "*judge*"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["stilllife-gpt-judge", "64", "129", "embedded"]


def test_models_that_match_nothing_are_said_so(capsys):
    assert main(["models", "gan*"]) == 2
    assert "no model matches" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "I;16", "1"])
def test_images_of_every_kind_are_reconstructed(mode, model, capsys):
    name = "image.tif" if mode in ("CMYK", "I;16") else "image.png"
    Image.new("RGB", (90, 70), "teal").convert("L" if mode == "I;16" else mode).convert(mode).save(name)
    assert main(["reconstruct", name, "--model", model]) == 0
    assert Image.open("image_reconstruction.png").width > 128
    assert "PSNR" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "status"), [((1, 1), 2), ((300, 15), 2), ((16, 16), 0)], ids=str)
def test_an_image_smaller_than_the_patch_of_a_token_is_refused(size, status, model, capsys):
    Image.new("RGB", size, "teal").save("image.png")
    assert main(["reconstruct", "image.png", "--model", model]) == status
    told = capsys.readouterr().err
    assert told.count("\n") == (1 if status else 0)
    assert not status or f"{size[0]}x{size[1]}; it must be at least 16x16" in told


def test_sixteen_bits_are_scaled_and_not_clipped():
    from var_toolkit.images import image_tensor

    ramp = Image.new("I;16", (16, 16))
    for x in range(16):
        for y in range(16):
            ramp.putpixel((x, y), x * 4369)
    row = image_tensor(ramp, 16)[0, 0]
    assert [round(float(v) * 15) for v in row] == list(range(16))


def test_a_tokenizer_alone_can_reconstruct(model, tmp_path):
    Image.new("RGB", (70, 70), "teal").save("image.png")
    assert main(["reconstruct", "image.png", "--model", f"{model}/tokenizer"]) == 0
    assert main(["reconstruct", "image.png", "--model", f"{model}/backbone", "--out", "b.png"]) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no image", "is not an image"), (b"\x89PNG\r\n\x1a\n" + b"0" * 50, "image"), (None, "No such file")],
)
def test_a_file_that_is_no_image_is_one_line(content, words, model, tmp_path, capsys):
    if content is not None:
        (tmp_path / "image.png").write_bytes(content)
    assert main(["reconstruct", "image.png", "--model", model]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_broken_pipe_that_is_not_standard_output_is_an_error(monkeypatch, capsys):
    def run(arguments):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("var_toolkit.cli.models.run", run)
    assert main(["models"]) == 2
    assert "Broken pipe" in capsys.readouterr().err
