"""Scenes and edited scenes as data sets: images drawn once into a file."""

from __future__ import annotations

import numpy as np

from var_toolkit.still_life.image_cache import Kind
from var_toolkit.still_life.scene_drawing import SIZE, draw_scene
from var_toolkit.still_life.scene_edits import edit_of
from var_toolkit.still_life.scenes import SPLITS, scene_of

VERSION = 1  # part of the files' name: increase it whenever images change


def numbered(index: int, split: str) -> np.ndarray:
    """The image number `index` of a split, uint8 (3, 128, 128)."""
    return draw_scene(scene_of(index, split), index, SIZE)


SCENES = Kind(f"scenes-v{VERSION}", SIZE, SPLITS, numbered)


def edited(index: int, split: str) -> np.ndarray:
    """The scene number `index` of a split after its edit, uint8 (3, 128, 128); `numbered` is the one before."""
    return draw_scene(edit_of(index, split).after, index, SIZE)


SCENE_EDITS = Kind(f"scene-edits-v{VERSION}", SIZE, SPLITS, edited)
