"""Sets of images: the same files from one process, several, and runs that were killed."""

import json
import socket
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import ranks_of_two, start
from PIL import Image

from var_toolkit.conditions.class_names import class_names
from var_toolkit.evaluation import sample_set
from var_toolkit.evaluation.adm_npz import shuffled
from var_toolkit.evaluation.image_sets import open_images
from var_toolkit.evaluation.sample_set import ImageList, draw_set, labels_of, spelled
from var_toolkit.pipeline import Pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer, small_var) -> str:
    """A directory with the golden networks: 64 px, 10 classes."""
    folder = tmp_path_factory.mktemp("models") / "small"
    Pipeline(small_tokenizer, small_var).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """Thirty images that one process drew in one go."""
    out = tmp_path_factory.mktemp("sets") / "whole"
    draw(model, out)
    return out


DRAWING = {"classes": "0-9", "per_class": 3, "batch_size": 4, "device": "cpu"}


def draw(model, out, **changes):
    return draw_set(model, out, **{**DRAWING, **changes})


def started(model, out, said=None, environment=None, **changes):
    """A process that draws the same."""
    return start(draw_set, model, out, said=said, environment=environment, **{**DRAWING, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_image_has_its_own_class_and_file(whole):
    assert sorted(contents(whole)) == [
        *sorted(f"{i:06d}_class-{i % 10}.png" for i in range(30)), "settings.json",
    ]  # fmt: skip
    assert Image.open(whole / "000013_class-3.png").size == (64, 64)
    assert len({(whole / f"{i:06d}_class-3.png").read_bytes() for i in (3, 13, 23)}) == 3


@pytest.fixture(scope="module")
def sharded(model, tmp_path_factory) -> Path:
    """The same thirty images in three shards."""
    out = tmp_path_factory.mktemp("sets") / "sharded"
    draw(model, out, shards=3)
    return out


@pytest.mark.parametrize("shards", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_two_processes_write_the_files_of_one(shards, model, whole, sharded, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ranks = ranks_of_two(free.getsockname()[1])
    files = [tmp_path / f"said-{rank}" for rank in range(2)]
    both = [
        started(model, tmp_path / "out", shards=shards, environment=rank, said=file)
        for rank, file in zip(ranks, files, strict=True)
    ]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0], [file.read_text() for file in files]
    assert contents(tmp_path / "out") == contents(sharded if shards else whole)


def test_shards_hold_the_files_of_a_flat_set(whole, sharded):
    assert sorted(contents(sharded)) == ["settings.json", *(f"shard-0000{i}.tar" for i in range(3))]
    found = {}
    for shard in sorted(sharded.glob("*.tar")):
        with tarfile.open(shard) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}
    files = {path.name: path.read_bytes() for path in sorted(whole.glob("*.png"))}
    assert list(found) == [name for file in files for name in (file, file.replace(".png", ".cls"))]  # pairs, in order
    assert {name: content for name, content in found.items() if name.endswith(".png")} == files
    assert found["000013_class-3.cls"] == b"3"


@pytest.mark.slow
def test_a_killed_run_loses_the_shard_under_way_alone(model, tmp_path, capsys):
    draw(model, tmp_path / "whole", per_class=8, shards=10)
    out = tmp_path / "killed"
    process = started(model, out, per_class=8, shards=10)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.tar"))) < 2:
        assert process.exitcode is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    there = 8 * len(list(out.glob("*.tar")))
    assert 16 <= there < 80
    (out / ".shard-00009.tar-abcd_123").write_bytes(b"half a shard")
    capsys.readouterr()
    assert draw(model, out, per_class=8, shards=10).added == 80 - there
    assert f"{there} of 80 images exist already; {80 - there} to draw" in capsys.readouterr().err
    assert contents(out) == contents(tmp_path / "whole")


def test_a_run_that_stops_after_two_shards_draws_the_others_alone(model, sharded, tmp_path, monkeypatch, capsys):
    write = sample_set.write_shard

    def stops(*given):
        if len(list(tmp_path.glob("*.tar"))) == 2:
            raise KeyboardInterrupt
        write(*given)

    monkeypatch.setattr(sample_set, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        draw(model, tmp_path, shards=3)
    monkeypatch.setattr(sample_set, "write_shard", write)
    assert len(list(tmp_path.glob("*.tar"))) == 2
    draw(model, tmp_path, shards=3)
    assert "of 30 images exist already" in capsys.readouterr().err
    assert contents(tmp_path) == contents(sharded)


def test_a_shard_that_is_gone_is_drawn_again_and_the_others_are_not_touched(model, sharded, tmp_path):
    draw(model, tmp_path, shards=3)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    (tmp_path / "shard-00001.tar").write_bytes(b"")
    draw(model, tmp_path, shards=3)
    assert contents(tmp_path) == contents(sharded)
    changed = {path.name for path in tmp_path.glob("*.tar") if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"shard-00001.tar"}


def test_shards_are_packed_and_measured_as_the_files_are(model, whole, sharded, tmp_path):
    for out, name, shards in ((whole, "flat.npz", None), (sharded, "sharded.npz", 3)):
        draw(model, out, npz=tmp_path / name, shards=shards)
    assert (tmp_path / "flat.npz").read_bytes() == (tmp_path / "sharded.npz").read_bytes()
    flat, tars = open_images(whole), open_images(sharded)
    assert (tars.count, tars.size, tars.labels) == (flat.count, flat.size, flat.labels)
    assert tars.settings["files"] == "3 shards"
    assert all(torch.equal(tars.images[i], flat.images[i]) for i in range(30))


def test_a_foreign_shard_among_the_shards_is_refused(model, tmp_path):
    draw(model, tmp_path, per_class=1, shards=2)
    for name in ("shard-00002.tar", "shard-000001.tar", "000001_class-1.png"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=rf"holds {name}, "):
            draw(model, tmp_path, per_class=1, shards=2)
        (tmp_path / name).unlink()


def test_a_flat_set_is_not_continued_as_shards_nor_the_other_way_round(model, whole, sharded):
    for out, shards, words in (
        (whole, 3, 'files "one an image", not "3 shards"'),
        (sharded, None, 'files "3 shards", not "one an image"'),
        (sharded, 4, 'files "3 shards", not "4 shards"'),
    ):
        before = contents(out)
        with pytest.raises(ValueError, match=f"was started with {words}.*--out"):
            draw(model, out, shards=shards)
        assert contents(out) == before


def test_a_killed_run_goes_on_and_ends_with_the_same_files(model, tmp_path, capsys):
    draw(model, tmp_path / "whole", per_class=8)
    out = tmp_path / "killed"
    process = started(model, out, per_class=8)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.png"))) < 6:
        assert process.exitcode is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    there = len(list(out.glob("*.png")))
    assert 6 <= there < 80
    (out / ".000073_class-3.png-abcd_123").write_bytes(b"half an image")
    capsys.readouterr()
    assert draw(model, out, per_class=8).added == 80 - there
    assert f"{there} of 80 images exist already; {80 - there} to draw" in capsys.readouterr().err
    assert contents(out) == contents(tmp_path / "whole")


def test_what_is_lost_of_a_batch_is_drawn_again_and_the_rest_is_not_touched(model, whole, tmp_path):
    draw(model, tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    (tmp_path / "000005_class-5.png").unlink()
    (tmp_path / "000018_class-8.png").write_bytes(b"")
    assert draw(model, tmp_path).added == 2
    assert contents(tmp_path) == contents(whole)
    changed = {path.name for path in tmp_path.glob("*.png") if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"000005_class-5.png", "000018_class-8.png"}


def test_a_set_that_is_complete_can_be_packed_later(model, whole, tmp_path, capsys):
    (tmp_path / ".set.npz-0abc_def.partial").write_bytes(b"packed in part by a run that was killed")
    done = draw(model, whole, npz=tmp_path / "set.npz")
    assert (done.added, done.images) == (0, 30)
    assert "all 30 images exist already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]
    files = sorted(whole.glob("*.png"))
    packed = np.load(tmp_path / "set.npz")["arr_0"]
    np.testing.assert_array_equal(packed, np.stack([np.asarray(Image.open(files[i])) for i in shuffled(30)]))


def test_the_number_of_threads_is_left_as_it_was(model, whole):
    before = torch.get_num_threads()
    draw(model, whole)
    assert torch.get_num_threads() == before


def test_the_settings_are_noted_whole(whole, model):
    noted = json.loads((whole / "settings.json").read_text())
    assert noted["model"] == model
    assert noted["classes"] == "0-9"
    assert noted["plan"]["steps"][-1]["guidance"] == 1.5
    assert "VAR 4 x 256, guidance 0 to 1.5, top-k 900" in noted["plan_in_words"]
    assert noted["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"per_class": 4}, "per_class 3, not 4"),
        ({"classes": "0-8,9"}, None),
        ({"classes": "0-8"}, 'classes "0-9", not "0-8"'),
        ({"seed": 1}, "seed 0, not 1"),
        ({"batch_size": 8}, "batch_size 4, not 8"),
        ({"settings": {"cfg": 2}}, "cfg 1.5, not 2"),
        ({"settings": {"cfg": 1.5}}, None),
        ({"dtype": torch.bfloat16}, 'dtype "float32", not "bfloat16"'),
        ({"model": "stilllife-var-small"}, "was started with model"),
    ],
)
def test_a_folder_that_was_begun_otherwise_is_refused(model, whole, change, words):
    before = contents(whole)
    if words is None:
        draw(**{"model": model, "out": whole, **change})
    else:
        with pytest.raises(ValueError, match=f"{words}.*choose another folder with --out"):
            draw(**{"model": model, "out": whole, **change})
    assert contents(whole) == before


def test_other_weights_under_the_same_name_are_refused(small_tokenizer, small_var, tmp_path):
    folder = tmp_path / "model"
    Pipeline(small_tokenizer, small_var).save_pretrained(folder)
    draw(folder, tmp_path / "out", per_class=1)
    weights = folder / "backbone" / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-2] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ValueError, match="was started with weights"):
        draw(folder, tmp_path / "out", per_class=1)


def test_a_folder_with_other_files_is_refused(model, whole, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt and no settings\.json; choose an empty or new folder"):
        draw(model, tmp_path)
    foreign = whole / "000001_class-7.png"
    foreign.write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds 000001_class-7\.png, "):
        draw(model, whole)
    foreign.unlink()


def test_two_runs_at_once_are_refused(model, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="another run is drawing into"):
        draw(model, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": "0-10"}, "classes are 0 to 9"),
        ({"classes": "7-3"}, "'7-3'"),
        ({"classes": "0,,1"}, "is not known"),
        ({"classes": "dog"}, "'dog' is not known"),
        ({"classes": []}, "at least one"),
        ({"per_class": 0}, "per_class is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"shards": 0}, "shards is 0; it must be from 1 to 8, the number of batches"),
        ({"shards": 9}, "shards is 9"),
        ({"seed": 2**63 - 10}, "seed is"),
        ({"settings": {"top_p": 2.0}}, "top_p"),
        ({"npz": "set.zip"}, r"set\.zip must end in \.npz"),
        ({"npz": "/proc/nowhere/set.npz"}, "cannot write to /proc/nowhere"),
        ({"out": "/proc/nowhere"}, "cannot write to /proc/nowhere"),
        ({"device": "abacus"}, "usable are auto, cpu"),
    ],
)
def test_bad_input_is_refused_before_weights_are_read(model, tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr("var_toolkit.evaluation.sample_set.load", None)
    with pytest.raises(ValueError, match=words):
        draw(**{"model": model, "out": tmp_path / "out", **changes})


@pytest.mark.parametrize("text", ["0-9", "0,5,7-9", "3", "1-2,4-5"])
def test_classes_are_spelled_as_they_are_read(text):
    assert spelled(labels_of(text, class_names(None, 10))) == text


def test_classes_are_a_set_and_may_be_named():
    names = class_names("still-lifes", 1000)
    assert labels_of("9, 3-5,4", names) == (3, 4, 5, 9)
    assert labels_of("red cylinder on marble,5", names) == (5, 207)
    assert labels_of([7, "3"], names) == (3, 7)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("shards", [None, 1, 4, 9])
def test_processes_share_every_image_once(size, shards):
    wanted = ImageList(classes=(2, 5, 7), per_class=11, batch_size=4, shards=shards)
    own = [[wanted.part(part) for part in range(rank, wanted.parts, size)] for rank in range(size)]
    drawn = [i for parts in own for batches in parts for numbers in batches for i in numbers]
    assert sorted(drawn) == list(range(33))
    assert all(batches for parts in own for batches in parts)
    names = [wanted.shard(i) for i in range(shards)] if shards else [wanted.name(i) for i in range(33)]
    assert [i for name in names for i in wanted.numbers_in(name)] == list(range(33))
