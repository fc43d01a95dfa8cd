"""The transformer of Infinity as published beside ours: the first maps of one image of 512 px, with guidance.

Both have random weights in bfloat16, which take 10 GB for both networks of 2B. The published code computes the keys and
values of the text at every scale, here they are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.schedule import Schedule
from var_toolkit.evaluation.bench.peer_rows import Peer
from var_toolkit.evaluation.bench.published_code import Draw, importable, made
from var_toolkit.heads.bits import Bits
from var_toolkit.models.infinity import Infinity, InfinityConfig
from var_toolkit.models.layers.aspect_ratios import BY_RATIO
from var_toolkit.tokenizers.bsq import MultiScaleBSQ, MultiScaleBSQConfig

SIZES: dict[str, dict[str, Any]] = {"infinity-2b": {"depth": 32, "embed_dim": 2048, "num_heads": 16}}
CFG, TAU, TOP_P, BITS = 4.0, 0.5, 0.97, 32
MAPS, WORDS, CHANNELS = 2, 50, 2048  # maps that are drawn; tokens of the prompt and their features
PUBLISHED = {
    "text_channels": CHANNELS, "text_maxlen": 512, "mlp_ratio": 4, "block_chunks": 8, "shared_aln": True,
    "fused_norm": True, "pad_to_multiplier": 1, "rope2d_each_sa_layer": 1, "rope2d_normalized_by_hw": 2,
    "add_lvl_embeding_only_first_block": 1, "use_bit_label": 1, "inference_mode": True,
}  # fmt: skip


@contextmanager
def infinity(folder: Path, peer: Peer, device: torch.device) -> Iterator[Mapping[str, Draw]]:
    """Both transformers. ValueError for a device other than the CPU, for which the published attention is replaced."""
    if device.type != "cpu":
        raise ValueError(f"Infinity's published code is compared on the CPU only, not on {device.type}")
    flash = ModuleType("flash_attn")  # its kernels are for CUDA
    flash.flash_attn_func = lambda q, k, v: None  # type: ignore[attr-defined]  # asked for, not used
    flash.flash_attn_varlen_kvpacked_func = attention_of_texts  # type: ignore[attr-defined]
    features = torch.randn(WORDS, CHANNELS, generator=torch.Generator().manual_seed(0)).bfloat16()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with importable(folder, flash_attn=flash):
            sizes = SIZES[peer.model]
            yield {"ours": _ours(features, sizes), "published": _theirs(features, sizes)}
    finally:
        torch.set_default_dtype(default)


def _ours(features: Tensor, sizes: dict[str, Any]) -> Draw:
    network: Any = made(lambda: Infinity(InfinityConfig(**sizes)))
    schedule = Schedule(BY_RATIO[1.0].patch_nums[:MAPS])
    tokenizer = MultiScaleBSQ(MultiScaleBSQConfig(ch=8, norm_groups=8)).for_tokens(schedule, BITS)
    head = Bits(top_p=TOP_P, temperature=TAU)
    run = run_of(tokenizer, network, schedule=schedule, guidance=CFG - 1, head=head)
    prompt = PromptEmbeds(features[None], torch.ones(1, len(features), dtype=torch.bool))

    @torch.inference_mode()
    def draw(seed: int) -> object:
        return decode(run, network.request(prompt), Noise([seed]))

    return draw


def _theirs(features: Tensor, sizes: dict[str, Any]) -> Draw:
    quantizer = SimpleNamespace(lfq=SimpleNamespace(mask=None, indices_to_codes=codes), z_interplote_up="trilinear")
    tokenizer = SimpleNamespace(embed_dim=BITS, quantizer=quantizer)
    published = import_module("infinity.models.infinity").Infinity
    network: Any = made(lambda: published(tokenizer, **PUBLISHED, **sizes))
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()  # as autocast computes it on CUDA
    schedule, length = [(1, h, w) for h, w in BY_RATIO[1.0].maps[:10]], len(features)
    text = (features, [length], torch.tensor([0, length], dtype=torch.int32), length)

    @torch.inference_mode()
    def draw(seed: int) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return network.autoregressive_infer_cfg(
                tokenizer, schedule, text, 1, g_seed=seed, cfg_list=[CFG] * 10, tau_list=[TAU] * 10, top_p=TOP_P,
                returns_vemb=1, vae_type=1, cfg_insertion_layer=[0], trunk_scale=MAPS, inference_mode=True,
            )  # fmt: skip

    return draw


def attention_of_texts(
    q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *args: Any, softmax_scale: float, **more: Any
) -> Tensor:
    """Attention of packed sequences (N, H, D) to packed texts (N, 2, H, D)."""
    found = []
    for row in range(len(cu_seqlens_q) - 1):
        own, text = (slice(ends[row], ends[row + 1]) for ends in (cu_seqlens_q.tolist(), cu_seqlens_k.tolist()))
        query, key, value = (one.transpose(0, 1)[None] for one in (q[own], *kv[text].unbind(1)))
        found.append(F.scaled_dot_product_attention(query, key, value, scale=softmax_scale)[0].transpose(0, 1))
    return torch.cat(found)


def codes(bits: Tensor, label_type: str) -> Tensor:
    """Bits (B, 1, h, w, d) -> codes (B, d, 1, h, w)."""
    return ((bits.float() * 2 - 1) / BITS**0.5).permute(0, 4, 1, 2, 3)
