"""Files and folders appear whole or not at all, and what killed processes left is removed."""

import os
import subprocess
import sys

import pytest

from var_toolkit.files import check_writable, partial, sweep, write_whole, written_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from var_toolkit.files import partial
with partial(Path(sys.argv[1]) / "model", folder=True) as folder, partial(Path(sys.argv[1]) / "a.bin") as file:
    (folder / "weights").write_bytes(b"x" * 1000)
    file.write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks of POSIX systems")
def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    left = hidden(tmp_path)
    assert len(left) == 2
    (tmp_path / ".mine-12345678").write_text("a file of someone else")
    (tmp_path / ".mine.partial").write_text("likewise")
    with partial(tmp_path / "model", folder=True) as alive:
        sweep(tmp_path)
        assert hidden(tmp_path) == sorted([alive.name, ".mine-12345678", ".mine.partial"])
    assert hidden(tmp_path) == [".mine-12345678", ".mine.partial"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks of POSIX systems")
@pytest.mark.parametrize("begin", ["folder", "check"])
def test_the_next_writer_sweeps(begin, tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    if begin == "check":
        check_writable(tmp_path)
    else:
        with written_whole(tmp_path / "model") as folder:
            (folder / "config.json").write_text("{}")
        assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    assert hidden(tmp_path) == []


def test_an_error_leaves_neither_the_folder_nor_those_made_for_it(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "a" / "b" / "model"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "file", lambda temporary: (_ for _ in ()).throw(RuntimeError))
    assert list(tmp_path.iterdir()) == []


def test_a_check_makes_no_folder_if_it_is_not_asked_to(tmp_path):
    check_writable(tmp_path / "a" / "b", make=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/b"):
        check_writable(tmp_path / "file" / "b", make=False)
    with pytest.raises(ValueError, match="file"):
        check_writable(tmp_path / "file", make=False)


def test_what_is_written_has_the_mode_of_any_other_file(tmp_path):
    with written_whole(tmp_path / "model") as folder:
        write_whole(folder / "config.json", lambda path: path.write_text("{}"))
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "folder").stat().st_mode
    assert (tmp_path / "model" / "config.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_locks_are_not_kept_when_the_file_is_there(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(5):
        write_whole(tmp_path / str(number), lambda path: path.write_text("x"))
    assert before in (0, len(os.listdir("/proc/self/fd")))
