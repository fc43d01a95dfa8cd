"""Captioned images on disk: every way to write them gives the same, and what does not fit is named in one line."""

import json
import sys
import tarfile
from pathlib import Path

import pytest
from small_captions import CAPTIONS, WRITERS, png, write

from var_toolkit.data.caption_files import Fields, list_captioned
from var_toolkit.data.captioned_images import CaptionedImages
from var_toolkit.data.shards import add_member, readable
from var_toolkit.images import DamagedImageError, read_image

USUAL = Fields()


def contents(found):
    """The bytes of each image."""
    files = [readable(Path(file) if isinstance(file, str) else file) for file in found.files]
    return [file.read_bytes() if isinstance(file, Path) else file.read() for file in files]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_way_to_write_them_gives_the_same_images_and_captions(kind, tmp_path):
    found = list_captioned(write(tmp_path / "root", kind), USUAL, tmp_path / "cache")
    assert found.captions == list(CAPTIONS)
    assert contents(found) == [png(number) for number in range(len(CAPTIONS))]
    assert found.notes == []


@pytest.mark.parametrize(("kind", "ending"), [("lines", "jsonl"), ("shard", "tar"), ("parquet-bytes", "parquet")])
def test_a_table_can_be_the_root(kind, ending, tmp_path):
    (table,) = write(tmp_path / "root", kind).glob(f"*.{ending}")
    assert list_captioned(table, USUAL, tmp_path / "cache").captions == list(CAPTIONS)


@pytest.mark.parametrize("kind", WRITERS)
def test_an_image_without_a_caption_is_named_or_left_out(kind, tmp_path):
    root = write(tmp_path / "root", kind, (*CAPTIONS[:2], (" ", "\t"), CAPTIONS[3]))
    where = {"lines": r"metadata\.jsonl line 3", "parquet": r"0\.parquet row 2"}.get(kind.split("-")[0], r"2\.png")
    with pytest.raises(ValueError, match=rf"{where} has (no|an empty) caption.*--skip-damaged$"):
        list_captioned(root, USUAL, tmp_path / "cache")
    found = list_captioned(root, USUAL, tmp_path / "cache", skip=True)
    assert found.captions == [*CAPTIONS[:2], CAPTIONS[3]]
    assert contents(found) == [png(0), png(1), png(3)]
    assert found.notes[0].startswith("1 image without a caption was skipped: ")


def test_lines_of_one_image_are_its_captions_and_the_fields_can_be_named(tmp_path):
    root = write(tmp_path / "root", "lines")
    rows = [
        {"src": "0.png", "long": "a long one", "text": "not this"},
        {"src": "./0.png", "long": "another", "short": "one"},
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = list_captioned(root, Fields("src", ("long", "short")), tmp_path)
    assert found.captions == [("a long one", "another", "one")]
    assert found.notes[0].startswith("5 images that no table describes were skipped: ")


def lines(*rows):
    return lambda root: (root / "a.jsonl").write_text("\n".join(rows))


def row(**fields):
    return lines(json.dumps({"file": "0.png", "caption": "a cube"} | fields))


def shard(**members):
    def make(root):
        with tarfile.open(root / "a.tar", "w") as archive:
            add_member(archive, "a.png", png(0))
            for ending, content in members.items():
                add_member(archive, f"a.{ending}", content)

    return make


def parquet(**columns):
    def make(root):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), root / "a.parquet")

    return make


