"""Images with captions, of which every epoch draws one."""

from __future__ import annotations

from typing import Any

import numpy as np

from var_toolkit.data.caption_files import Captioned
from var_toolkit.data.cropped_images import CroppedImages


class CaptionedImages(CroppedImages):
    """Images of files or shards with one or more captions each; other arguments are those of `CroppedImages`."""

    def __init__(self, found: Captioned, size: int, train: bool = True, **how: Any) -> None:
        super().__init__(found.files, size, train, **how)
        self._captions = found.captions

    def caption(self, index: int, epoch: int) -> str:
        """One of the captions of an image, all equally likely: a pure function of seed, epoch and image."""
        found = self._captions[index]
        # Of another stream than the crops, which have 0 as the third word.
        bits = np.random.Philox(key=[self._seed, epoch], counter=[0, index, 1, 0])
        return found[int(np.random.Generator(bits).integers(len(found)))]
