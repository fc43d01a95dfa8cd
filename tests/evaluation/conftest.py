"""Small sets of still lifes, as folders of images."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from var_toolkit.pipeline import Pipeline
from var_toolkit.still_life.data_set import render


def write_images(folder: Path, images: Tensor) -> Path:
    """Write uint8 images (B, 3, h, w) as PNG files named as `vargen evaluate sample` names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:06d}_class-{i}.png")
    return folder


@pytest.fixture(scope="session")
def renderings() -> Tensor:
    """Two hundred still lifes, one of every fifth class, (200, 3, 64, 64)."""
    return render(range(0, 1000, 5), range(200))


@pytest.fixture(scope="session")
def blurred(renderings) -> Tensor:
    """Others, a little blurred and noisy, so that no figure is trivial, (180, 3, 64, 64)."""
    others = render(range(2, 902, 5), range(500, 680)).float()
    noise = 12 * torch.randn(others.shape, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.avg_pool2d(others, 3, 1, 1) + noise).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory, renderings) -> Path:
    """The renderings as a folder."""
    return write_images(tmp_path_factory.mktemp("sets") / "reference", renderings)


@pytest.fixture(scope="session")
def images_folder(tmp_path_factory, blurred) -> Path:
    """The blurred ones as a folder."""
    return write_images(tmp_path_factory.mktemp("sets") / "images", blurred)


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer, small_var) -> str:
    """The folder of a small VAR."""
    folder = tmp_path_factory.mktemp("models") / "small"
    Pipeline(small_tokenizer, small_var).save_pretrained(folder)
    return str(folder)
