from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from var_toolkit.still_life import image_cache
from var_toolkit.still_life.data_set import (
    COLOURS,
    GROUNDS,
    SOLIDS,
    VERSION,
    StillLifes,
    cached,
    class_name,
    label_of,
    parts,
    render,
)

STORED = Path(__file__).with_name("still_lifes.npy")
STORED_LABELS = [111 * solid for solid in range(9)] + [905]
STORED_SEEDS = [2**40 + 7 * number for number in range(10)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "CHUNK", 4)
    # Spawned processes would not see the small chunks.
    monkeypatch.setattr(image_cache.os, "cpu_count", lambda: 1)


def cache_file(directory: Path) -> Path:
    return directory / f"still-lifes-v{VERSION}-train.npy"


def cache_in_another_process(directory: Path) -> None:
    cached(directory, 6, "train", progress=False)


def test_an_image_alone_equals_the_same_in_a_mixed_batch() -> None:
    labels = [(37 * number) % 1000 for number in range(60)]
    seeds = [number % 5 for number in range(60)]
    batch = render(labels, seeds)
    backwards = render(labels[::-1], seeds[::-1])
    assert torch.equal(batch, backwards.flip(0))
    for label, seed, image in zip(labels, seeds, batch, strict=True):
        assert torch.equal(render([label], [seed])[0], image)


def test_images_are_the_stored_ones() -> None:
    images = render(STORED_LABELS, STORED_SEEDS).numpy().astype(int)
    assert np.abs(images - np.load(STORED)).max() <= 1


def test_global_random_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = render([5], [5])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, render([5], [5]))


def test_another_seed_or_label_is_another_image() -> None:
    images = render([0, 0, 1, 10, 100], [0, 1, 0, 0, 0])
    assert len({image.numpy().tobytes() for image in images}) == 5


def test_every_solid_stands_out_from_its_ground_and_stays_in_the_image() -> None:
    for solid in range(10):
        for seed in range(4):
            red, green, blue = render([label_of(solid, "red", "sand")], [seed])[0].int()
            is_red = (red > 2 * green) & (red > 2 * blue)
            assert 0.04 < is_red.float().mean() < 0.45
            assert not is_red[0].any()
            assert not is_red[:, 0].any()
            assert not is_red[:, -1].any()


def test_images_come_in_other_sizes() -> None:
    large = render([123], [4], size=128)
    assert large.shape == (1, 3, 128, 128)
    halved = torch.nn.functional.avg_pool2d(large.float(), 2)
    assert (halved - render([123], [4]).float()).abs().mean() < 6


def test_no_images_are_an_empty_batch() -> None:
    assert render([], []).shape == (0, 3, 64, 64)


def test_labels_and_parts_are_inverse() -> None:
    assert len(SOLIDS) == len(COLOURS) == len(GROUNDS) == 10
    assert len(set(SOLIDS)) == len(set(COLOURS)) == len(set(GROUNDS)) == 10
    assert [label_of(*parts(label)) for label in range(1000)] == list(range(1000))
    assert len({class_name(label) for label in range(1000)}) == 1000


def test_a_class_name_names_colour_solid_and_ground() -> None:
    assert class_name(label_of("cylinder", "red", "checks")) == "red cylinder on checks"
    assert label_of("cylinder", "red", "checks") == 201


def test_wrong_inputs_are_errors_that_name_the_allowed_values() -> None:
    with pytest.raises(ValueError, match="label 1000 must be from 0 to 999"):
        render([1000], [0])
    with pytest.raises(ValueError, match="2 labels but 1 seeds"):
        render([1, 2], [0])
    with pytest.raises(ValueError, match="seed -1 must be from 0"):
        render([1], [-1])
    with pytest.raises(ValueError, match="size 4 must be at least 8"):
        render([1], [0], size=4)
    with pytest.raises(ValueError, match="solid 'ball' must be one of sphere"):
        label_of("ball", 0, 0)
    with pytest.raises(ValueError, match="ground 10 must be one of sand"):
        label_of(0, 0, 10)
    with pytest.raises(ValueError, match="split 'test' must be one of train, validation"):
        StillLifes(5, "test")
    with pytest.raises(ValueError, match="count -1 must not be negative"):
        StillLifes(-1)


