"""The file that the ADM evaluator reads."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from var_toolkit.evaluation.adm_npz import shuffled, write_images


@pytest.fixture
def images() -> np.ndarray:
    """Forty images of random pixels, uint8 (40, 6, 8, 3)."""
    return np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3), dtype=np.uint8)


@pytest.fixture
def files(images, tmp_path) -> list:
    """The same as files."""
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for pixels, path in zip(images, paths, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_numpy_reads_every_image_back_in_shuffled_order(images, files, tmp_path):
    write_images(tmp_path / "set.npz", files)
    with np.load(tmp_path / "set.npz") as archive:
        assert list(archive) == ["arr_0"]
        assert archive["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(archive["arr_0"], images[shuffled(40)])


def test_it_is_the_file_that_numpy_would_write(images, files, tmp_path):
    write_images(tmp_path / "ours.npz", files)
    np.savez(tmp_path / "numpys.npz", images[shuffled(40)])
    ours, numpys = (zipfile.ZipFile(tmp_path / f"{name}.npz") for name in ("ours", "numpys"))
    assert ours.namelist() == numpys.namelist() == ["arr_0.npy"]
    assert ours.read("arr_0.npy") == numpys.read("arr_0.npy")


def test_the_order_is_fixed_for_ever_and_mixes_well():
    assert shuffled(8) == [6, 1, 2, 4, 7, 5, 0, 3]
    order = shuffled(5000)
    assert sorted(order) == list(range(5000))
    # Each tenth of the file holds about a tenth of each tenth of the set: 50 of 500, give or take five deviations.
    tenths = np.array([np.bincount(np.array(order[at : at + 500]) // 500, minlength=10) for at in range(0, 5000, 500)])
    assert abs(tenths - 50).max() < 35


def test_images_of_two_sizes_leave_nothing(files, tmp_path):
    Image.new("RGB", (9, 9)).save(files[7])
    with pytest.raises(ValueError, match=r"7\.png is 9 x 9 pixels, the first image 8 x 6"):
        write_images(tmp_path / "set.npz", files)
    assert not [path.name for path in tmp_path.iterdir() if "npz" in path.name]


def test_another_ending_and_an_empty_set_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        write_images(tmp_path / "set.zip", files)
    with pytest.raises(ValueError, match="at least one image"):
        write_images(tmp_path / "set.npz", [])
