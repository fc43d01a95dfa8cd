"""`vargen edit` and `vargen vary` as a user meets them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from var_toolkit.cli import main
from var_toolkit.loading import load


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((80, 64)).convert("RGB").save(path)
    return path


def test_a_part_is_drawn_anew_and_the_rest_stays(model, image):
    assert main(["edit", "photo.png", "--mask", "16,8,24,32", "--class", "3", "--keep-pixels", "--model", model]) == 0
    edited, given = Image.open("photo_edit_class-3_seed-0.png"), Image.open(image)
    assert edited.size == given.size
    assert edited.crop((40, 0, 80, 64)).tobytes() == given.crop((40, 0, 80, 64)).tobytes()
    assert edited.tobytes() != given.tobytes()


def test_a_drawn_mask_is_the_box_of_the_same_pixels(model, image):
    mask = Image.new("L", (80, 64))
    mask.paste(255, (16, 8, 40, 40))
    mask.save("mask.png")
    for given, out in (("mask.png", "one.png"), ("16,8,24,32", "other.png")):
        assert main(["edit", "photo.png", "--mask", given, "--class", "3", "--model", model, "--out", out]) == 0
    assert Image.open("one.png").tobytes() == Image.open("other.png").tobytes()


def test_several_seeds_and_classes_are_drawn_and_told(model, image, capsys):
    options = ["--expand", "0,8,0,8", "--class", "3", "4", "-n", "2", "--seed", "7", "--json", "--model", model]
    assert main(["edit", "photo.png", *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["seeds"] == [7, 8, 7, 8]
    assert (facts["image"], facts["square"], facts["keep_pixels"]) == ("photo.png", [0, 0, 80], False)
    assert [Path(file).name for file in facts["files"]] == [
        f"photo_edit_class-{label}_seed-{seed}.png" for label in (3, 4) for seed in (7, 8)
    ]


def test_without_a_class_the_image_is_drawn_on_as_it_is(model, image, capsys):
    assert main(["edit", "photo.png", "--mask", "16,8,24,32", "--model", model]) == 0
    assert "photo_edit_class-none_seed-0.png: no class, seed 0" in capsys.readouterr().out


def test_a_variation_keeps_what_is_coarse(model, image):
    for scale in (0, 2, 4):
        options = ["--from-scale", str(scale), "--class", "3", "--model", model, "--out", f"{scale}.png"]
        assert main(["vary", "photo.png", *options]) == 0
    assert main(["sample", "--class", "3", "--model", model, "--out", "plain.png"]) == 0
    assert Image.open("0.png").tobytes() == Image.open("plain.png").tobytes()
    assert Image.open("4.png").tobytes() == load(model).reconstruct(Image.open(image)).tobytes()
    assert Image.open("2.png").tobytes() not in (Image.open("0.png").tobytes(), Image.open("4.png").tobytes())


def test_a_dry_run_shows_the_plan_and_draws_nothing(model, image, tmp_path, capsys):
    assert main(["edit", "photo.png", "--mask", "16,8,24,32", "--model", model, "--dry-run"]) == 0
    assert "VAR 4 x 256" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["edit", "photo.png"], "one of the arguments --mask --expand --instruction is required"),
        (["edit", "photo.png", "--mask", "1,2,3"], "--mask '1,2,3' is neither a file nor a box x,y,w,h"),
        (["edit", "photo.png", "--mask", "70,2,30,4"], "not within the image, 80 x 64 pixels"),
        (["edit", "photo.png", "--mask", "small.png"], "the mask is 64 x 64 pixels, the image 80 x 64"),
        (["edit", "photo.png", "--mask", "text.txt"], "text.txt is not an image"),
        (["edit", "photo.png", "--expand", "-3"], "expand"),
        (["edit", "photo.png", "--expand", "3"], "expand gives 86 x 70 pixels"),
        (["edit", "none.png", "--mask", "1,2,3,4"], "none.png: No such file"),
        (["edit", "tiny.png", "--mask", "1,2,3,4"], "tiny.png: the image is too small, 15 x 64 pixels"),
        (["edit", "photo.png", "--expand", "8,8,8,24000"], "add 23976 more left or right"),
        (["edit", "photo.png", "--mask", "1,2,3,4", "--out", "folder.png"], "folder.png is a folder"),
        (["edit", "photo.png", "--mask", "1,2,3,4", "--out", "photo.heic"], "photo.heic"),
        (
            ["edit", "photo.png", "--mask", "1,2,3,4", "--out", "photo.png/x"],
            "photo.png/x",
        ),
        (["edit", "photo.png", "--mask", "1,2,3,4", "--seed", str(2**63)], f"--seed {2**63}"),
        (["edit", "photo.png", "--mask", "1,2,3,4", "--class", "12"], "class 12 does not exist"),
        (["vary", "photo.png"], "--from-scale"),
        (["vary", "photo.png", "--from-scale", "5"], "--from-scale is 5; it must be from 0"),
        (["vary", "tiny.png", "--from-scale", "2"], "too small"),
        (["vary", "text.txt", "--from-scale", "2"], "text.txt is not an image"),
    ],
)
def test_bad_input_ends_in_one_line_before_any_work(model, image, tmp_path, capsys, command, words):
    Image.new("L", (64, 64)).save("small.png")
    Image.new("L", (15, 64)).save("tiny.png")
    Path("text.txt").write_text("no image")
    Path("folder.png").mkdir()
    before = sorted(tmp_path.iterdir())
    try:
        status = main([*command, "--model", model])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err
    assert status == 2
    assert words in told
    assert told.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
