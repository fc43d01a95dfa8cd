"""`vargen sample` as a user meets it."""

import json
import os
import subprocess
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import small_var_network
from PIL import Image
from safetensors.torch import load_file

from var_toolkit import streaming
from var_toolkit.cli import main
from var_toolkit.loading import load
from var_toolkit.pipeline import Pipeline


def sample(model, *options) -> int:
    return main(["sample", "--model", model, *options])


def most_different(one, other) -> int:
    """The largest difference of any pixel: tokens are equal, a decoder's rounding depends on its batch."""
    pixels = [torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).int() for path in (one, other)]
    return int((pixels[0] - pixels[1]).abs().max())


def test_an_image_a_class_and_seed_is_written_and_told(model, tmp_path, capsys):
    assert sample(model, "--class", "3", "7", "-n", "2", "--seed", "5") == 0
    names = ["class-3_seed-5.png", "class-3_seed-6.png", "class-7_seed-5.png", "class-7_seed-6.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert Image.open(tmp_path / names[0]).size == (64, 64)
    assert "class-7_seed-6.png: class 7" in capsys.readouterr().out


def test_the_same_seed_draws_the_same_image_in_any_batch(model, tmp_path):
    sample(model, "--class", "3", "-n", "5", "--out", "together")
    sample(model, "--class", "3", "--seed", "4", "--out", "alone.png")
    assert most_different("alone.png", "together/class-3_seed-4.png") <= 1
    sample(model, "--class", "3", "-n", "5", "--batch-size", "2", "--out", "batches")
    for path in Path("together").iterdir():
        assert most_different(path, Path("batches") / path.name) <= 1


def test_ranges_and_lists_of_classes_are_drawn(model, capsys):
    assert sample(model, "--class", "3-5,7", "0", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == [3, 4, 5, 7, 0]


def test_guidance_is_told_in_both_counts(model, capsys):
    for option, value in (("--cfg", "2.5"), ("--guidance-scale", "3.5")):
        assert sample(model, "--class", "3", option, value, "--dry-run", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["cfg"], told["guidance_scale"]) == (2.5, 3.5)
    assert sample(model, "--class", "3", "--cfg", "1.5", "--guidance-scale", "2.5") == 2
    error = capsys.readouterr().err
    assert "--cfg and --guidance-scale" in error
    assert error.count("\n") == 1


def test_no_class_at_all_can_be_asked_for(model, tmp_path, capsys):
    assert sample(model, "--class", "none") == 0
    assert "class-none_seed-0.png: no class, seed 0" in capsys.readouterr().out


def test_json_is_one_object_with_what_was_done(model, capsys):
    sample(model, "--class", "3", "-n", "2", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["seeds"] == [0, 1]
    assert facts["classes"] == [3, 3]
    assert all(Path(file).is_file() for file in facts["files"])
    assert facts["seconds"] > 0
    assert facts["images_per_second"] > 0
    assert facts["peak_memory_bytes"] > 1e7
    assert facts["cache_bytes"] == 2 * 2 * 2 * 30 * 4 * 256 * 4  # images, halves, keys and values, tokens, layers


def test_tokens_and_latent_are_saved(model, tmp_path):
    sample(model, "--class", "3", "7", "--save-tokens", "tokens.safetensors")
    saved = load_file("tokens.safetensors")
    assert [tuple(saved[f"scale_{k}"].shape) for k in range(4)] == [(2, 1), (2, 4), (2, 9), (2, 16)]
    assert saved["scale_0"].dtype == torch.int64
    assert saved["latent"].shape == (2, 8, 4, 4)


def test_a_trace_is_an_animation_with_a_frame_a_scale(model):
    sample(model, "--class", "3", "7", "--trace", "trace.gif")
    assert Image.open("trace.gif").n_frames == 4


def test_a_grid_is_one_file(model, tmp_path):
    sample(model, "--class", "3", "7", "-n", "3", "--grid", "--out", "grid.png")
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]
    assert Image.open("grid.png").size == (3 * 66 - 2, 2 * 66 - 2)


@pytest.mark.parametrize("ending", ["jpg", "webp", "png"])
def test_the_ending_chooses_the_format(model, ending):
    sample(model, "--class", "3", "--out", f"one.{ending}")
    assert Image.open(f"one.{ending}").format == {"jpg": "JPEG"}.get(ending, ending.upper())


def test_smooth_mode_and_half_precision_draw(model):
    assert sample(model, "--class", "3", "--smooth", "--dtype", "bfloat16", "--out", "one.png") == 0


def test_a_dry_run_tells_the_plan_and_draws_nothing(model, tmp_path, capsys):
    assert sample(model, "--class", "3", "-n", "4", "--dry-run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["forward_passes_per_batch"] == 4
    assert facts["cache_megabytes_per_batch"] == pytest.approx(4 * 2 * 2 * 30 * 4 * 256 * 4 / 1e6, abs=0.1)
    assert list(tmp_path.iterdir()) == []
    assert "compiled" not in facts
    assert sample(model, "--class", "3", "--compile", "--dry-run", "--json") == 0
    assert "each scale" in json.loads(capsys.readouterr().out)["compiled"]


def test_a_dry_run_of_a_published_model_needs_no_download(capsys):
    assert main(["sample", "--class", "golden retriever", "--model", "var-d30", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "VAR 30 x 1920" in told
    assert "[207]" in told


BAD = [
    (["--class", "10"], "classes are 0 to 9"),
    (["--class", "-1"], "classes are 0 to 9"),
    (["--class", "dog"], "class 'dog' is not known"),
    (["--class", "²"], "class '²'"),
    (["--class", "3-5,11"], "classes are 0 to 9"),
    (["--class", "3-4", "--out", "one.png"], "several images"),
    (["--class", "3", "-n", "0"], "at least 1"),
    (["--class", "3", "-n", "x"], "at least 1"),
    (["--class", "3", "--seed", "-1"], "at least 0"),
    (["--class", "3", "--batch-size", "0"], "at least 1"),
    (["--class", "3", "--cfg", "-1"], "--cfg"),
    (["--class", "3", "--guidance-scale", "-1"], "--guidance-scale"),
    (["--class", "3", "--top-k", "-1"], "--top-k"),
    (["--class", "3", "--top-p", "2"], "--top-p"),
    (["--class", "3", "--temperature", "0"], "--temperature"),
    (["--class", "3", "--cfg", "nan"], "--cfg"),
    (["--class", "3", "--n", "4"], "unknown option --n; did you mean -n?"),
    (["--class", "3", "--guidance", "4"], "--guidance-scale"),
    (["--class", "3", "--draft-length=--5"], "'--5'"),
    (["--class", "3", "--model", "var-d17"], "did you mean 'var-d16'"),
    (["--class", "3", "--model", "./nowhere"], "./nowhere: "),
    (["--class", "3", "--model", "stilllife-classifier"], "draws no images"),
    (["--class", "3", "--device", "cuda"], "usable are auto, cpu"),
    (["--class", "3", "--device", "abacus"], "usable are auto, cpu"),
    (["--class", "3", "--out", "image.bmp"], "ends in .bmp"),
    (["--class", "3", "--out", "image.TIF"], ".png, .jpg, .jpeg, .webp"),
    (["--class", "3", "4", "--out", "one.png"], "several images"),
    (["--class", "3", "--trace", "trace.mp4"], "must end in .gif"),
    (["--class", "3", "--save-tokens", "t.pt"], "must end in .safetensors"),
    (["--clas", "3"], "unknown option --clas; did you mean --class?"),
    (["--class", "3", "--colour", "red"], "unknown option --colour (`vargen sample --help`"),
    ([], "--class"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=[" ".join(options) or "nothing" for options, _ in BAD])
def test_bad_input_is_one_line_and_status_2_and_nothing_is_written(model, options, words, tmp_path, capsys):
    options = options if "--model" in options else ["--model", model, *options]
    try:
        status = main(["sample", *options])
    except SystemExit as stop:  # argparse's way out
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert words in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("what", ["images", "tokens", "model"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(what, model, tmp_path, capsys):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        if what == "model":
            with pytest.raises(OSError, match=r"cannot be written|No space left"):
                load(model, device="cpu").save_pretrained(small / "copy")
        else:
            places = ["--out", str(small)] if what == "images" else ["--save-tokens", str(small / "t.safetensors")]
            assert sample(model, "--class", "3", "-n", "40", *places) == 2
            *progress, error = capsys.readouterr().err.splitlines()
            assert "No space left" in error
            assert all(line.startswith("drawing") for line in progress)
        for path in small.iterdir():
            assert path.suffix == ".png"
            Image.open(path).load()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_without_write_permission_is_named(model, capsys):
    assert sample(model, "--class", "3", "--out", "/proc/nowhere") == 2
    assert "cannot write to /proc/nowhere" in capsys.readouterr().err


def test_what_was_drawn_before_an_interruption_is_kept(model, monkeypatch, tmp_path):
    whole, calls = streaming.decode, count(1)

    def interrupted_at_the_third(plan, labels_B, noise, **options):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return whole(plan, labels_B, noise, **options)

    monkeypatch.setattr(streaming, "decode", interrupted_at_the_third)
    assert sample(model, "--class", "3", "-n", "4", "--batch-size", "1") == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["class-3_seed-0.png", "class-3_seed-1.png"]


@pytest.mark.parametrize(
    "bad", [["--class", "1000"], ["--class", "1", "--cfg", "nan"], ["--class", "1", "--top-p", "2"]]
)
def test_bad_input_for_a_published_model_is_refused_before_any_download(bad, monkeypatch, capsys):
    def no_download(*args, **kwargs):
        raise AssertionError("downloaded before the input was checked")

    monkeypatch.setattr("var_toolkit.formats.hub.download", no_download)
    assert main(["sample", "--model", "var-d16", *bad]) == 2


def test_an_interrupted_run_says_so_in_one_line(model, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "stream", interrupt)
    assert sample(model, "--class", "3") == 130
    assert capsys.readouterr().err == "vargen: interrupted\n"


@pytest.fixture(scope="module")
def refiner(tmp_path_factory, small_tokenizer) -> str:
    folder = tmp_path_factory.mktemp("models") / "refiner"
    Pipeline(small_tokenizer, small_var_network(depth=2)).save_pretrained(folder)
    return str(folder)


def test_a_drafter_and_a_refiner_draw_together(model, refiner, capsys):
    both = ["--drafter", model, "--refiner", refiner, "--draft-scales", "2"]
    assert main(["sample", "--class", "3", *both, "--dry-run"]) == 0
    assert "scales 2-3: VAR 2 x 128" in capsys.readouterr().out
    assert main(["sample", "--class", "3", *both, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == f"{model} + {refiner} from scale 2 on"
    assert facts["cache_bytes"] == 2 * 2 * 4 * max(4 * 256 * 5, 2 * 128 * 30)


def test_a_subnet_draws_with_less_memory(model, capsys):
    assert sample(model, "--class", "3", "--subnet", "2", "--full-scales", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cache_bytes"] == 2 * 2 * 4 * 2 * 256 * 30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--drafter", "MODEL"], "vargen sample: --drafter, --refiner and --draft-scales go together"),
        (
            ["--drafter", "MODEL", "--refiner", "MODEL", "--draft-scales", "4"],
            "--draft-scales is 4; it must be from 1 to 3",
        ),
        (["--drafter", "MODEL", "--refiner", "stilllife-var", "--draft-scales", "2"], "must be one"),
        (
            ["--model", "MODEL", "--drafter", "a", "--refiner", "b", "--draft-scales", "2"],
            "--drafter and --refiner; give one or the other",
        ),
        (["--model", "MODEL", "--subnet", "5", "--full-scales", "2"], "--subnet is 5; it must be from 2 to 4"),
        (["--model", "MODEL", "--subnet", "2", "--full-scales", "5"], "--full-scales is 5; it must be from 1 to 4"),
        (["--model", "MODEL", "--subnet", "2"], "--full-scales"),
        (["--model", "MODEL", "--refine", "published"], "--refine needs a backbone with masked passes, such as HMAR"),
        (["--model", "MODEL", "--refine-clean"], "--refine-clean changes masked passes"),
        (["--model", "stilllife-hmar", "--refine", "1;2"], "refine has 2 lists for 6 scales"),
        (["--model", "stilllife-hmar", "--refine", "1;2,3;..."], "refine: scale 1 has 2,3; it must be positive"),
        (["--model", "stilllife-hmar", "--smooth"], "remove smooth"),
        (["--model", "stilllife-hmar", "--subnet", "2", "--full-scales", "2"], "HMAR has no subnets"),
    ],
)
def test_what_cannot_draw_together_is_refused_in_one_line(model, capsys, options, words):
    assert main(["sample", "--class", "3", *(model if option == "MODEL" else option for option in options)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
