"""Encoders of transformers: their features, loaded late and freed, and what is refused."""

from dataclasses import replace

import pytest
import torch
from small_encoders import write_encoder
from small_text import text_pipeline
from transformers import T5EncoderModel

import var_toolkit
from var_toolkit.conditions import text_encoders
from var_toolkit.conditions.text_encoders import TransformersEncoder, split_folder
from var_toolkit.entries import TextSource


@pytest.fixture(scope="module", params=["t5", "clip"])
def told(request, tmp_path_factory):
    return write_encoder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_encoder("t5", tmp_path_factory.mktemp("t5"))


def test_a_prompt_has_the_same_features_beside_a_longer_one(told):
    encoder = TransformersEncoder(told, 8)
    both, alone = encoder.encode(["a", "a red cube"]), encoder.encode(["a"])
    assert both.mask.sum(dim=1).tolist() == [2, 4]
    torch.testing.assert_close(both.features[:1, :2], alone.features)
    assert (both.pooled is None) == (told.kind == "t5")


def test_features_are_those_of_the_model_itself(t5):
    network = T5EncoderModel.from_pretrained(t5.source)
    with torch.inference_mode():
        expected = network(input_ids=torch.tensor([[3, 4, 6, 1]])).last_hidden_state
    torch.testing.assert_close(TransformersEncoder(t5, 8).encode(["a red cube"]).features, expected)


def test_small_letters_are_read_where_the_model_was_trained_so(t5):
    small, large = (TransformersEncoder(replace(t5, lowercase=True), 8).encode([text]) for text in ("a red", " A Red "))
    torch.testing.assert_close(small.features, large.features)


def test_a_long_prompt_is_cut_and_a_warning_says_so(t5):
    with pytest.warns(UserWarning, match="cut after 3 tokens"):
        found = TransformersEncoder(t5, 3).encode(["a red cube a blue sphere"])
    assert found.mask.shape == (1, 3)


def test_weights_are_loaded_at_the_first_prompt_and_freed(t5, monkeypatch):
    loads, load = [], TransformersEncoder._load
    monkeypatch.setattr(TransformersEncoder, "_load", lambda self: loads.append(self) or load(self))
    encoder = TransformersEncoder(t5, 8)
    encoder.check(["a"])
    assert not loads
    for _ in range(2):
        encoder.encode(["a"])
    encoder.release()
    encoder.encode(["a"])
    assert len(loads) == 2


def test_a_device_of_its_own_stays_when_the_model_moves(t5):
    encoder = TransformersEncoder(t5, 8)
    encoder.to("cuda")
    assert encoder.device.type == "cuda"
    assert encoder.place("cpu").device.type == "cpu"
    encoder.to("cuda:1")
    assert encoder.device.type == "cpu"


@pytest.mark.parametrize("bits", [16, 8])
def test_fewer_bits_give_nearly_the_same_features(bits, t5):
    whole = TransformersEncoder(t5, 8).encode(["a red cube"]).features
    short = TransformersEncoder(t5, 8).place("cpu", bits).encode(["a red cube"]).features
    assert not torch.equal(whole, short.float())
    torch.testing.assert_close(short.float(), whole, atol=0.1, rtol=0.1)


def test_other_numbers_of_bits_are_refused(t5):
    with pytest.raises(ValueError, match="text_bits is 4"):
        TransformersEncoder(t5, 8).place(bits=4)


def test_without_transformers_one_line_says_how_to_install_it(t5, monkeypatch):
    monkeypatch.setattr(text_encoders, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "var-toolkit\[text\]"'):
        TransformersEncoder(t5, 8).check(["a"])


def test_an_encoder_that_is_missing_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty cannot be read"):
        TransformersEncoder(TextSource(str(tmp_path / "empty")), 8).encode(["a"])


@pytest.mark.parametrize(
    ("source", "found"),
    [("google/flan-t5-xl", ("google/flan-t5-xl", "")), ("a/b/text_encoder", ("a/b", "text_encoder"))],
    ids=["repository", "folder"],
)
def test_a_source_is_a_repository_and_a_folder(source, found):
    assert split_folder(source) == found


@pytest.mark.parametrize("again", [1, 2], ids=["saved", "saved-twice"])
def test_a_model_directory_holds_the_encoder(again, t5, tmp_path):
    pipe = text_pipeline(text_encoder=TransformersEncoder(t5, 8))
    folder = tmp_path / "model-0"
    pipe.save_pretrained(folder)
    for number in range(1, again):
        var_toolkit.load(folder, device="cpu").save_pretrained(folder := tmp_path / f"model-{number}")
    opened = var_toolkit.load(folder, device="cpu")
    given = {"prompt": "a red cube", "seeds": 1, "output_type": "latent"}
    torch.testing.assert_close(opened(**given).images, pipe(**given).images)


def test_a_model_directory_names_an_encoder_on_the_hub(tmp_path):
    told = TextSource("google/flan-t5-xl", license="apache-2.0", lowercase=True)
    text_pipeline(text_encoder=TransformersEncoder(told, 8)).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "text_encoder").exists()
    assert var_toolkit.load(tmp_path / "model", device="cpu").text_encoder.told == told
    card = (tmp_path / "model" / "README.md").read_text()
    assert "google/flan-t5-xl" in card
    assert "apache-2.0" in card
