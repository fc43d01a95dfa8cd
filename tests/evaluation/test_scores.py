"""The figures, against computations that share nothing with torch-fidelity but the features."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from evaluation.conftest import write_images
from scipy.spatial.distance import cdist

from var_toolkit.evaluation import score_notes, scores
from var_toolkit.evaluation.extractors import KINDS, create
from var_toolkit.evaluation.image_sets import FreshStillLifes, ImageSet, chosen, open_images
from var_toolkit.evaluation.scores import manifold_part, score
from var_toolkit.formats.directory import load_network
from var_toolkit.registry import embedded_part
from var_toolkit.still_life.classifier import StillLifeClassifier

EXACT = {"rel": 1e-4}


@pytest.fixture(scope="session")
def judge() -> StillLifeClassifier:
    """The embedded classifier."""
    return load_network(embedded_part("stilllife-classifier"))  # type: ignore[return-value]


@torch.inference_mode()
def features(judge, images) -> np.ndarray:
    """(B, 128), float64."""
    return judge.features(images / 127.5 - 1).double().numpy()


@pytest.fixture(scope="session")
def measured(images_folder, reference_folder):
    """The pair of folders, measured once."""
    return score(images_folder, reference_folder, features="stilllife")


def frechet(x, y) -> float:
    (mu, sigma), (nu, tau) = ((z.mean(0), np.cov(z, rowvar=False)) for z in (x, y))
    return float(((mu - nu) ** 2).sum() + np.trace(sigma + tau - 2 * scipy.linalg.sqrtm(sigma @ tau).real))


def kernel_distance(x, y, size, subsets=100) -> float:
    """Unbiased squared MMD of the cubic kernel, mean over subsets, as Binkowski et al. 2018 define KID."""
    rng, found = np.random.RandomState(2020), []  # torch-fidelity's subsets
    for _ in range(subsets):
        a = x[rng.choice(len(x), size, replace=False)]
        b = y[rng.choice(len(y), size, replace=False)]
        kaa, kbb, kab = ((p @ q.T / x.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        for square in (kaa, kbb):
            np.fill_diagonal(square, 0)
        found.append((kaa.sum() + kbb.sum()) / (size * (size - 1)) - 2 * kab.mean())
    return float(np.mean(found))


def coverage(points, manifold) -> float:
    """Share of points within the third nearest neighbour's distance of some point of the manifold."""
    radii = np.sort(cdist(manifold, manifold), axis=1)[:, 3]
    return float((cdist(points, manifold) <= radii).any(1).mean())


def test_fid_kid_precision_and_recall_are_those_of_numpy_and_scipy(measured, judge, blurred, renderings):
    x, y = features(judge, blurred), features(judge, renderings)
    assert measured.fid == pytest.approx(frechet(x, y), **EXACT)
    assert measured.kid == pytest.approx(kernel_distance(x, y, 180), **EXACT)
    assert measured.precision == pytest.approx(coverage(x, y), **EXACT)
    assert measured.recall == pytest.approx(coverage(y, x), **EXACT)
    assert 0 < measured.precision < 1
    assert 0 < measured.recall < 1


def test_the_frechet_distance_is_torch_fidelitys(measured, judge, blurred, renderings):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    told = [fid_features_to_statistics(torch.from_numpy(features(judge, x))) for x in (blurred, renderings)]
    assert measured.fid == pytest.approx(fid_statistics_to_metric(*told, False)[KEY_METRIC_FID], **EXACT)


@torch.inference_mode()
def test_the_inception_score_is_that_of_the_joint_probabilities(measured, judge, blurred):
    answers = [answer.softmax(1).double().numpy() for answer in judge(blurred / 127.5 - 1)]
    joint = np.einsum("ba,bc,bd->bacd", *answers).reshape(len(blurred), 1000)
    divergence = (joint * (np.log(joint + 1e-300) - np.log(joint.mean(0) + 1e-300))).sum(1)
    assert measured.isc == pytest.approx(float(np.exp(divergence.mean())), **EXACT)


@torch.inference_mode()
def test_spatial_fid_is_the_distance_of_seven_channels(measured, judge, blurred, renderings):
    maps = [judge.levels(x / 127.5 - 1)[3][:, :7].flatten(1).double().numpy() for x in (blurred, renderings)]
    assert measured.sfid == pytest.approx(frechet(*maps), rel=1e-3)  # singular: 448 features of 200 images
    assert any(note.startswith("spatial distance: 200 images of") and "too few" in note for note in measured.notes)


