"""Control images of photos: edges by OpenCV, depth by a network of transformers."""

import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageDraw
from small_depth import write_estimator

import var_toolkit
from var_toolkit.cli import main
from var_toolkit.conditions import control_images

SIDES = (24, 40)  # of a light rectangle on a dark ground, from 8 on


@pytest.fixture
def photo():
    image = Image.new("RGB", (64, 48), "black")
    ImageDraw.Draw(image).rectangle((8, 8, 8 + SIDES[1], 8 + SIDES[0]), fill="white")
    return image


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    return write_estimator(tmp_path_factory.mktemp("estimator"))


def test_edges_are_where_the_image_changes_and_nowhere_else(photo):
    pytest.importorskip("cv2")
    found = np.asarray(var_toolkit.control_image(photo, "canny"))
    assert found.shape == (48, 64, 3)
    assert set(np.unique(found)) == {0, 255}
    rows, columns = np.nonzero(found[..., 0])
    near = (abs(rows - 8) <= 1) | (abs(rows - 8 - SIDES[0]) <= 1)
    near |= (abs(columns - 8) <= 1) | (abs(columns - 8 - SIDES[1]) <= 1)
    assert near.all()
    assert len(rows) >= 2 * sum(SIDES) - 8


def test_edges_are_those_of_opencv_in_the_order_of_its_channels(photo):
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    found = np.asarray(var_toolkit.control_image(noise, "canny"))
    assert np.array_equal(found[..., 0], cv2.Canny(noise, *control_images.THRESHOLDS))


@pytest.mark.parametrize(("size", "shape"), [(24, (32, 24)), (48, (64, 48)), (100, (64, 48))], ids=str)
def test_larger_photos_are_reduced_to_the_shorter_side_and_smaller_ones_stay(size, shape, photo):
    pytest.importorskip("cv2")
    assert var_toolkit.control_image(photo, "canny", size=size).size == shape


def test_depth_has_the_size_of_the_photo_and_varies(photo, estimator):
    found = var_toolkit.control_image(photo, "depth", estimator=estimator)
    assert found.size == photo.size
    assert found.mode == "RGB"
    assert len(np.unique(np.asarray(found))) > 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"kind": "hed"}, "kind is 'hed'"),
        ({"kind": "canny", "size": 0}, "size is 0"),
        ({"kind": "canny", "estimator": "a/b"}, "estimator"),
        ({"kind": "depth"}, "estimator"),
        ({"kind": "depth", "estimator": "."}, "depth estimator"),
        ({"kind": "canny", "image": 3}, "the image is a int"),
    ],
    ids=["kind", "size", "edges", "depth", "no-network", "image"],
)
def test_what_does_not_fit_is_refused_by_name_in_one_line(given, named, photo):
    if given["kind"] == "canny":
        pytest.importorskip("cv2")
    with pytest.raises(ValueError, match=named) as caught:
        var_toolkit.control_image(**{"image": photo} | given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "library", "extra"), [("canny", "cv2", "[control]"), ("depth", "transformers", "[text]")]
)
def test_a_missing_library_is_one_line_with_its_extra(kind, library, extra, photo, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    monkeypatch.setattr(
        control_images, "find_spec", lambda name: None if name == library else importlib.util.find_spec(name)
    )
    more = ["--estimator", "a/b"] if kind == "depth" else []
    assert main(["control", "photo.png", "--kind", kind, *more]) == 2
    error = capsys.readouterr().err
    assert extra in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("orientation", [1, 6], ids=["upright", "on-its-side"])
def test_the_command_writes_the_control_image_of_an_upright_photo(orientation, photo, monkeypatch, capsys, tmp_path):
    pytest.importorskip("cv2")
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save("photo.png", exif=exif)
    assert main(["control", "photo.png", "--kind", "canny"]) == 0
    assert "photo_canny.png" in capsys.readouterr().out
    assert Image.open("photo_canny.png").size == (photo.size if orientation == 1 else photo.size[::-1])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["photo.png", "--kind", "canny", "--out", "a.jpg"], "a.jpg"),
        (["none.png", "--kind", "canny"], "none.png"),
        (["text.png", "--kind", "canny"], "text.png"),
        (["photo.png", "--kind", "lines"], "--kind is 'lines'"),
    ],
    ids=["ending", "missing", "no-image", "kind"],
)
def test_the_command_refuses_in_one_line_and_writes_nothing(words, named, photo, monkeypatch, capsys, tmp_path):
    pytest.importorskip("cv2")
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    (tmp_path / "text.png").write_text("no image")
    assert main(["control", *words]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "text.png"]
