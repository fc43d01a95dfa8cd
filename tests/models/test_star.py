"""STAR agrees with its formulas written out, with and without a cache, and reads each prompt alone."""

import pytest
import torch
from golden.cases import fill
from torch.nn import functional as F

from var_toolkit.conditions.text import PromptEmbeds
from var_toolkit.formats.published import backbone_from_tensors
from var_toolkit.models.star import STAR, STARConfig

SIDES, CHANNELS, LATENT = (1, 2, 3), 6, 4
TOKENS = sum(side**2 for side in SIDES)


def star():
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "vocab_size": 16, "latent_channels": LATENT}
    return fill(STAR(STARConfig(patch_nums=SIDES, text_channels=CHANNELS, text_longest=8, **sizes)))


def prompts(*lengths, seed=0):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*mask.shape, CHANNELS, generator=generator) * mask.unsqueeze(-1)
    return PromptEmbeds(features, mask, torch.randn(len(lengths), CHANNELS, generator=generator))


def inputs(rows):
    return torch.randn(rows, TOKENS - 1, LATENT, generator=torch.Generator().manual_seed(2))


def turned(x_HLD):
    """RoPE in complex numbers: the first half of a head by columns, the second by rows, from 0 to 64 in every map."""
    half = x_HLD.shape[-1] // 2
    frequencies = 10_000 ** -(torch.arange(0, half, 2) / half)
    angles = [
        torch.cat([column / max(side - 1, 1) * 64 * frequencies, row / max(side - 1, 1) * 64 * frequencies])
        for side in SIDES
        for row in range(side)
        for column in range(side)
    ]
    turn = torch.polar(torch.ones(len(angles), half), torch.stack(angles))
    return torch.view_as_real(torch.view_as_complex(x_HLD.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


def published(network, features_TX, pooled_X, inputs_Lc):
    """Logits of one image of one text, as printed: plain norms, queries and keys of unit length."""
    w = dict(network.state_dict())
    heads = network.config.num_heads
    levels = torch.tensor([level for level, side in enumerate(SIDES) for _ in range(side**2)])
    start = pooled_X @ w["encoder_proj.weight"].T + w["encoder_proj.bias"] + w["pos_start"][0]
    x = torch.cat([start, inputs_Lc @ w["word_embed.weight"].T + w["word_embed.bias"]]) + w["lvl_embed.weight"][levels]

    def split(flat):
        return flat.unflatten(-1, (heads, -1)).transpose(0, 1)

    def attention(name, q, k, v, allowed):
        scale = w[f"{name}.scale_mul_1H11"][0].clamp(max=torch.log(torch.tensor(100.0))).exp()
        scores = scale * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
        mixed = scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v
        return mixed.transpose(0, 1).flatten(1) @ w[f"{name}.proj.weight"].T + w[f"{name}.proj.bias"]

    for layer in range(network.config.depth):
        own, text = f"blocks.{layer}.attn", f"blocks.{layer}.cross_attn"
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        q, k, v = (h @ w[f"{own}.mat_qkv.weight"].T).chunk(3, dim=-1)
        q, k, v = split(q + w[f"{own}.q_bias"]), split(k), split(v + w[f"{own}.v_bias"])
        x = x + attention(own, turned(q), turned(k), v, levels[:, None] >= levels)
        q = split(F.layer_norm(x, x.shape[-1:], eps=1e-6) @ w[f"{text}.mat_q.weight"].T + w[f"{text}.q_bias"])
        k, v = (features_TX @ w[f"{text}.mat_kv.weight"].T).chunk(2, dim=-1)
        x = x + attention(text, q, split(k), split(v + w[f"{text}.v_bias"]), torch.tensor(True))
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        ffn = f"blocks.{layer}.ffn"
        h = F.gelu(h @ w[f"{ffn}.fc1.weight"].T + w[f"{ffn}.fc1.bias"], approximate="tanh")
        x = x + h @ w[f"{ffn}.fc2.weight"].T + w[f"{ffn}.fc2.bias"]
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) @ w["head_logits.weight"].T + w["head_logits.bias"]


def test_logits_are_those_of_the_formulas_for_each_row_alone():
    network, prompt, null = star(), prompts(2, 5), prompts(3, 3, seed=1)
    with torch.inference_mode():
        found = network(network.request(prompt, null).rows(network, 2), inputs(2).repeat(2, 1, 1))
        for row, (texts, number) in enumerate([(prompt, 0), (prompt, 1), (null, 0), (null, 1)]):
            one = texts.of_rows([number])
            expected = published(network, one.features[0], one.pooled[0], inputs(2)[number])
            torch.testing.assert_close(found[row], expected, atol=3e-5, rtol=1e-4)


def test_scale_by_scale_with_a_cache_has_the_logits_of_one_pass():
    network, given = star(), inputs(4)
    with torch.inference_mode():
        request = network.request(prompts(2, 5), prompts(3, 3, seed=1)).rows(network, 2)
        memory, cache, parts, at = network.condition(request), network.new_cache(4), [], 0
        for scale, side in enumerate(SIDES):
            some = None if scale == 0 else given[:, at - 1 : at - 1 + side**2]
            parts.append(network.hidden(memory, some, scales=range(scale, scale + 1), cache=cache))
            at += side**2
        found = network.logits(memory, torch.cat(parts, dim=1))
        torch.testing.assert_close(found, network(request, given), atol=2e-5, rtol=1e-4)


def published_file(network, **more):
    tensors = {**network.state_dict(), "class_emb.weight": torch.zeros(1001, 32), **more}
    for layer in range(network.config.depth):
        for kind in ("attn", "cross_attn"):
            tensors[f"blocks.{layer}.{kind}.zero_k_bias"] = torch.zeros(32)
    return tensors


def test_a_published_file_becomes_the_network():
    given = {"patch_nums": list(SIDES), "text_longest": 8}
    network = backbone_from_tensors("star", published_file(star()), given, "star.pth")
    assert network.config == star().config
    assert torch.equal(network.head_logits.weight, star().head_logits.weight)


def test_the_sampler_model_is_refused():
    with pytest.raises(ValueError, match="second head"):
        backbone_from_tensors("star", published_file(star(), **{"head_logits2.weight": torch.zeros(1)}), {}, "star.pth")


def test_it_has_no_null_text_of_its_own():
    assert not star().text.learned_null
    with pytest.raises(ValueError, match="negative prompt"):
        star().request(prompts(2))
