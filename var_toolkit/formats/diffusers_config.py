"""Checks the `config.json` of a diffusers network, because the diffusers class itself accepts anything."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from var_toolkit import strict_fields
from var_toolkit.formats.limits import check_ranges

SCALING = "scaling_factor"
WRITTEN = "_diffusers_version"  # in every file that diffusers writes


def check(cls: Any, facts: Mapping[str, Any], path: Path) -> None:
    """ValueError in one line for an unknown key, or a wrong type or size; keys that start with _ are skipped.

    diffusers ignores unknown keys and takes defaults for missing ones. Its default for the scaling of latents is that
    of Stable Diffusion 1 and 2, whose published files lack the key, so it is used with a warning.
    """
    where = f"{path} of an {cls.__name__}"
    settings = {name: value for name, value in facts.items() if not name.startswith("_")}
    parameters = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    try:
        strict_fields.refuse_unknown_keys(settings, parameters, where=where)
    except ValueError as error:
        import diffusers

        raise ValueError(f"{error} (of diffusers {diffusers.__version__}; a newer one may know more)") from None
    hints = get_type_hints(cls.__init__)
    read = {
        name: strict_fields.convert(_any_length(hints[name]), value, where=f"{where}: {name}")
        for name, value in settings.items()
        if name in hints
    }
    check_ranges(read, where=where)
    if SCALING in parameters and SCALING not in settings:
        _tell_default(inspect.signature(cls.__init__).parameters[SCALING].default, facts, path)


def _tell_default(default: object, facts: Mapping[str, Any], path: Path) -> None:
    if WRITTEN not in facts:
        raise ValueError(
            f"{path}: missing key {SCALING!r}; write it down, {default} if the latents are Stable Diffusion's"
        )
    warnings.warn(f"{path} has no {SCALING}; {default} is used, the default of diffusers", stacklevel=2)


def _any_length(hint: Any) -> Any:
    """Correct the hints of diffusers, which have tuple[int] for a tuple of any length."""
    if get_origin(hint) is tuple and len(get_args(hint)) == 1:
        return tuple[get_args(hint)[0], ...]  # type: ignore[misc]
    options = [_any_length(option) for option in get_args(hint)]
    if type(None) in options and len(options) == 2:
        return next(option for option in options if option is not type(None)) | None
    return hint


@contextmanager
def quiet_import() -> Iterator[None]:
    """Silence warnings while classes of diffusers are imported: with torchao it complains of what is not used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log of diffusers; our own errors say what matters in it."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
