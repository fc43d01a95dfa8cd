"""Shards: what is written is read, and what is damaged or foreign is named."""

import io
import tarfile

import pytest
from PIL import Image

from var_toolkit.data.shards import readable
from var_toolkit.evaluation.image_files import contents, label_in, members, write_shard
from var_toolkit.evaluation.image_sets import open_images


@pytest.fixture
def shard(tmp_path):
    """A shard of five images of noise."""
    images = [(f"{i:06d}_class-{i % 3}.png", i % 3, Image.effect_noise((8, 6), 90)) for i in range(5)]
    write_shard(tmp_path / "shard-00000.tar", images)
    return tmp_path / "shard-00000.tar"


def test_each_image_of_a_shard_is_read_without_the_others(shard):
    found = members(shard)
    assert [label_in(member) for member in found] == [0, 1, 2, 0, 1]
    with tarfile.open(shard) as archive:
        for member in found:
            assert readable(member).read() == archive.extractfile(member.name).read()
    assert str(found[2]) == f"{shard}/000002_class-2.png"


def test_no_member_tells_when_and_by_whom_it_was_written(shard):
    with tarfile.open(shard) as archive:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in archive} == {(0, 0, 0, "", 0o644)}


def test_an_error_on_the_way_leaves_no_shard(tmp_path):
    def images():
        yield "000000_class-0.png", 0, Image.new("RGB", (4, 4))
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_shard(tmp_path / "shard-00000.tar", images())
    assert not list(tmp_path.iterdir())


def test_a_shard_that_is_damaged_is_named(shard):
    whole = shard.read_bytes()
    for content in (b"", b"no tar file" * 100, whole[:700], whole[:600] + b"x" * 300 + whole[900:]):
        shard.write_bytes(content)
        try:
            found = members(shard)
        except ValueError as error:
            assert str(error).startswith(f"{shard} is damaged, or is not a tar file: ")  # noqa: PT017
        else:
            with pytest.raises(OSError, match=r".+"):
                [Image.open(readable(member)).load() for member in found]


def test_other_files_in_a_shard_are_told_apart_from_its_images(shard, tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "image.jpg")
    with tarfile.open(shard, "a") as archive:
        for name in ("000009.json", "a/._000009.jpg", "README.txt"):
            header = tarfile.TarInfo(name)
            header.size = 4
            archive.addfile(header, io.BytesIO(b"text"))
        archive.add(tmp_path / "image.jpg", "./a/000009.JPG")
    images, others = contents(shard)
    assert [image.name for image in images[5:]] == ["./a/000009.JPG"]
    assert [other.name for other in others] == ["000009.json", "a/._000009.jpg", "README.txt"]
    found = open_images(tmp_path)
    assert found.count == 7
    assert found.skipped == (
        f"3 files that are not images were skipped: {shard}/000009.json, {shard}/a/._000009.jpg, {shard}/README.txt"
    )
