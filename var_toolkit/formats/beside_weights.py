"""What trainers note beside weights, and PyTorch's weights-only reader refuses though it runs nothing.

Settings of known libraries are read as plain dictionaries, whether or not those libraries are installed.
"""

from __future__ import annotations

import argparse
import datetime
import decimal
import pathlib
import types
import typing
import uuid
from typing import Any

import numpy as np


class Settings(dict[Any, Any]):
    """Settings of a library that need not be installed: a dictionary that takes whatever state it is given."""

    def __init__(self, *values: object, **named: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.state = state


# Each is built from numbers, text and others of these; none opens, imports or calls anything.
TYPES = (
    argparse.Namespace, types.SimpleNamespace, datetime.datetime, datetime.date, datetime.time, datetime.timedelta,
    datetime.timezone, decimal.Decimal, uuid.UUID, pathlib.PurePosixPath, pathlib.PureWindowsPath, np.ndarray, np.dtype,
    frozenset, slice, range, dict, list, tuple, int, float, str, bool,
)  # fmt: skip
ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2, and since
PATHS = ("pathlib", "pathlib._local")  # the latter in Python 3.13
FOREIGN = (
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode", "omegaconf.nodes.StringNode", "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.FloatNode", "omegaconf.nodes.BooleanNode", "easydict.EasyDict", "yacs.config.CfgNode",
    "ml_collections.config_dict.config_dict.ConfigDict", "addict.addict.Dict", "mmengine.config.config.ConfigDict",
    "config_util.Config",
)  # fmt: skip


def harmless() -> list[Any]:
    """What `torch.serialization.safe_globals` may let pass."""
    multiarray = getattr(np, "_core", None) or np.core
    functions = [
        (getattr(multiarray.multiarray, name), f"{module}.{name}")
        for name in ("scalar", "_reconstruct")
        for module in ARRAYS
    ]
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
    paths = [
        (pure, f"{module}.{name}")
        for module in PATHS
        for name, pure in (
            ("PosixPath", pathlib.PurePosixPath),
            ("WindowsPath", pathlib.PureWindowsPath),
            ("PurePosixPath", pathlib.PurePosixPath),
            ("PureWindowsPath", pathlib.PureWindowsPath),
        )
    ]
    others = [(str, "torch.torch_version.TorchVersion"), (typing.Any, "typing.Any")]
    return [*TYPES, *kinds, *functions, *paths, *others, *((Settings, name) for name in FOREIGN)]
