"""The word encoder: what it reads, that padding changes nothing, what it refuses, and that it is saved."""

import pytest
import torch
from torch.testing import assert_close

from var_toolkit.conditions.words import WordEncoder, WordEncoderConfig, vocabulary, words_of
from var_toolkit.formats.directory import load_network, save_network

WORDS = vocabulary(["a red sphere, on sand", "a blue cube"])


@pytest.fixture
def encoder() -> WordEncoder:
    torch.manual_seed(0)
    made = WordEncoder(WordEncoderConfig(WORDS, width=16, depth=2, num_heads=2, longest=6)).eval()
    made.init_weights()
    return made


def test_words_are_small_letters_and_punctuation():
    assert words_of("A Red-ish sphere,on SAND!") == ["a", "red-ish", "sphere", ",", "on", "sand", "!"]
    assert WORDS == (",", "a", "blue", "cube", "on", "red", "sand", "sphere")


def test_padding_and_the_other_prompts_change_nothing(encoder):
    both, alone = encoder.encode(["a red sphere on sand", "Blue cube"]), encoder.encode(["blue cube"])
    assert both.mask.sum(dim=1).tolist() == [6, 3]
    assert_close(both.features[1:, :3], alone.features, atol=1e-5, rtol=0)
    assert encoder.encode([""]).mask.tolist() == [[True]]


def test_every_word_sees_those_after_it_and_every_parameter_learns(encoder):
    encoder.train()
    first, other = (encoder([f"a {colour} cube"]) for colour in ("red", "blue"))
    assert not torch.allclose(first.features[:, 0], other.features[:, 0])
    encoder(["a red cube"]).features.square().sum().backward()
    used = {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name for name, _ in encoder.named_parameters()} == used


def test_unknown_words_are_named_with_known_ones(encoder):
    with pytest.raises(ValueError, match=r"spheer, green.*sphere, a, blue"):
        encoder.check(["a spheer, green"])
    with pytest.raises(ValueError, match=r"prompt has 6 words; .* at most 5"):
        encoder.check(["a red sphere on a cube"])


def test_saving_and_loading_gives_the_same_bits_and_name(encoder, tmp_path):
    save_network(encoder, tmp_path / "words")
    again = load_network(tmp_path / "words")
    assert (again.config, again.name) == (encoder.config, encoder.name)
    assert torch.equal(again.encode(["a red cube"]).features, encoder.encode(["a red cube"]).features)


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"width": 15}, "width is 15"),
        ({"longest": 1}, "longest is 1"),
        ({"words": ("a", "a")}, "words"),
        ({"words": ("two words",)}, "words"),
    ],
)
def test_impossible_settings_are_refused_by_name(setting, found):
    with pytest.raises(ValueError, match=found):
        WordEncoderConfig(**{"words": WORDS, "width": 16, "num_heads": 2, **setting})