def test_the_data_set_counts_through_the_labels() -> None:
    data = StillLifes(1002)
    image, label = data[1001]
    assert len(data) == 1002
    assert label == 1
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.uint8
    assert not torch.equal(image, data[1][0])
    with pytest.raises(IndexError):
        data[1002]


def test_the_splits_share_no_image() -> None:
    train, validation = StillLifes(40, "train"), StillLifes(40, "validation")
    drawn = {image.numpy().tobytes() for data in (train, validation) for image, _ in data}
    assert len(drawn) == 80


@pytest.mark.usefixtures("small_chunks")
def test_the_cache_holds_the_images_of_the_data_set(tmp_path: Path) -> None:
    images, labels = cached(tmp_path, 6, "train", progress=False)
    data = StillLifes(6)
    assert images.shape == (6, 3, 64, 64)
    assert labels.tolist() == [label for _, label in data]
    for stored, (image, _) in zip(images, data, strict=True):
        assert np.array_equal(stored, image.numpy())


@pytest.mark.usefixtures("small_chunks")
def test_a_longer_cache_begins_with_the_shorter_one_and_does_not_draw_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = np.array(cached(tmp_path, 8, "train", progress=False)[0])
    drawn, draw = [], image_cache.draw
    monkeypatch.setattr(image_cache, "draw", lambda *task: drawn.append(task) or draw(*task))
    long, _ = cached(tmp_path, 11, "train", progress=False)
    assert len(drawn) == 4
    assert np.array_equal(long[:8], short)
    assert len(cached(tmp_path, 3, "train", progress=False)[0]) == 3
    assert len(drawn) == 4
    assert np.array_equal(long, [image.numpy() for image, _ in StillLifes(11)])


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_drawing_goes_on_with_the_chunks_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, draw = [], image_cache.draw

    def draw_until_killed(parts: tuple[int, int, int], seed: int, size: int) -> np.ndarray:
        if len(drawn) == 6:
            raise KeyboardInterrupt
        drawn.append(seed)
        return draw(parts, seed, size)

    monkeypatch.setattr(image_cache, "draw", draw_until_killed)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, 9, "train", progress=False)
    assert not cache_file(tmp_path).exists()
    (cache_file(tmp_path).with_suffix(".chunks") / "000000004.unfinished").write_bytes(b"half a chunk")
    drawn.clear()
    monkeypatch.setattr(image_cache, "draw", lambda *task: drawn.append(task[1]) or draw(*task))
    images, _ = cached(tmp_path, 9, "train", progress=False)
    assert drawn == list(range(4, 12))
    assert np.array_equal(images, [image.numpy() for image, _ in StillLifes(9)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        cache_file(tmp_path).with_suffix(".lock").name,
        cache_file(tmp_path).name,
    ]


def test_processes_that_want_the_same_cache_do_not_disturb_one_another(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=cache_in_another_process, args=(tmp_path,)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0, 0]
    images, _ = cached(tmp_path, 6, "train", progress=False)
    assert np.array_equal(images, [image.numpy() for image, _ in StillLifes(6)])


def test_several_drawing_processes_draw_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache.os, "cpu_count", lambda: 2)
    images, _ = cached(tmp_path, image_cache.CHUNK + 5, "validation", progress=False)
    data = StillLifes(len(images), "validation")
    for index in (0, 1, image_cache.CHUNK, len(images) - 1):
        assert np.array_equal(images[index], data[index][0].numpy())


def test_a_cache_of_nothing_or_of_an_unknown_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count 0 must be at least 1"):
        cached(tmp_path, 0, "train")
    with pytest.raises(ValueError, match="split 'test' must be one of train, validation"):
        cached(tmp_path, 5, "test")