BAD = {
    "nothing": (lambda root: (root / "0.png").unlink(), r"root '.*' holds no image with a caption; put .*\.txt"),
    "no text": (lambda root: None, r"0\.png has no caption: .*0\.txt is missing; .*--skip-damaged"),
    "encoding": (lambda root: (root / "0.txt").write_bytes(b"caf\xe9"), r"0\.txt is not UTF-8"),
    "two kinds": (lambda root: (lines()(root), shard()(root)), r"holds \.jsonl and \.tar files; give one"),
    "no JSON": (lines("{}\n"[:1]), r"a\.jsonl line 1 is not JSON: .*; write an object such as "),
    "no object": (lines("", "[1]"), r"a\.jsonl line 2 is \[1\]; expected an object"),
    "no such file": (row(file="b.png"), r"a\.jsonl line 1 names .*b\.png, which does not exist; "),
    "no image": (lines('{"url": "x", "caption": "y"}'), r"line 1 has no image but url, caption; .*image_field"),
    "an odd image": (row(file=3), r"line 1: file is 3; expected the name of an image file"),
    "an odd caption": (row(caption={"en": "x"}), r"line 1: caption is \{'en': 'x'\}; expected text or a list of texts"),
    "no caption": (lines('{"file": "0.png", "prose": "x"}'), r"a\.jsonl line 1 has no caption"),
    "no member": (shard(), r"a\.tar/a\.png has no caption; "),
    "a bad member": (shard(json=b"{"), r"a\.tar/a\.json is not JSON"),
    "no tar": (lambda root: (root / "a.tar").write_bytes(b"x" * 600), r"a\.tar is damaged, or is not a tar file"),
    "no parquet": (lambda root: (root / "a.parquet").write_bytes(b"x" * 60), r"a\.parquet is damaged, or is not a "),
    "no column": (parquet(image=[b"x"], url=["y"]), r"a\.parquet has no column of captions but image, url; .*fields"),
    "odd column": (parquet(image=[1], text=["y"]), r"a\.parquet: column image holds int64; expected image "),
    "no bytes": (parquet(image=[b"", b"x"], text=["y", "z"]), r"a\.parquet row 0 has no image; "),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_line_that_names_it(name, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "0.png").write_bytes(png(0))
    spoil, match = BAD[name]
    spoil(root)
    with pytest.raises(ValueError, match=match) as caught:
        list_captioned(root, USUAL, tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "match"), [("nowhere", "'.*nowhere' does not exist"), ("a.csv", "nor a file of")])
def test_a_root_that_is_nothing_of_the_kind_is_refused(name, match, tmp_path):
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(ValueError, match=match):
        list_captioned(tmp_path / name, USUAL, tmp_path)


def test_without_pyarrow_a_line_says_what_to_install(tmp_path, monkeypatch):
    root = write(tmp_path / "root", "parquet-bytes")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"0\.parquet needs the package pyarrow: pip install 'var-toolkit\[parquet\]'"):
        list_captioned(root, USUAL, tmp_path)


def test_a_parquet_file_is_unpacked_once_and_again_when_it_changes(tmp_path):
    root, cache = write(tmp_path / "root", "parquet-bytes"), tmp_path / "cache"
    for _ in range(2):
        list_captioned(root, USUAL, cache)
    assert len(list(cache.glob("*.tar"))) == 1
    write(root, "parquet-bytes", CAPTIONS[:4])
    assert len(list_captioned(root, USUAL, cache).files) == 4
    assert len(list(cache.glob("*.tar"))) == 2


@pytest.fixture
def images(tmp_path):
    """Makes the images of a shard of which one is damaged, with two captions each."""
    content = [b"no image" if number == 2 else png(number) for number in range(4)]
    root = write(tmp_path / "root", "shard", [(f"{number} a", f"{number} b") for number in range(4)], content)
    found = list_captioned(root, USUAL, tmp_path)
    return lambda **how: CaptionedImages(found, 32, **how)


def test_a_damaged_image_of_a_shard_is_named_or_replaced_by_the_next(images):
    with pytest.raises(DamagedImageError, match=r"00000\.tar/2\.png is not an image .*--skip-damaged"):
        images().read(2)
    assert [images(skip_damaged=True).read(index)[1] for index in range(4)] == [0, 1, 3, 3]


def test_captions_are_drawn_by_seed_and_epoch_and_all_of_them(images):
    def drawn(seed):
        data = images(seed=seed)
        return [data.caption(index, epoch) for epoch in range(100) for index in range(4)]

    first = drawn(1)
    assert first == drawn(1)
    assert first != drawn(2)
    assert all(caption.startswith(str(number % 4)) for number, caption in enumerate(first))
    assert 150 < sum(caption.endswith("a") for caption in first) < 250


def test_evaluation_and_training_read_the_same_members(tmp_path):
    from var_toolkit.evaluation.image_sets import open_images

    root = write(tmp_path / "root", "shard")
    found = list_captioned(root, USUAL, tmp_path)
    measured = open_images(root).images
    for index, file in enumerate(found.files):
        assert (measured[index].permute(1, 2, 0).numpy() == read_image(readable(file))).all()
