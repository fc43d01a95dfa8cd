"""Inception's path, without its weights: torch-fidelity's network, filled at random, in a local file."""

import json
import urllib.error

import numpy as np
import pytest
import torch
from evaluation.conftest import write_images
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as published

from var_toolkit.evaluation.extractors import KINDS, create
from var_toolkit.evaluation.scores import score

KEEP_VARIANCE = 2**0.5  # of He et al. 2015, after a rectifier


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A weight file of the published layout, drawn at random."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(published.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        network = published.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=KEEP_VARIANCE / module.weight[0].numel() ** 0.5)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and nothing downloaded earlier."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refuse)


def test_features_are_those_of_torch_fidelity_and_of_the_evaluators_layer(weights, blurred):
    extractor = create("inception", weights)
    pooled, spatial, logits = extractor(blurred[:2])
    plain = published.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(weights))
    for found, expected in zip((pooled, logits), plain(blurred[:2]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert spatial.shape == (2, 17 * 17 * 7)
    assert (pooled.shape[1], spatial.shape[1]) == (KINDS["inception"].pooled, KINDS["inception"].spatial)
    maps: list[torch.Tensor] = []
    plain.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, made: maps.append(made))
    plain(blurred[:2])
    rows_first = spatial.view(2, 17, 17, 7)  # channels last, as TensorFlow lays them out
    torch.testing.assert_close(rows_first[1, 3, 5], maps[0][1, :7, 3, 5], rtol=0, atol=0)
    assert float(spatial.std()) > 0


@pytest.mark.slow
def test_every_figure_of_a_small_pair_comes_from_a_local_file(weights, blurred, renderings, tmp_path, offline):
    images, reference = (write_images(tmp_path / name, x[:6]) for name, x in (("a", blurred), ("b", renderings)))
    (images / "settings.json").write_text(json.dumps({"model": "var-d16"}))
    found = score(images, reference, inception_weights=weights)
    assert all(np.isfinite([found.fid, found.sfid, found.isc, found.kid, found.precision, found.recall]))
    assert found.settings["published"] is None
    assert any(note.startswith("published figures are left out") and "6 images" in note for note in found.notes)
    assert any("6 images" in note and "too few for 2048 pooled and 2023 spatial" in note for note in found.notes)


def test_without_a_network_the_way_out_is_told(offline, images_folder, reference_folder, capsys):
    with pytest.raises(ValueError, match=r"cannot be downloaded \(.*no route.*\); connect once, .*--inception-weights"):
        score(images_folder, reference_folder)
    assert capsys.readouterr().out == ""  # which is JSON's


class Trap:
    """Does something when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a file ran code",)


def test_files_that_are_not_inception_are_refused(tmp_path, weights, images_folder, reference_folder):
    path = tmp_path / "weights.pth"

    def refused(words: str) -> None:
        with pytest.raises(ValueError, match=words):
            score(images_folder, reference_folder, inception_weights=path)

    refused("is not a file")
    path.write_bytes(b"no weights")
    refused("weights")
    torch.save({"weights": Trap()}, path)
    refused("which could run code; refused")
    torch.save({"layer.weight": torch.zeros(2)}, path)
    refused(r"weights.pth holds no weights of torch-fidelity's Inception: Missing key")
    tensors = torch.load(weights, weights_only=True)
    torch.save({**tensors, "fc.bias": torch.full((1008,), float("nan"))}, path)
    refused("not finite; it is damaged")
    torch.save({**tensors, "fc.bias": torch.zeros(1000)}, path)
    refused(r"size mismatch for fc.bias")
