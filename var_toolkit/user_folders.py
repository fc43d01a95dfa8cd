"""Folders of the user, who in a container or a batch job may have no name, no home, or a home that is read-only."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from pathlib import Path

from var_toolkit.files import check_writable


def settle_user() -> None:
    """Give a user without a name or a home both, for the libraries that ask for them: torch, Matplotlib, the hub.

    A home that exists is left alone, even if it is read-only: it may hold downloaded models.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ModuleNotFoundError):  # the user's number is not in the system's list of users
        os.environ["USER"] = _number()
    if not os.path.isdir(os.path.expanduser("~")):
        os.environ["HOME"] = str(_temporary())


def default_cache() -> Path:
    """Where images and tokens are stored between runs: VARGEN_CACHE, else the user's cache folder.

    If that folder cannot be written to, a folder for temporary files takes its place, and a line says so.
    """
    chosen = os.environ.get("VARGEN_CACHE")
    if chosen:
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    try:
        if not base.is_absolute():
            raise ValueError(f"{base} is not an absolute path")
        check_writable(base / "var_toolkit")
    except ValueError as error:
        fallback = _temporary()
        print(f"{error}; {fallback} is the cache instead (VARGEN_CACHE names another)", file=sys.stderr)
        return fallback
    return base / "var_toolkit"


def _temporary() -> Path:
    folder = Path(tempfile.gettempdir()) / f"var_toolkit-{_number()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="var_toolkit-"))  # it belongs to another user
    return folder


def _number() -> str:
    return f"uid-{os.getuid()}" if hasattr(os, "getuid") else "user"