def test_the_order_of_the_images_does_not_matter(measured, blurred, tmp_path, reference_folder):
    order = torch.randperm(len(blurred), generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "shuffled.npz", arr_0=blurred[order].permute(0, 2, 3, 1).numpy())
    other = score(tmp_path / "shuffled.npz", reference_folder, features="stilllife")
    for name in ("fid", "sfid", "isc", "precision", "recall"):
        assert getattr(other, name) == pytest.approx(getattr(measured, name), **EXACT)
    assert other.settings["images"] == {"source": f"{tmp_path}/shuffled.npz", "count": 180, "pixels": "64x64"}


def test_a_set_is_at_no_distance_from_itself(images_folder):
    found = score(images_folder, images_folder, features="stilllife")
    assert found.fid is not None
    assert found.sfid is not None
    assert found.fid < 1e-3
    assert found.sfid < 1e-3
    assert found.precision == found.recall == 1


def test_statistics_alone_give_fid_and_say_what_they_cannot_give(measured, judge, renderings, images_folder, tmp_path):
    y = features(judge, renderings)
    np.savez(tmp_path / "reference.npz", mu=y.mean(0).astype(np.float32), sigma=np.cov(y, rowvar=False))
    found = score(images_folder, tmp_path / "reference.npz", features="stilllife")
    assert found.fid == pytest.approx(measured.fid, **EXACT)
    assert found.isc == measured.isc
    assert found.sfid is found.kid is found.precision is found.recall is None
    assert any("mu_s" in note for note in found.notes)
    assert any(note.startswith("kernel distance, precision, recall: ") for note in found.notes)
    assert found.settings["reference"]["kind"] == "statistics"


def test_an_evaluator_file_gives_everything(measured, judge, renderings, images_folder, tmp_path):
    y = features(judge, renderings)
    arrays = {"arr_0": renderings.permute(0, 2, 3, 1).numpy(), "mu": y.mean(0), "sigma": np.cov(y, rowvar=False)}
    np.savez(tmp_path / "without.npz", **arrays)
    np.savez(tmp_path / "with.npz", **arrays, mu_s=np.zeros(448), sigma_s=np.zeros((448, 448)))
    without, whole = (
        score(images_folder, tmp_path / f"{name}.npz", features="stilllife") for name in ("without", "with")
    )
    assert without.sfid is None
    assert whole.sfid is not None
    assert whole.sfid != pytest.approx(measured.sfid)
    for name in ("fid", "kid", "precision", "recall"):
        assert getattr(whole, name) == pytest.approx(getattr(measured, name), **EXACT)
    assert whole.settings["reference"]["kind"] == "statistics and images"


def test_the_report_says_what_was_measured(measured, reference_folder, blurred, tmp_path):
    write_images(tmp_path / "set", blurred[:5])
    (tmp_path / "set" / "settings.json").write_text(json.dumps({"model": "var-d16", "images": 7}))
    heard: list[str] = []
    found = score(tmp_path / "set", reference_folder, features="stilllife", count=4, on_note=heard.append)
    report = json.loads(json.dumps(found.report(), allow_nan=False))
    assert report["sampling"] == {"model": "var-d16", "images": 7}
    assert report["images"]["count"] == 4
    assert report["published"] is None  # that figure is of other features
    assert report["versions"]["torch_fidelity"] == torch_fidelity.__version__
    assert report["notes"] == heard
    assert heard[0].startswith("distance, spatial distance: 4 images of")
    assert "images: 4 of the 7 images that their settings.json plans are measured" in heard
    assert {"fid", "sfid", "isc", "kid", "precision", "recall", "features", "reference"} <= report.keys()


def test_images_of_some_classes_against_all_are_noted(blurred, tmp_path, monkeypatch):
    monkeypatch.setattr("var_toolkit.evaluation.image_sets.CLASSES", 100)
    write_images(tmp_path / "set", blurred[:4])
    (tmp_path / "set" / "settings.json").write_text(json.dumps({"images": 4, "classes": "0-3"}))
    found = score(tmp_path / "set", "stilllife")
    told = "images are of the classes 0-3; against a reference of 0-999 distances grow by the difference"
    assert told in found.notes
    assert found.settings["reference"]["kind"] == "fresh still lifes"


def heard(drawn: ImageSet, truth: ImageSet) -> list[str]:
    """The notes on the classes of a set."""
    notes: list[str] = []
    score_notes._doubt_classes(drawn, truth, notes.append)
    return notes


