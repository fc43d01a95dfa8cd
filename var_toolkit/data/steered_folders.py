"""Images in class folders with a control image for each, such as edges, in a second folder under the same names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var_toolkit.data.folder_listing import list_images
from var_toolkit.data.folders import ClassFolders
from var_toolkit.images import ImageFileError, image_size, read_image


class SteeredFolders(ClassFolders):
    """As ClassFolders, with images of six channels: the last three are the control image, cropped like the image.

    A control image has the path of its image below the `control_root`; its ending may differ. ValueError of one line
    if one is missing; ImageFileError, when an item is read, if it cannot be read or has another size than its image.
    """

    def __init__(
        self, root: str | os.PathLike[str], control_root: str | os.PathLike[str], size: int, **how: Any
    ) -> None:
        super().__init__(root, size, **how)
        folder = Path(control_root)
        if not folder.is_dir():
            raise ValueError(
                f"control_root {str(folder)!r} is not a folder: it must hold a control image for each image"
            )
        found = {_name(path, folder): path for path in list_images(folder).images}
        names = [_name(str(path), self._root) for path in self._files]
        if lacking := [name for name in names if name not in found]:
            raise ValueError(
                f"{folder} has no control image {lacking[0]}, and lacks {len(lacking)} of {len(names)}; a control "
                f"image has the name of its image below {self._root}"
            )
        self._controls = [found[name] for name in names]

    def read(self, index: int) -> tuple[Tensor, int]:
        """An image and its control image, uint8 (6, size, size), and its number, as `CroppedImages.read`."""
        image, shown = super().read(index)
        return torch.cat((image, self._cut(self._control(shown), index))), shown

    def _control(self, index: int) -> Any:
        path, image = Path(self._controls[index]), Path(str(self._files[index]))
        try:
            control, (height, width) = read_image(path), image_size(image)
        except OSError as error:
            raise ImageFileError(f"{path} cannot be read: {error.strerror}") from None
        if control.size != (width, height):
            raise ImageFileError(
                f"{path} is {control.width}x{control.height}, but its image {image} is {width}x{height}; "
                "a control image must have the size of its image"
            )
        return control


def _name(path: str, root: Path) -> str:
    """The path below a folder, without the ending."""
    return os.path.splitext(os.path.relpath(path, root))[0]
