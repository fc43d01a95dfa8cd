"""Files and folders appear whole or not at all, and what killed processes left is removed."""

import errno
import os
import subprocess
import sys
from functools import partial as bound
from pathlib import Path
from threading import Event, current_thread, main_thread

import pytest

from var_toolkit import locks
from var_toolkit.files import Writers, allocate, check_writable, made, partial, sweep, write_whole, written_whole

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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(kind: str, target: Path, **options: bool) -> None:
    if kind == "file":
        write_whole(target, lambda to: to.write_text("new"))
        return
    with written_whole(target, **options) as folder:
        (folder / "new").write_text("new")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch, kind):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    write(kind, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    with locks.held(tmp_path, "busy"):
        pass
    assert names(tmp_path) == ["out"]


def full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_the_name_of_the_target_and_leaves_nothing(tmp_path):
    target = tmp_path / "a" / "b" / "out"
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(target, full)
    assert caught.value.filename == str(target)
    with pytest.raises(OSError, match="No space left on device") as caught, written_whole(target) as folder:
        write_whole(folder / "part" / "weights", full)
    assert caught.value.filename == str(target / "part" / "weights")
    assert names(tmp_path) == []


def test_a_sparse_file_gets_its_space_or_goes(tmp_path, monkeypatch):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(100_000)
    assert path.stat().st_blocks == 0
    allocate(path)
    assert path.stat().st_blocks * 512 >= 100_000
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        allocate(path)
    assert caught.value.filename == str(path)
    assert not path.exists()


def test_an_error_of_a_file_that_was_read_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "out", lambda to: (tmp_path / "source").read_text())
    assert caught.value.filename == str(tmp_path / "source")


def test_a_whole_folder_replaces_another_only_if_asked(tmp_path):
    (tmp_path / "out").mkdir()
    write("folder", tmp_path / "out")  # of an empty one nothing is lost
    with pytest.raises(ValueError, match="out exists already"):
        write("folder", tmp_path / "out")
    (tmp_path / "out" / "old").touch()
    write("folder", tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_a_link_to_a_folder_stays_when_the_folder_is_replaced(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "final").symlink_to(tmp_path / "large disk")
    for content in ("first", "second"):
        with written_whole(tmp_path / "final", overwrite=True) as folder:
            (folder / "weights").write_text(content)
        assert (tmp_path / "large disk" / "weights").read_text() == content
    assert (tmp_path / "final").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_was_being_replaced_when_its_process_died_comes_back(tmp_path):
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "old").touch()
    with pytest.raises(RuntimeError), written_whole(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


def test_folders_that_stay_empty_are_removed_again(tmp_path):
    with made(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    with made(tmp_path / "c" / "d"):
        (tmp_path / "c" / "file").touch()
    assert names(tmp_path) == ["c"]
    assert names(tmp_path / "c") == ["file"]


def test_looking_whether_a_folder_can_be_written_makes_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    (tmp_path / "loose").symlink_to(tmp_path / "nowhere")
    for bad in ("file", "file/a/b", "loose/a"):
        with pytest.raises(ValueError, match=bad):
            check_writable(tmp_path / bad)
    with pytest.raises(ValueError, match="/proc/nowhere"):
        check_writable(Path("/proc/nowhere"))


def test_files_get_the_permissions_that_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "out", lambda to: to.chmod(0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_a_folder_is_held_by_one_process_and_free_after_it(tmp_path):
    with locks.held(tmp_path, "busy"):
        with pytest.raises(ValueError, match="busy"), locks.held(tmp_path, "busy"):
            pass
        assert names(tmp_path) == [".lock"]
    assert names(tmp_path) == []
    (tmp_path / ".lock").touch()  # of a killed run
    with locks.held(tmp_path, "busy"):
        pass


def test_a_forked_process_does_not_hold_the_folder_of_its_parent(tmp_path):
    to_child, from_child = os.pipe(), os.pipe()
    with locks.held(tmp_path, "busy"):
        child = os.fork()
        if not child:
            os.write(from_child[1], b"!")
            os.read(to_child[0], 1)
            os._exit(0)
        os.read(from_child[0], 1)
        (tmp_path / ".lock").rename(tmp_path / "kept")  # as if the parent were killed: its lock file stays
    (tmp_path / "kept").rename(tmp_path / ".lock")
    with locks.held(tmp_path, "busy"):
        pass
    os.write(to_child[1], b"!")
    os.waitpid(child, 0)


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127])
def test_a_name_may_be_as_long_as_the_file_system_allows(name, tmp_path):
    write_whole(tmp_path / name, lambda temporary: temporary.write_text("whole"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks of POSIX systems")
def test_a_file_is_locked_through_a_descriptor_that_can_write_as_network_file_systems_want(tmp_path):
    import fcntl

    (tmp_path / "file").write_text("")
    for path, how in ((tmp_path / "file", os.O_RDWR), (tmp_path, os.O_RDONLY)):  # a folder cannot be written to
        descriptor = locks.acquire(path)
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == how
        os.close(descriptor)


def put(content, file):
    file.write_bytes(content)


def test_threads_write_every_file_with_the_rights_of_any_other(tmp_path):
    plain = tmp_path / "plain"
    plain.write_bytes(b"x")
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "one", bound(put, b"x"))
        with Writers(threads=4) as writers:
            for number in range(200):
                writers.write(tmp_path / "some" / f"{number}.png", bound(put, b"%d" % number))
        assert os.umask(mask) == 0o027
    finally:
        os.umask(mask)
    found = {path.name: path for path in (tmp_path / "some").iterdir()}
    assert sorted(found) == sorted(f"{number}.png" for number in range(200))
    assert all(path.read_bytes() == name.removesuffix(".png").encode() for name, path in found.items())
    assert {path.stat().st_mode for path in found.values()} == {(tmp_path / "one").stat().st_mode}


def test_files_are_written_while_the_caller_goes_on(tmp_path):
    asked, seen = Event(), []

    def write(file):
        seen.append(current_thread() is main_thread())
        assert asked.wait(60)
        file.write_bytes(b"x")

    with Writers(threads=1) as writers:
        writers.write(tmp_path / "a", write)
        assert not (tmp_path / "a").exists()
        asked.set()
    assert (tmp_path / "a").exists()
    assert seen == [False]


def test_an_interruption_loses_no_file_that_was_handed_over(tmp_path):
    def interrupted():
        with Writers(threads=1) as writers:
            for number in range(20):
                writers.write(tmp_path / str(number), bound(put, b"x"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(list(tmp_path.iterdir())) == 20


@pytest.mark.parametrize("more", [0, 500], ids=["at-the-end", "at-the-next-file"])
def test_the_first_error_of_a_writer_reaches_the_caller(more, tmp_path):
    def fails(file):
        raise OSError(errno.ENOSPC, "disk full")

    def written():
        with Writers(threads=1) as writers:
            writers.write(tmp_path / "bad", fails)
            for number in range(more):
                writers.write(tmp_path / str(number), bound(put, b"x"))

    with pytest.raises(OSError, match=r"\bbad\b"):
        written()
    assert len(list(tmp_path.iterdir())) <= more
