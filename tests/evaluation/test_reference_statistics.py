"""Statistics of a reference, written once: they give the figures that its images gave."""

import json

import numpy as np
import pytest
import torch

from var_toolkit.cli import main
from var_toolkit.evaluation.frechet import Statistics
from var_toolkit.evaluation.image_sets import open_reference
from var_toolkit.evaluation.scores import METRICS, score, summarise

FROM_STATISTICS = ("fid", "sfid", "isc")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, images_folder, reference_folder):
    """Scores against a folder, and the two files of its statistics, without features and with them."""
    torch.set_num_threads(1)  # the last digits depend on their number
    folder = tmp_path_factory.mktemp("statistics")
    found = score(images_folder, reference_folder, features="stilllife", save_statistics=folder / "ref.npz")
    summarise(reference_folder, folder / "whole.npz", features="stilllife", save_features=True)
    return found, folder / "ref.npz", folder / "whole.npz"


def test_the_file_gives_the_same_figures_to_the_last_digit(saved, images_folder):
    found, path, whole = saved
    torch.set_num_threads(1)
    again = score(images_folder, path)  # the features are those of the file
    assert again.settings["features"] == "stilllife"
    assert [getattr(again, name) for name in FROM_STATISTICS] == [getattr(found, name) for name in FROM_STATISTICS]
    assert again.kid is again.precision is again.recall is None
    assert any("kernel distance, precision, recall" in note and "--save-features" in note for note in again.notes)
    complete = score(images_folder, whole)
    assert [getattr(complete, name) for name in METRICS] == [getattr(found, name) for name in METRICS]
    assert not any("statistics alone" in note for note in complete.notes)


def test_the_notes_know_how_many_images_there_were(saved, images_folder):
    found, path, _ = saved
    again = score(images_folder, path)
    assert again.settings["reference"]["count"] == found.settings["reference"]["count"] == 200
    few = [note for note in again.notes if "200 images of" in note]
    assert few
    assert "too few" in few[0]
    assert again.settings["published"] is None


def test_other_programs_find_the_keys_that_they_read(saved, renderings):
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    with np.load(saved[1], allow_pickle=False) as arrays:  # as the ADM evaluator and pytorch-fid open it
        mu, sigma, mu_s, sigma_s = (arrays[key] for key in ("mu", "sigma", "mu_s", "sigma_s"))
        assert int(arrays["count"]) == len(renderings)
        assert str(arrays["extractor"]) == "stilllife"
        assert len(str(arrays["extractor_hash"])) == 20
    assert (mu.shape, sigma.shape, mu_s.shape, sigma_s.shape) == ((128,), (128, 128), (448,), (448, 448))
    assert {array.dtype for array in (mu, sigma, mu_s, sigma_s)} == {np.dtype(np.float64)}
    both = {"mu": mu, "sigma": sigma}
    assert fid_statistics_to_metric(both, both, False)["frechet_inception_distance"] == pytest.approx(0, abs=1e-3)


def test_fresh_still_lifes_are_a_reference_too(tmp_path, images_folder, monkeypatch):
    monkeypatch.setattr("var_toolkit.evaluation.image_sets.CLASSES", 100)
    found = score(images_folder, "stilllife", save_statistics=tmp_path / "fresh.npz", save_features=True)
    again = score(images_folder, tmp_path / "fresh.npz")
    assert [getattr(again, name) for name in METRICS] == [getattr(found, name) for name in METRICS]
    assert open_reference(tmp_path / "fresh.npz", 0).settings == {"classes": "0-999"}


def changed(path, to, **arrays):
    """A copy of a file with other arrays."""
    with np.load(path) as known:
        np.savez(to, **{**known, **arrays})
    return to


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({}, {"features": "inception"}, "stilllife"),
        ({"extractor": np.str_("clip")}, {}, "clip"),
        ({"extractor_hash": np.str_("0" * 20)}, {}, "00000000000000000000"),
        ({"extractor_hash": np.float64(3)}, {}, "extractor_hash"),
        ({"extractor": np.array(["stilllife"])}, {}, "extractor"),
        ({"count": np.array([200])}, {}, "count"),
        ({"count": np.int64(1)}, {}, "count"),
        ({"size": np.str_("64x64")}, {}, "size"),
        ({"features": np.zeros((200, 128))}, {}, "features"),
        ({"features": np.zeros((199, 128), np.float32)}, {}, "features"),
        ({"features": np.full((200, 128), np.nan, np.float32)}, {}, "features"),
        ({}, {"save_statistics": "other.npz"}, "ref.npz"),
    ],
)
def test_statistics_of_another_extractor_and_damaged_ones_are_refused(
    arrays, options, words, saved, images_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("var_toolkit.evaluation.scores._extracted", None)
    path = changed(saved[1], tmp_path / "ref.npz", **arrays)
    with pytest.raises(ValueError, match=r"ref\.npz|clip") as complaint:
        score(images_folder, path, **options)
    assert words in str(complaint.value)
    assert "\n" not in str(complaint.value)


def test_the_commands_write_and_read_the_file(images_folder, reference_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "score", "--reference", str(reference_folder), "--features", "stilllife"]
    assert main([*command, "--save-statistics", "ref.npz"]) == 0
    assert "ref.npz" in capsys.readouterr().out
    figures = []
    for reference in (str(reference_folder), "ref.npz"):
        command[3] = reference
        assert main([*command, "--images", str(images_folder), "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert [figures[0][name] for name in FROM_STATISTICS] == [figures[1][name] for name in FROM_STATISTICS]
    assert main([*command, "--images", str(images_folder)]) == 0
    told = capsys.readouterr().out
    assert "ref.npz (statistics of 200 images)" in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--save-statistics", "ref.npy"], "ref.npy"),
        (["--save-statistics", "folder.npz"], "folder.npz"),
        (["--save-statistics", "file/ref.npz"], "file"),
        (["--save-features", "--images", "images"], "--save-statistics"),
        ([], "--images"),
        (["--save-statistics", "ref.npz", "-n", "5"], "--images"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_long_work(
    options, words, images_folder, reference_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("var_toolkit.evaluation.scores._extracted", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "images").symlink_to(images_folder)
    command = ["evaluate", "score", "--reference", str(reference_folder), "--features", "stilllife"]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_distance_that_overflows_is_told_and_not_a_number():
    from var_toolkit.evaluation.frechet import frechet_distance

    far = Statistics(torch.tensor([1e200], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    near = Statistics(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match="not finite"):
        frechet_distance(far, near)
