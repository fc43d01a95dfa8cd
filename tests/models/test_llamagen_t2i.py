"""LlamaGen from text agrees with attention over a left-padded prefix, written out as it was published."""

import pytest
import torch
from small_text import CHANNELS, tiny_text_gpt
from torch.nn import functional as F

from var_toolkit.conditions.text import PromptEmbeds
from var_toolkit.models.llamagen_t2i import TextRasterGPT

TOKENS = 9


def prompts(*lengths, seed=0):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    features = torch.randn(*mask.shape, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return PromptEmbeds(features * mask.unsqueeze(-1), mask)


def drawn_tokens(rows):
    return torch.randint(0, 16, (rows, TOKENS), generator=torch.Generator().manual_seed(1))


def rms(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def rotated(x_RHLD, network):
    """Zeros for the text; 2D RoPE of a 3 x 3 map for the image, in complex numbers."""
    count, half = x_RHLD.shape[2], x_RHLD.shape[3] // 2
    frequencies = 10_000 ** -(torch.arange(0, half, 2) / half)
    text = count - min(TOKENS, count - network.config.text_tokens)
    angles = [torch.cat([i // 3 * frequencies, i % 3 * frequencies]) for i in range(count - text)]
    turn = torch.polar(torch.ones(count - text, half), torch.stack(angles)) if angles else torch.ones(0, half)
    turn = torch.cat([torch.zeros(text, half, dtype=torch.complex64), turn.to(torch.complex64)])
    return torch.view_as_real(torch.view_as_complex(x_RHLD.unflatten(-1, (-1, 2))) * turn).flatten(-2)


def published(network, features_RTX, mask_RT, tokens_RL):
    """Logits of tokens 0 to L, from a prefix of all text tokens with its mask and a diagonal of ones."""
    tensors, heads, text = dict(network.state_dict()), network.config.num_heads, network.config.text_tokens
    hidden = F.gelu(features_RTX @ tensors["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh")
    x = hidden @ tensors["cls_embedding.cap_proj.fc2.weight"].T
    x = torch.cat([x, tensors["tok_embeddings.weight"][tokens_RL]], dim=1)
    allowed = torch.ones(x.shape[1], x.shape[1]).tril().repeat(len(x), 1, 1)
    allowed[:, :, :text] *= mask_RT.unsqueeze(1)
    allowed = torch.maximum(allowed, torch.eye(x.shape[1])).bool()
    for layer in range(network.config.depth):
        own = {name: tensors[f"layers.{layer}.{name}.weight"] for name in (
            "attention_norm", "ffn_norm", "attention.wqkv", "attention.wo",
            "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
        )}  # fmt: skip
        qkv = rms(x, own["attention_norm"]) @ own["attention.wqkv"].T
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        scores = rotated(q, network) @ rotated(k, network).mT / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~allowed.unsqueeze(1), float("-inf")).softmax(-1)
        x = x + (weights @ v).transpose(1, 2).flatten(2) @ own["attention.wo"].T
        h = rms(x, own["ffn_norm"])
        gated = F.silu(h @ own["feed_forward.w1"].T) * (h @ own["feed_forward.w3"].T)
        x = x + gated @ own["feed_forward.w2"].T
    return (rms(x, tensors["norm.weight"]) @ tensors["output.weight"].T)[:, text - 1 :]


def rows_of(network, prompt, null):
    """The two halves as they were published: padded on the left to the longest text."""
    whole = prompt.left_padded(network.config.text_tokens)
    if null is None:
        learned = network.cls_embedding.uncond_embedding.expand_as(whole.features)
        return torch.cat([whole.features, learned]), torch.cat([whole.mask, whole.mask])
    other = null.left_padded(network.config.text_tokens)
    return torch.cat([whole.features, other.features]), torch.cat([whole.mask, other.mask])


@pytest.mark.parametrize("negative", [False, True], ids=["learned-null", "negative-prompt"])
def test_logits_are_those_of_the_left_padded_prefix(negative):
    network, prompt = tiny_text_gpt(), prompts(2, 5)
    null = prompts(7, 1, seed=4) if negative else None
    tokens = drawn_tokens(2)[:, :-1].repeat(2, 1)
    with torch.inference_mode():
        expected = published(network, *rows_of(network, prompt, null), tokens)
        found = network(network.request(prompt, null).rows(network, 2), tokens)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "ragged"])
def test_tokens_one_by_one_with_a_cache_have_the_logits_of_one_pass(kind):
    network, tokens = tiny_text_gpt(), drawn_tokens(4)
    with torch.inference_mode():
        given = network.request(prompts(2, 5)).rows(network, 2)
        whole, prefix = network(given, tokens[:, :-1]), network.condition(given)
        cache = network.new_cache(4, [TOKENS] * 2) if kind == "plain" else network.new_ragged_cache(4, TOKENS)
        parts = [network.next_hidden(prefix.tokens, tokens[:, :2], cache=cache)]
        parts += [network.next_hidden(None, tokens[:, i : i + 1], cache=cache) for i in range(2, TOKENS - 1)]
        torch.testing.assert_close(network.next_logits(torch.cat(parts, dim=1)), whole, atol=1e-5, rtol=1e-5)


def test_a_prompt_is_read_alike_beside_a_longer_one():
    network, tokens = tiny_text_gpt(), drawn_tokens(2)[:, :-1]
    with torch.inference_mode():
        both = prompts(2, 8)
        alone = network(network.request(both.of_rows([0])).rows(network, 1), tokens[:1])
        beside = network(network.request(both).rows(network, 1), tokens)
    torch.testing.assert_close(alone, beside[:1], atol=1e-5, rtol=1e-5)


def test_rows_that_are_kept_keep_their_prefix():
    network, tokens = tiny_text_gpt(), drawn_tokens(2)
    with torch.inference_mode():
        request = network.request(prompts(2, 5))
        cache, prefix = network.new_cache(4, [TOKENS] * 2), network.condition(request.rows(network, 2))
        network.next_hidden(prefix.tokens, tokens[:, :1].repeat(2, 1), cache=cache)
        cache.keep_rows(2)
        found = network.next_logits(network.next_hidden(None, tokens[:, 1:2], cache=cache))
        expected = network(request.rows(network, 1), tokens[:, :2])[:, -1:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_published_size_has_the_tensors_of_its_file():
    from var_toolkit.registry import entry

    with torch.device("meta"):
        told = entry("llamagen-t2i-xl-512").source.configs["backbone"]
        network = TextRasterGPT(TextRasterGPT.__init__.__annotations__ and _config(told))
    count = sum(weight.numel() for weight in network.parameters())
    assert count == pytest.approx(entry("llamagen-t2i-xl-512").source.parameters, rel=0.01)
    assert network.state_dict()["cls_embedding.uncond_embedding"].shape == (120, 2048)


def _config(told):
    from var_toolkit.models.llamagen_t2i import TextRasterGPTConfig

    return TextRasterGPTConfig(**told)