def test_some_classes_are_noted_against_any_reference_but_one_of_the_same():
    some = ImageSet("images", settings={"classes": "0-3"})
    assert "of the classes 0-3 alone; against a reference of others" in heard(some, ImageSet("folder"))[0]
    fresh = ImageSet("fresh", FreshStillLifes(0))
    assert "of the classes 0-3; against a reference of 0-999" in heard(some, fresh)[0]
    assert (
        "of the classes 0-3; against a reference of 5-9" in heard(some, ImageSet("b", settings={"classes": "5-9"}))[0]
    )
    assert heard(some, ImageSet("other images", settings={"classes": "0-3"})) == []
    assert heard(ImageSet("images", settings={"classes": "0-999"}), ImageSet("folder")) == []
    assert heard(ImageSet("images"), ImageSet("folder")) == []


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        ([0, 1, 0, 1], {}, None),
        ([0, 1, 0], {}, "hold 1 to 2 images of a class"),
        ([0, 1], {"images": 4, "per_class": 2}, None),
        ([0, 0], {"images": 4, "per_class": 2}, "hold 0 to 2 images of a class"),
        ([0, 1], {"images": "many", "per_class": 0}, None),
        (None, {"images": 4, "per_class": 2}, None),
    ],
)
def test_classes_that_are_there_unevenly_often_are_noted(labels, settings, words):
    notes = heard(ImageSet("images", settings=settings, labels=labels), ImageSet("folder"))
    assert [words is not None and words in note for note in notes] == ([True] if words else [])


def test_the_classes_of_a_chosen_part_are_counted(reference_folder, blurred, tmp_path):
    folder = write_images(tmp_path / "set", blurred[:6])
    for i in range(3):
        (folder / f"00000{i}_class-{i}.png").rename(folder / f"00000{i}_class-0.png")
    whole, part = score(folder, reference_folder, features="stilllife"), open_images(folder, 5)
    assert "images hold 1 to 3 images of a class; a whole set holds every class equally often" in whole.notes
    assert part.labels == [[0, 0, 0, 3, 4, 5][i] for i in chosen(6, 5)]


def test_two_images_give_what_they_can(reference_folder, blurred, tmp_path):
    write_images(tmp_path / "set", blurred[:2])
    found = score(tmp_path / "set", reference_folder, features="stilllife")
    assert found.precision is found.recall is None
    assert found.fid is not None
    assert any(note.startswith("precision, recall: ") for note in found.notes)


def test_precision_and_recall_use_ten_thousand_images_of_the_reference():
    many = torch.arange(30_000)[:, None]
    assert torch.equal(manifold_part(many, shuffled=True), many[:10_000])
    some = manifold_part(many, shuffled=False)
    assert len(some) == 10_000
    assert 14_000 < float(some.double().mean()) < 16_000
    assert manifold_part(many[:5], shuffled=False) is not None


def test_what_cannot_be_measured_is_refused(images_folder, reference_folder, tmp_path):
    large = write_images(tmp_path / "large", torch.zeros(3, 3, 96, 96, dtype=torch.uint8))
    one = write_images(tmp_path / "one", torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    for images, reference, features_, words in (
        (large, "stilllife", None, "large holds images of 96x96; stilllife features take 64x64"),
        (images_folder, large, "stilllife", "take 64x64"),
        (one, reference_folder, "stilllife", "one holds 1 image; a covariance takes 2 or more"),
        (images_folder, tmp_path / "inception.npz", "stilllife", "2048 features; stilllife features are 128"),
        (images_folder, reference_folder, "clip", "features is 'clip'; it must be one of inception, stilllife"),
    ):
        with pytest.raises(ValueError, match=words):
            score(images, reference, features=features_)
    with pytest.raises(ValueError, match="weights of Inception are given, but the features are 'stilllife'"):
        score(images_folder, "stilllife", inception_weights="weights.pth")


def test_a_loading_process_complains_in_one_line(monkeypatch, tmp_path, images_folder):
    from PIL import Image

    for name in "abc":
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / f"{name}.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-900])
    monkeypatch.setattr(scores, "WORTH_PROCESSES", 0)
    with pytest.raises(ValueError, match=r"^\S*b.jpg is damaged: [^\n]*; replace it[^\n]*$"):
        score(tmp_path, images_folder, features="stilllife")


def test_extractors_work_by_name_in_torch_fidelity(images_folder, reference_folder, measured):
    create("stilllife")
    create("stilllife")  # which registers it once
    found = torch_fidelity.calculate_metrics(
        input1=str(images_folder), input2=str(reference_folder), fid=True, feature_extractor="var-toolkit-stilllife",
        cuda=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    assert found["frechet_inception_distance"] == pytest.approx(measured.fid, **EXACT)


def test_the_lengths_of_the_features_are_as_listed(blurred):
    extractor = create("stilllife")
    pooled, spatial, logits = extractor(blurred[:2])
    assert (pooled.shape[1], spatial.shape[1]) == (KINDS["stilllife"].pooled, KINDS["stilllife"].spatial)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(2))
