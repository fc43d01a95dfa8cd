"""The one reader of image files: every kind of pixel, the same for training, evaluation and editing."""

import ast
import os
import re
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import var_toolkit
from var_toolkit import images as module
from var_toolkit.data.folders import ClassFolders
from var_toolkit.editing import as_image
from var_toolkit.evaluation.image_sets import open_images
from var_toolkit.images import DamagedImageError, ImageFileError, given_image, image_size, read_image

RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))  # dark on the left, 48 rows
AVIF = pytest.mark.skipif("AVIF" not in module._kinds(), reason="this Pillow cannot read AVIF")
DEEP = RAMP.astype(np.uint16) * 257


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(side: int) -> bytes:
    """A few bytes that say they are an image of `side` by `side` pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def everywhere(path: Path) -> np.ndarray:
    """The pixels of the only image of a folder as all three readers see them, which must be equal."""
    (measured,) = [open_images(path.parent).images[0]]
    edited = np.asarray(as_image(path, 16))
    assert np.array_equal(measured.permute(1, 2, 0).numpy(), edited)
    height, width = edited.shape[:2]
    side = round(min(height, width) / 1.125)  # the short side keeps its length
    trained, _ = ClassFolders(path.parent.parent, side, train=False)[0]
    top, left = int(0.5 * (height - side + 1)), int(0.5 * (width - side + 1))
    assert np.array_equal(trained.permute(1, 2, 0).numpy(), edited[top : top + side, left : left + side])
    return edited


@pytest.fixture
def folder(tmp_path) -> Path:
    """A class folder in a root of its own."""
    (tmp_path / "root" / "a").mkdir(parents=True)
    return tmp_path / "root" / "a"


@pytest.mark.parametrize("ending", [".png", ".tif", ".jpg", ".webp", pytest.param(".avif", marks=AVIF)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_read_as_the_camera_was_held(folder, ending, orientation):
    path, exif = folder / f"photo{ending}", Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == ".webp" else {"quality": 95}
    Image.fromarray(RAMP).convert("RGB").save(path, exif=exif, **options)
    found = everywhere(path).astype(float)
    across, down = found[:, -1].mean() - found[:, 0].mean(), found[-1].mean() - found[0].mean()
    wanted = {1: (1, 0), 2: (-1, 0), 3: (-1, 0), 4: (1, 0), 5: (0, 1), 6: (0, 1), 7: (0, -1), 8: (0, -1)}
    assert (round(across / 252), round(down / 252)) == wanted[orientation]
    assert found.shape[:2] == ((64, 48) if orientation > 4 else (48, 64)) == image_size(path)
    once = read_image(path)
    assert np.array_equal(given_image(once), once)  # not turned again


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "big.tif", "wide.tif", "grey.pgm"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bits_are_scaled_to_eight(folder, name, orientation):
    path, exif = folder / name, Image.Exif()
    exif[0x0112] = orientation
    if name == "grey.pgm":
        path.write_bytes(b"P5\n64 48\n65535\n" + DEEP.astype(">u2").tobytes())
    else:
        kind = {"big.tif": ">u2", "wide.tif": "i4"}.get(name, "u2")
        Image.fromarray(DEEP.astype(kind)).save(path, exif=exif)
    turned = orientation == 6 and name != "grey.pgm"
    assert np.array_equal(everywhere(path)[..., 0], np.rot90(RAMP, -1) if turned else RAMP)


def test_the_transparent_level_of_a_sixteen_bit_image_is_white(folder):
    Image.fromarray(DEEP).save(folder / "grey.png")
    whole = (folder / "grey.png").read_bytes()
    at = whole.index(b"IDAT") - 4
    (folder / "grey.png").write_bytes(whole[:at] + chunk(b"tRNS", struct.pack(">H", 257 * 8)) + whole[at:])
    expected = np.where(RAMP == 8, 255, RAMP)
    assert np.array_equal(everywhere(folder / "grey.png")[..., 1], expected)


@pytest.mark.parametrize("name", ["alpha.png", "alpha.webp", "grey_alpha.png", "palette.png", "still.gif", "key.png"])
def test_what_is_transparent_is_white(folder, name):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 16:48] = (255, 0, 0, 255)  # around it black, and transparent
    image = Image.fromarray(pixels)
    if name == "grey_alpha.png":
        image = image.convert("LA")
    if name == "palette.png":
        image = image.quantize(8)
    options = {"lossless": True} if name.endswith("webp") else {}
    if name == "key.png":
        image, options = image.convert("RGB"), {"transparency": (0, 0, 0)}
    image.save(folder / name, **options)
    found = everywhere(folder / name)
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[32, 32].tolist() == ([76, 76, 76] if name == "grey_alpha.png" else [255, 0, 0])


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "P"])
def test_other_modes_are_converted(folder, mode):
    image = Image.fromarray(np.where(RAMP > 127, 255, 0).astype(np.uint8)).convert("RGB").convert(mode)
    image.save(folder / "image.tif", compression="raw")
    found = everywhere(folder / "image.tif")
    assert found[:, :30].max() < 3
    assert found[:, 34:].min() > 252


@pytest.mark.parametrize(
    "name", ["moving.png", "moving.gif", "moving.webp", "moving.tiff", pytest.param("moving.avif", marks=AVIF)]
)
def test_of_an_animation_the_first_frame_is_read(folder, name):
    first, other = Image.new("RGB", (64, 48), (255, 0, 0)), Image.new("RGB", (64, 48), (0, 128, 0))
    first.save(folder / name, save_all=True, append_images=[other], quality=95)
    assert np.abs(everywhere(folder / name).astype(int) - (255, 0, 0)).max() < 5


def test_ordinary_images_are_the_pixels_that_pillow_decodes(folder):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg", "c.JPE", "d.jfif", "e.bmp", "f.webp", "g.PNG", "h.ppm"):
        Image.fromarray(noise).save(folder / name, format={".JPE": "jpeg", ".jfif": "jpeg"}.get(Path(name).suffix))
    found = open_images(folder)
    trained = ClassFolders(folder.parent, 16)
    assert (found.count, len(trained)) == (8, 8)
    for index, path in enumerate(sorted(folder.iterdir())):
        with Image.open(path) as image:
            assert np.array_equal(found.images[index].permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
        assert trained.file(index) == path


def problems(folder: Path) -> list[str]:
    """What all three readers say of the only image of a folder, and the readers of its pixels alone."""
    (path,) = list(folder.iterdir())
    found = []
    for read in (
        lambda: as_image(path, 16),
        lambda: ClassFolders(folder.parent, 16)[0],
        lambda: open_images(folder).images[0],
    ):
        with warnings.catch_warnings(action="error"), pytest.raises(ImageFileError) as caught:
            read()
        found.append(str(caught.value))
    return found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>404</html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        huge_png(60_000),
        huge_png(12_000),
        b"P6\n64 48\n99999999\n" + bytes(9000),
        b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40,
    ],
    ids=["empty", "page", "eps", "bomb", "large", "ppm", "tiff"],
)
def test_a_file_that_cannot_be_read_is_one_line_with_its_name_and_no_warning(folder, content):
    (folder / "image.png").write_bytes(content)
    for problem in problems(folder):
        assert problem.startswith(f"{folder / 'image.png'} is ")
        assert "\n" not in problem


def test_a_cut_file_is_named(folder):
    Image.effect_noise((64, 48), 90).convert("RGB").save(folder / "image.jpg")
    (folder / "image.jpg").write_bytes((folder / "image.jpg").read_bytes()[:-900])
    assert all("image.jpg is damaged" in problem for problem in problems(folder))


@pytest.mark.parametrize("pixels", [RAMP.astype(np.float32) / 255, DEEP.astype(np.int32) * 1000])
def test_pixels_without_a_known_white_are_refused_by_name(folder, pixels):
    Image.fromarray(pixels).save(folder / "image.tif")
    assert all("image.tif has" in problem for problem in problems(folder))


def test_broken_exif_turns_nothing_and_warns_of_nothing(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).convert("RGB").save(folder / "image.jpg", exif=exif)
    content = bytearray((folder / "image.jpg").read_bytes())
    at = content.index(b"Exif") + 8
    content[at : at + 22] = b"\xff" * 22
    (folder / "image.jpg").write_bytes(content)
    with warnings.catch_warnings(action="error"):
        assert read_image(folder / "image.jpg").size == (64, 48)


def test_an_older_pillow_that_lacks_a_format_reads_the_others(folder, monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    module._kinds.cache_clear()
    try:
        Image.new("RGB", (9, 8)).save(folder / "image.png")
        assert read_image(folder / "image.png").size == (9, 8)
        (folder / "image.png").write_bytes(b"?")
        with pytest.raises(ImageFileError, match=r"image\.png .*AVIF"):
            read_image(folder / "image.png")
    finally:
        module._kinds.cache_clear()


def test_threads_leave_the_filters_of_warnings_as_they_were(folder):
    Image.new("RGB", (9, 8)).save(folder / "image.png")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(folder / "image.png") for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


class Broken(Dataset[torch.Tensor]):
    """An image that is damaged."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise DamagedImageError("D/b/3.jpg is damaged: cut short; remove it")


def test_an_error_crosses_a_loading_process_as_one_line():
    with pytest.raises(DamagedImageError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert str(caught.value) == "D/b/3.jpg is damaged: cut short; remove it"


def test_no_other_module_opens_image_files():
    package = Path(var_toolkit.__file__).parent
    for path in package.rglob("*.py"):
        if path != package / "images.py":
            assert not re.search(r"\bImage\.open\(|PIL\.Image import .*\bopen\b|ImageFolder\(", path.read_text()), path
    names = [node for node in ast.walk(ast.parse((package / "images.py").read_text())) if isinstance(node, ast.alias)]
    assert sum(node.name == "open" for node in names) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is not a file"):
        module.open_image(tmp_path / "pipe.png")
