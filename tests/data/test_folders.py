from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from var_toolkit.data.folders import ClassFolders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for name, height, width in (("cat", 40, 70), ("dog", 64, 48)):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def crops(data: ClassFolders) -> torch.Tensor:
    return torch.stack([image for image, _ in data])


def test_images_are_square_bytes_with_the_number_of_their_folder(root: Path) -> None:
    data = ClassFolders(root, size=32)
    assert data.classes == ("cat", "dog")
    assert [label for _, label in data] == [0, 0, 1, 1]
    assert crops(data).shape == (4, 3, 32, 32)
    assert crops(data).dtype == torch.uint8


def test_crops_depend_on_seed_epoch_and_index_alone(root: Path) -> None:
    first, second = ClassFolders(root, size=32, seed=5), ClassFolders(root, size=32, seed=5)
    second.set_epoch(3)
    assert not torch.equal(crops(first), crops(second))
    first.set_epoch(3)
    assert torch.equal(crops(first).flip(0), torch.stack([second[index][0] for index in (3, 2, 1, 0)]))
    other_seed = ClassFolders(root, size=32, seed=6)
    other_seed.set_epoch(3)
    assert not torch.equal(crops(first), crops(other_seed))


def test_evaluation_takes_the_centre_of_the_resized_image(root: Path) -> None:
    image = Image.open(root / "cat" / "0.png").resize((63, 36), Image.Resampling.LANCZOS)
    expected = np.array(image)[2:34, 16:48]
    assert np.array_equal(ClassFolders(root, size=32, train=False)[0][0].permute(1, 2, 0).numpy(), expected)


def test_flipping_mirrors_some_images_and_leaves_the_rest(root: Path) -> None:
    plain, flipped = ClassFolders(root, size=32), ClassFolders(root, size=32, flip=True)
    mirrored = set()
    for epoch in range(4):
        plain.set_epoch(epoch)
        flipped.set_epoch(epoch)
        for before, after in zip(crops(plain), crops(flipped), strict=True):
            mirrored.add(not torch.equal(before, after))
            assert torch.equal(before, after) or torch.equal(before.flip(2), after)
    assert mirrored == {True, False}


def test_a_missing_or_empty_root_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^root '.*nowhere' is not a folder") as missing:
        ClassFolders(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="must hold one folder of images for each class") as empty:
        ClassFolders(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="cat") as hollow:
        ClassFolders(tmp_path)
    assert all("\n" not in str(error.value) for error in (missing, empty, hollow))


def test_the_still_lifes_do_without_torchvision() -> None:
    code = "import sys, var_toolkit.data.still_lifes; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
