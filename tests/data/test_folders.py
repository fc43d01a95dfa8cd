from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from var_toolkit.data.folders import ClassFolders
from var_toolkit.evaluation.image_sets import open_images
from var_toolkit.images import DamagedImageError, ImageFileError


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
    code = "import sys, var_toolkit.still_life.data_set; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def make(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (number, 0, 0)).save(root / name, format="png")
    return root


def test_folders_with_whole_numbers_as_names_are_sorted_as_numbers(tmp_path: Path) -> None:
    data = ClassFolders(make(tmp_path, *(f"{number}/a.png" for number in range(12))), 8, train=False)
    assert data.classes == tuple(map(str, range(12)))
    assert [int(image[0, 0, 0]) for image, label in data] == data.labels.tolist() == list(range(12))
    assert len(data.notes) == 1
    assert "label 11 is folder 11" in data.notes[0]


def test_numbers_that_are_not_the_labels_are_told(tmp_path: Path) -> None:
    data = ClassFolders(make(tmp_path, *(f"{number}/a.png" for number in (1, 2, 10, 7))), 8)
    assert data.classes == ("1", "2", "7", "10")
    assert "label 0 is folder 1, label 3 is folder 10" in data.notes[0]


@pytest.mark.parametrize("names", [("0", "1", "2"), ("2", "10", "x"), ("n02", "n10"), ("\u00b2", "1")])
def test_other_names_are_sorted_as_text_without_a_word(tmp_path: Path, names: tuple[str, ...]) -> None:
    data = ClassFolders(make(tmp_path, *(f"{name}/a.png" for name in names)), 8)
    assert data.classes == tuple(sorted(names))
    assert not data.notes


def test_the_order_of_images_is_that_of_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    folders = ("", "x/", "x/y/", "x-y/", "x y/", "\u00e9/")
    files = ("2.png", "10.PNG", "a.jpg", "x.png", "z.webp")
    make(tmp_path, *(f"{c}/{folder}{file}" for c in ("b", "a", "Z", "a b") for folder in folders for file in files))
    theirs, ours = ImageFolder(str(tmp_path)), ClassFolders(tmp_path, 8)
    assert [str(ours.file(i)) for i in range(len(ours))] == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets


LEFTOVERS = (
    ".DS_Store", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", "a/._0.png", "__MACOSX/a/._0.png", "__MACOSX/0.png",
    "a/@eaDir/0.png", ".ipynb_checkpoints/0-checkpoint.png", "a/.ipynb_checkpoints/0.png", "README.txt", "a/LICENSE",
    "a/checksums.md5", "a/0.json",
)  # fmt: skip


def test_leftovers_beside_images_are_skipped_and_counted(tmp_path: Path) -> None:
    make(tmp_path, "a/0.png", "b/1.png")
    for name in LEFTOVERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    data, measured = ClassFolders(tmp_path, 8), open_images(tmp_path)
    assert (data.classes, len(data), measured.count) == (("a", "b"), 2, 2)
    assert data.notes == [measured.skipped]
    assert data.notes[0].startswith(f"{len(LEFTOVERS)} files that are not images were skipped: {tmp_path}/.DS_Store, ")
    assert data.notes[0].endswith(f" and {len(LEFTOVERS) - 3} more")


def test_links_are_followed_by_training_and_scoring_alike(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "dogs/0.png", "dogs/deep/1.png", "one.png")
    root = make(tmp_path / "root", "cat/0.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (root / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "one.png")
    (root / "cat" / "up").symlink_to(root)  # a circle
    (root / "round").symlink_to(root)
    (tmp_path / "elsewhere" / "dogs" / "deep" / "again").symlink_to(tmp_path / "elsewhere" / "dogs")
    data = ClassFolders(root, 8)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert open_images(root).count == 4


def test_a_link_to_nothing_is_named_when_it_is_read(tmp_path: Path) -> None:
    make(tmp_path, "a/0.png")
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "gone.png")
    data = ClassFolders(tmp_path, 8)
    assert len(data) == 2
    with pytest.raises(ImageFileError, match=r"a/1\.png cannot be read"):
        data[1]
    with pytest.raises(FileNotFoundError, match=r"a/1\.png"):
        open_images(tmp_path)


def test_a_flat_folder_is_for_those_who_need_no_labels(tmp_path: Path) -> None:
    make(tmp_path, "0.png", "1.png")
    with pytest.raises(ValueError, match=r"holds 2 images and no folder"):
        ClassFolders(tmp_path, 8)
    assert (ClassFolders(tmp_path, 8, flat=True).classes, len(ClassFolders(tmp_path, 8, flat=True))) == ((), 2)
    make(tmp_path, "a/2.png")
    assert ClassFolders(tmp_path, 8, flat=True).labels.tolist() == [0, 0, 0]
    by_class = ClassFolders(tmp_path, 8)
    assert len(by_class) == 1
    assert by_class.notes == [f"2 images beside the class folders were skipped: {tmp_path}/0.png, {tmp_path}/1.png"]


def test_class_folders_are_what_they_are_where_flat_ones_are_accepted(root: Path) -> None:
    plain, flat = ClassFolders(root, 32, seed=3), ClassFolders(root, 32, seed=3, flat=True)
    assert plain.classes == flat.classes
    assert torch.equal(crops(plain), crops(flat))


def test_a_damaged_image_gives_way_to_the_next_of_its_class(root: Path) -> None:
    (root / "cat" / "1.png").write_bytes(b"no image")
    with pytest.raises(DamagedImageError, match=r"cat/1\.png .*--skip-damaged"):
        ClassFolders(root, 32)[1]
    data = ClassFolders(root, 32, train=False, skip_damaged=True)
    images = [data.read(index) for index in range(4)]
    assert [shown for _, shown in images] == [0, 0, 2, 3]
    assert [label for _, label in data] == [0, 0, 1, 1]
    assert torch.equal(images[0][0], images[1][0])
    (root / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(ImageFileError, match=r"cat/0\.png .* its class has no"):
        data.read(0)


def test_the_fingerprint_depends_on_names_and_sizes_and_not_on_how_the_root_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ClassFolders(root, 32).fingerprint
    monkeypatch.chdir(root)
    assert ClassFolders(".", 32).fingerprint == before
    make(root, "cat/2.png")
    assert ClassFolders(root, 32).fingerprint != before
