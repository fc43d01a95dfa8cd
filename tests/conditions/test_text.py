"""Features of prompts: padded, joined, written and read, encoded once, and refused where a network cannot read them."""

import pytest
import torch
from safetensors.torch import save_file

from var_toolkit.conditions.text import PromptCache, PromptEmbeds, TextInput, listed_texts


def embeds(*lengths, channels=4, pooled=None, encoder="toy", seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    features = torch.randn(*mask.shape, channels, generator=generator) * mask.unsqueeze(-1)
    vector = pooled and torch.randn(len(lengths), pooled, generator=generator)
    return PromptEmbeds(features, mask, vector, tuple(f"prompt {n}" for n in lengths), encoder)


class Letters:
    """An encoder that reads one token a letter, and counts how often it is asked."""

    name, license = "letters", None

    def __init__(self):
        self.asked = []

    def check(self, prompts):
        if any("?" in text for text in prompts):
            raise ValueError("? is not a word")

    def encode(self, prompts):
        self.asked += prompts
        rows = [torch.tensor([[float(ord(letter)), 1.0] for letter in text] or [[0.0, 0.0]]) for text in prompts]
        parts = [PromptEmbeds(row[None], torch.ones(1, len(row), dtype=torch.bool)) for row in rows]
        return PromptEmbeds.join(parts)


def same(one, other):
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.mask, other.mask)
    assert (one.pooled is None) == (other.pooled is None)
    assert one.pooled is None or torch.equal(one.pooled, other.pooled)
    assert (one.prompts, one.encoder) == (other.prompts, other.encoder)


@pytest.mark.parametrize("pooled", [None, 3])
def test_joined_prompts_come_apart_as_they_were(pooled):
    first, second = embeds(2, 5, pooled=pooled), embeds(3, pooled=pooled, seed=1)
    both = PromptEmbeds.join([first, second])
    assert both.mask.sum(dim=1).tolist() == [2, 5, 3]
    same(both.of_rows(slice(2)), first)
    same(both.of_rows([2]), second)


def test_padding_on_the_left_moves_each_prompt_to_the_end():
    padded = embeds(2, 3).left_padded(5)
    assert padded.mask.tolist() == [[False, False, False, True, True], [False, False, True, True, True]]
    assert torch.equal(padded.features[0, 3:], embeds(2, 3).features[0, :2])
    assert not padded.features[~padded.mask].any()


@pytest.mark.parametrize("pooled", [None, 3])
def test_a_file_gives_back_what_was_written(pooled, tmp_path):
    embeds(2, 3, pooled=pooled).write(tmp_path / "a.safetensors")
    same(PromptEmbeds.read(tmp_path / "a.safetensors"), embeds(2, 3, pooled=pooled))


FILES = {
    "missing": (None, "does not exist"),
    "no-mask": ({"features": torch.zeros(1, 2, 3)}, "lacks the tensor 'mask'"),
    "surplus": ({"features": torch.zeros(1, 2, 3), "mask": torch.ones(1, 2).bool(), "x": torch.zeros(1)}, "'x'"),
    "shape": ({"features": torch.zeros(1, 2, 3), "mask": torch.ones(1, 3).bool()}, r"bool \(1, 2\)"),
    "dtype": ({"features": torch.zeros(1, 2, 3).int(), "mask": torch.ones(1, 2).bool()}, "floats"),
    "nan": ({"features": torch.full((1, 2, 3), torch.nan), "mask": torch.ones(1, 2).bool()}, "not finite"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_refused_by_name(name, tmp_path):
    tensors, message = FILES[name]
    if tensors is not None:
        save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=rf"bad\.safetensors.*{message}"):
        PromptEmbeds.read(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (embeds(3, channels=5), "5 channels"),
        (embeds(9), "9 tokens"),
        (embeds(3, pooled=2), "2 pooled"),
        (embeds(3), "no pooled"),
        (embeds(3, pooled=6).left_padded(5), "first tokens"),
    ],
    ids=["channels", "tokens", "pooled", "no-pooled", "left-padded"],
)
def test_a_network_refuses_features_that_it_cannot_read(given, message):
    with pytest.raises(ValueError, match=message):
        TextInput(channels=4, longest=8, pooled=6).require(given)


def test_each_prompt_is_encoded_once():
    cache, letters = PromptCache(), Letters()
    first = cache(letters, ["ab", "c", "ab"])
    assert first.prompts == ("ab", "c", "ab")
    assert first.mask.sum(dim=1).tolist() == [2, 1, 2]
    same(cache(letters, ["c"]), first.of_rows([1]))
    assert letters.asked == ["ab", "c"]


def test_a_cache_forgets_the_prompts_used_longest_ago():
    cache, letters = PromptCache(room=2), Letters()
    for text in ("a", "b", "a", "c", "a", "b"):
        cache(letters, [text])
    assert letters.asked == ["a", "b", "c", "b"]


@pytest.mark.parametrize("given", [[], [3], 3, ["a", None]], ids=str)
def test_what_is_not_text_is_refused(given):
    with pytest.raises(ValueError, match="prompt is"):
        listed_texts("prompt", given)
