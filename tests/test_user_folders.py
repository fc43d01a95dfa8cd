"""Users without a name, a home, or a home that can be written to."""

import getpass
import os
import pwd
from pathlib import Path

import pytest

from var_toolkit.user_folders import default_cache, settle_user


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """This process belongs to a user that the system has no entry for."""

    def getpwuid(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "VARGEN_CACHE"):
        monkeypatch.setenv(name, "x")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_a_name_and_a_home_gets_both(nobody, capsys):
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    settle_user()
    assert getpass.getuser() == f"uid-{os.getuid()}"
    assert Path.home() == nobody / f"var_toolkit-uid-{os.getuid()}"
    assert default_cache().is_relative_to(nobody)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("broken", ["HOME", "XDG_CACHE_HOME"])
def test_a_cache_that_cannot_be_written_to_is_replaced_with_one_line(nobody, monkeypatch, capsys, broken):
    monkeypatch.setenv(broken, "/proc/nowhere")
    cache = default_cache()
    assert cache == nobody / f"var_toolkit-uid-{os.getuid()}"
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "/proc/nowhere" in error
    assert str(cache) in error


def test_the_cache_is_where_the_user_says(nobody, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(nobody / "xdg"))
    assert default_cache() == nobody / "xdg" / "var_toolkit"
    monkeypatch.setenv("VARGEN_CACHE", str(nobody / "chosen"))
    assert default_cache() == nobody / "chosen"


def test_a_user_with_a_name_and_a_home_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("LOGNAME", "ada")
    settle_user()
    assert (getpass.getuser(), Path.home()) == ("ada", tmp_path)
