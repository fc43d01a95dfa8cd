"""Folders, files of the ADM evaluator and fresh renderings as sets of images; and everything wrong with them."""

import json

import numpy as np
import pytest
import torch
from evaluation.conftest import write_images
from PIL import Image

from var_toolkit.evaluation.image_sets import FRESH_SEED, FreshStillLifes, open_images, open_reference
from var_toolkit.still_life.data_set import render


def pixels(images) -> torch.Tensor:
    """All images of a set, uint8 (N, 3, h, w)."""
    return torch.stack([images[i] for i in range(len(images))])


@pytest.fixture
def noise() -> np.ndarray:
    """Images as the evaluator holds them, uint8 (6, 8, 10, 3)."""
    return np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)


def test_a_folder_and_its_class_folders_are_one_set(tmp_path, noise):
    images = torch.from_numpy(noise).permute(0, 3, 1, 2)
    write_images(tmp_path / "a", images[:2])
    write_images(tmp_path / "b", images[2:])
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "notes.txt").write_text("hidden files are nobody's images")
    (tmp_path / "packed.npz").write_bytes(b"the same images again")
    (tmp_path / "settings.json").write_text(json.dumps({"model": "var-d16"}))
    found = open_images(tmp_path)
    assert (found.count, found.size, found.settings) == (6, (8, 10), {"model": "var-d16"})
    assert found.skipped == f"1 file that is not an image was skipped: {tmp_path / '.cache' / 'notes.txt'}"
    assert torch.equal(pixels(found.images), images)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_evaluator_file_gives_back_its_images_and_statistics(write, tmp_path, noise):
    write(tmp_path / "set.npz", arr_0=noise, mu=np.ones(3), sigma=np.eye(3), mu_s=np.ones(2), sigma_s=np.eye(2))
    found = open_reference(tmp_path / "set.npz", 6)
    assert (found.count, found.size, found.shuffled) == (6, (8, 10), True)
    assert torch.equal(pixels(found.images), torch.from_numpy(noise).permute(0, 3, 1, 2))
    assert found.statistics is not None
    assert found.spatial is not None
    assert torch.equal(found.statistics.mu, torch.ones(3, dtype=torch.float64))
    assert torch.equal(found.spatial.sigma, torch.eye(2, dtype=torch.float64))


def test_a_large_file_is_mapped_and_not_read(tmp_path, noise):
    np.savez(tmp_path / "set.npz", arr_0=noise)
    assert isinstance(open_images(tmp_path / "set.npz").images._array, np.memmap)


def test_a_file_with_statistics_alone_is_a_reference_and_no_set_of_images(tmp_path):
    np.savez(tmp_path / "set.npz", mu=np.ones(3, np.float32), sigma=np.eye(3))
    found = open_reference(tmp_path / "set.npz", 6)
    assert (found.count, found.size, found.spatial) == (0, None, None)
    assert found.statistics is not None
    assert found.statistics.mu.dtype == torch.float64
    with pytest.raises(ValueError, match="statistics but no images"):
        open_images(tmp_path / "set.npz")


def test_fresh_still_lifes_hold_every_class_equally_often_and_are_drawn_anew():
    found = open_reference("stilllife", 1200)
    assert found.count == 2000
    assert torch.equal(found.images[1003], render([3], [FRESH_SEED + 1003])[0])
    assert torch.equal(FreshStillLifes(5, first=1000)[3], found.images[1003])


def test_a_file_packed_among_the_images_has_their_settings(tmp_path, noise):
    np.savez(tmp_path / "set.npz", arr_0=noise)
    assert open_images(tmp_path / "set.npz").settings is None
    (tmp_path / "settings.json").write_text(json.dumps({"model": "x"}))
    assert open_images(tmp_path / "set.npz").settings == {"model": "x"}


def test_some_of_the_images_are_the_same_ones_every_time(tmp_path, noise):
    np.savez(tmp_path / "set.npz", arr_0=noise)
    few = [pixels(open_images(tmp_path / "set.npz", 4).images) for _ in range(2)]
    assert torch.equal(*few)
    assert len(few[0]) == 4
    with pytest.raises(ValueError, match=r"set\.npz has 6 images, not 7"):
        open_images(tmp_path / "set.npz", 7)


def test_damaged_files_and_floating_point_pixels_are_named(tmp_path, noise):
    folder = write_images(tmp_path / "set", torch.from_numpy(noise).permute(0, 3, 1, 2))
    broken = folder / "000003_class-3.png"
    whole = broken.read_bytes()
    for content in (whole[: len(whole) // 2], b"no image", whole[:-60] + b"\0" * 60, b"", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"000003_class-3.png is .*; replace it, or remove it from the set$"):
            open_images(folder)
    Image.new("F", (10, 8)).save(broken, format="tiff")
    with pytest.raises(ValueError, match=r"000003_class-3.png has floating-point pixels"):
        open_images(folder)


def test_a_jpeg_that_ends_too_soon_is_named_when_it_is_read(tmp_path):
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-900])
    with pytest.raises(ValueError, match=r"a.jpg is damaged.*; replace it, or remove it from the set$"):
        open_images(tmp_path).images[0]


def test_mixed_sizes_name_two_files(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"several sizes: \S*a.png is 8x8, \S*b.png is 8x9; scale and crop"):
        open_images(tmp_path)


def test_what_holds_no_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        open_images(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match=r"no images; 1 file .*notes.txt"):
        open_images(tmp_path)
    with pytest.raises(ValueError, match=r"notes.txt is neither a folder nor an .npz file"):
        open_images(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"nowhere"):
        open_images(tmp_path / "nowhere")


def test_a_reference_of_several_sizes_is_cut_to_squares_from_the_middle(tmp_path):
    for name, size in (("a", (40, 16)), ("b", (33, 70))):
        (tmp_path / name).mkdir()
        image = Image.new("RGB", size, "red")
        image.paste("blue", (size[0] // 2 - 8, size[1] // 2 - 8, size[0] // 2 + 8, size[1] // 2 + 8))
        image.save(tmp_path / name / "image.png")
    with pytest.raises(ValueError, match="several sizes"):
        open_reference(tmp_path, 2)
    found = open_reference(tmp_path, 2, side=16)
    assert found.size == (16, 16)
    assert found.source.endswith("cut to 16x16")
    assert torch.equal(found.images[0], torch.tensor([0, 0, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16))
    assert found.images[1].shape == (3, 16, 16)
    assert found.images[1][:, 8, 8].tolist() == [0, 0, 255]
    assert found.images[1][:, 0, 0].tolist() == [255, 0, 0]
