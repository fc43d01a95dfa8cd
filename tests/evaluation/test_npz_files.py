"""Files of evaluators with everything that can be wrong with them: one line that names the file, and nothing is run."""

import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from var_toolkit.evaluation.image_sets import open_images, open_reference


@pytest.fixture
def noise() -> np.ndarray:
    """Images as the evaluator holds them, uint8 (6, 8, 10, 3)."""
    return np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)


def npy(array: np.ndarray) -> bytes:
    """The bytes of an `.npy` file."""
    file = BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def header(text: str, version: bytes = b"\1\0", rest: bytes = b"") -> bytes:
    """An `.npy` file with a header of one's own."""
    line = text.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(line)) + line + rest


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def complaint(path: Path) -> str:
    """The one line in which a reference is refused."""
    with pytest.raises(ValueError, match=r"set\.npz") as found:
        open_reference(path, 6)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    ("arrays", "name"),
    [
        ({"images": np.zeros(3)}, "images"),
        ({}, "nothing"),
        ({"mu": np.zeros(3)}, "sigma"),
        ({"sigma": np.eye(3)}, "mu"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "mu": np.zeros(3)}, "sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(3)}, "sigma_s"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, "arr_0 is float32"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"arr_0"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, "arr_0"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))}, "arr_0"),
        ({"arr_0": np.uint8(3)}, "arr_0"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, "sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros(9)}, "sigma"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "mu"),
        ({"mu": np.float64(1), "sigma": np.eye(1)}, "mu"),
        ({"mu": np.zeros((1, 3)), "sigma": np.eye(3)}, "mu"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "mu"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.inf)}, "sigma"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 9], [0, 1]])}, "sigma"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 9], [9, 1]])}, "sigma"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "sigma"),
        ({"mu": np.zeros(2, complex), "sigma": np.eye(2)}, "mu"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "mu"),
        ({"mu": np.zeros(2, bool), "sigma": np.eye(2)}, "mu"),
        ({"mu": np.zeros(2, "M8[s]"), "sigma": np.eye(2)}, "mu"),
        ({"mu": np.zeros(2, [("a", "f4")]), "sigma": np.eye(2)}, "mu"),
        ({"mu": np.array([1, None], dtype=object), "sigma": np.eye(2)}, "mu"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "mu_s": np.zeros(0), "sigma_s": np.zeros((0, 0))}, "mu_s"),
    ],
)
def test_arrays_of_the_wrong_kind_are_named(arrays, name, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays)
    assert name in complaint(tmp_path / "set.npz")


GOOD = {"sigma.npy": npy(np.eye(3))}


@pytest.mark.parametrize(
    "mu",
    [
        b"",
        b"junk",
        b"\x93NUMPY",
        b"\x93NUMPY\x07\x00" + b"\0" * 90,
        header("no dictionary"),
        header("{'descr': '<f8', 'fortran_order': False}"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (10000,)}", rest=b"\0" * 80),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}", rest=b"\0" * 23),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}" + " " * 60_000, rest=b"\0" * 24),
        header("{'descr': 'f9', 'fortran_order': False, 'shape': (3,)}", rest=b"\0" * 24),
        header("(" * 5000),
        header("-" * 9000),
        header("[" * 9000, b"\2\0"),
        npy(np.zeros(3))[:-1],
    ],
    ids=range(16),
)
def test_a_member_that_is_no_array_is_named_and_nothing_is_allocated_for_it(mu, tmp_path):
    assert "mu" in complaint(archive(tmp_path / "set.npz", {"mu.npy": mu, **GOOD}))
    path = archive(tmp_path / "set.npz", {"arr_0.npy": mu})
    assert "arr_0" in complaint(path)


def test_images_that_the_archive_does_not_hold_are_not_mapped(tmp_path, noise):
    whole = npy(noise)
    lie = whole.replace(b"(6,", b"(9,", 1)
    assert lie != whole
    assert "arr_0" in complaint(archive(tmp_path / "set.npz", {"arr_0.npy": lie}))
    assert "arr_0" in complaint(archive(tmp_path / "set.npz", {"arr_0.npy": lie}, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_flipped_bit_is_noticed_however_the_archive_is_packed(compression, tmp_path):
    members = {"mu.npy": npy(np.arange(300.0)), "sigma.npy": npy(np.eye(300))}
    path = archive(tmp_path / "set.npz", members, compression)
    assert open_reference(path, 6).statistics is not None
    damaged = bytearray(path.read_bytes())
    damaged[220] ^= 1
    path.write_bytes(damaged)
    complaint(path)


def test_an_encrypted_or_unknown_packing_is_refused(tmp_path):
    path = archive(tmp_path / "set.npz", {"mu.npy": npy(np.zeros(3)), **GOOD})
    whole = path.read_bytes()
    for at, value in ((6, 1), (8, 99)):  # flags and method of the local headers; of the directory, two bytes later
        changed = bytearray(whole)
        for signature, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
            found = changed.find(signature)
            while found >= 0:
                changed[found + at + shift] = value
                found = changed.find(signature, found + 4)
        path.write_bytes(changed)
        complaint(path)


class Trap:
    """Does something when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a file ran code",)


def test_no_file_runs_code(tmp_path):
    trap = np.array([Trap()], dtype=object)
    np.savez(tmp_path / "set.npz", mu=trap, sigma=np.eye(1))
    assert "mu is object" in complaint(tmp_path / "set.npz")
    np.savez(tmp_path / "set.npz", arr_0=trap)
    assert "arr_0 is object" in complaint(tmp_path / "set.npz")
    archive(tmp_path / "set.npz", {"mu.npy": pickle.dumps(trap), **GOOD})
    assert "mu" in complaint(tmp_path / "set.npz")


def test_damaged_archives_are_refused(tmp_path, noise):
    np.savez(tmp_path / "set.npz", arr_0=noise)
    whole = (tmp_path / "set.npz").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1  # one bit of one pixel
    for content in (b"", b"PK", whole[:500], whole[500:], pickle.dumps("text"), npy(noise), bytes(damaged)):
        (tmp_path / "set.npz").write_bytes(content)
        complaint(tmp_path / "set.npz")


def test_an_archive_without_arrays_is_refused(tmp_path):
    assert "nothing" in complaint(archive(tmp_path / "set.npz", {"arr_0": b"no array"}))
    assert "nothing" in complaint(archive(tmp_path / "set.npz", {}))


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i8"])
def test_statistics_of_any_number_type_are_read_in_float64(dtype, tmp_path):
    np.savez(tmp_path / "set.npz", mu=np.arange(3).astype(dtype), sigma=np.asfortranarray(np.diag([1, 2, 0])))
    found = open_reference(tmp_path / "set.npz", 6).statistics
    assert found is not None
    assert found.mu.tolist() == [0, 1, 2]
    assert found.sigma.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]


def test_only_images_can_be_measured(tmp_path):
    np.savez(tmp_path / "set.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(ValueError, match=r"set\.npz"):
        open_images(tmp_path / "set.npz")
