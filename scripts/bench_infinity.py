"""Times the transformer of Infinity-2B against the published code, in one process, on the same prompt.

    git clone https://github.com/FoundationVision/Infinity
    python scripts/bench_infinity.py --published Infinity

Both have random weights in bfloat16 and draw the first maps of a square image of 512 px with guidance. The published
code computes the keys and values of the text at every scale, here they are computed once. Needs 10 GB of memory.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.bits import Bits
from var_toolkit.models.infinity import Infinity, InfinityConfig
from var_toolkit.models.layers.aspect_ratios import BY_RATIO
from var_toolkit.tokenizers.bsq import MultiScaleBSQ, MultiScaleBSQConfig

SIZES = {"depth": 32, "embed_dim": 2048, "num_heads": 16}
CFG, TAU, BITS = 4.0, 0.5, 32


def ours(features: Tensor, maps: int) -> Any:
    """A function that draws `maps` maps and returns the bytes of the cache."""
    network = made(lambda: Infinity(InfinityConfig(**SIZES)))
    schedule = Schedule(BY_RATIO[1.0].patch_nums[:maps])
    tokenizer = MultiScaleBSQ(MultiScaleBSQConfig(ch=8, norm_groups=8)).for_tokens(schedule, BITS)
    head = Bits(top_p=0.97, temperature=TAU)
    run = run_of(tokenizer, network, schedule=schedule, guidance=CFG - 1, head=head)
    prompt = PromptEmbeds(features[None], torch.ones(1, len(features), dtype=torch.bool))

    def draw(seed: int) -> int:
        return decode(run, network.request(prompt), Noise([seed])).cache_bytes

    return torch.inference_mode()(draw)


def theirs(folder: Path, features: Tensor, maps: int) -> Any:
    """The same of the published code, whose kernels for CUDA are replaced by torch's attention."""
    sys.path.insert(0, str(folder))
    flash = ModuleType("flash_attn")
    flash.flash_attn_func = lambda q, k, v: None  # type: ignore[attr-defined]  # asked for, not used
    flash.flash_attn_varlen_kvpacked_func = attention_of_texts  # type: ignore[attr-defined]
    sys.modules["flash_attn"] = flash
    from infinity.models import basic
    from infinity.models.infinity import Infinity as Published

    quantizer = SimpleNamespace(lfq=SimpleNamespace(mask=None, indices_to_codes=codes), z_interplote_up="trilinear")
    tokenizer = SimpleNamespace(embed_dim=BITS, quantizer=quantizer)
    network: Any = made(
        lambda: Published(
            tokenizer, text_channels=features.shape[1], text_maxlen=512, mlp_ratio=4, block_chunks=8, shared_aln=True,
            fused_norm=True, pad_to_multiplier=1, rope2d_each_sa_layer=1, rope2d_normalized_by_hw=2,
            add_lvl_embeding_only_first_block=1, use_bit_label=1, inference_mode=True, **SIZES,
        )
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()  # as autocast computes it on CUDA
    schedule, lengths, seen = [(1, h, w) for h, w in BY_RATIO[1.0].maps[:10]], [len(features)], []
    ends = torch.tensor([0, *lengths], dtype=torch.int32)
    switch = basic.SelfAttention.kv_caching

    def kv_caching(layer: Any, enable: bool) -> None:
        if not enable and layer.cached_k is not None:
            seen.append(layer.cached_k.nbytes + layer.cached_v.nbytes)
        switch(layer, enable)

    basic.SelfAttention.kv_caching = kv_caching

    def draw(seed: int) -> int:
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            network.autoregressive_infer_cfg(
                tokenizer, schedule, (features, lengths, ends, len(features)), 1, g_seed=seed, cfg_list=[CFG] * 10,
                tau_list=[TAU] * 10, top_p=0.97, returns_vemb=1, vae_type=1, cfg_insertion_layer=[0], trunk_scale=maps,
                inference_mode=True,
            )  # fmt: skip
        return sum(seen)

    return torch.inference_mode()(draw)


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with random weights, made without its own initialisation, which takes minutes."""
    kinds = (nn.Linear, nn.Embedding, nn.LayerNorm)
    some = 0.02 * torch.randn(1_000_003)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(patch.object(kind, "reset_parameters", lambda layer: None))
        stack.enter_context(patch.object(nn.init, "trunc_normal_", lambda tensor, **settings: tensor))
        stack.enter_context(redirect_stdout(StringIO()))
        network = build()
    for parameter in network.parameters():
        for part in parameter.data.view(-1).split(len(some)):
            part.copy_(some[: len(part)])
    return network.eval()


def attention_of_texts(
    q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *args: Any, softmax_scale: float, **more: Any
) -> Tensor:
    """Attention of packed sequences (N, H, D) to packed texts (N, 2, H, D)."""
    found = []
    for row in range(len(cu_seqlens_q) - 1):
        own, text = (slice(ends[row], ends[row + 1]) for ends in (cu_seqlens_q.tolist(), cu_seqlens_k.tolist()))
        k, v = kv[text].unbind(1)
        each = (one.transpose(0, 1)[None] for one in (q[own], k, v))
        found.append(F.scaled_dot_product_attention(*each, scale=softmax_scale)[0].transpose(0, 1))
    return torch.cat(found)


def codes(bits: Tensor, label_type: str) -> Tensor:
    """Bits (B, 1, h, w, d) -> codes (B, d, 1, h, w)."""
    return ((bits.float() * 2 - 1) / BITS**0.5).permute(0, 4, 1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="a checkout of FoundationVision/Infinity")
    parser.add_argument("--maps", type=int, default=2, help="maps of the schedule that are drawn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--words", type=int, default=50, help="text tokens of the prompt")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    features = torch.randn(args.words, 2048)
    both = {"ours": ours(features, args.maps), "published": theirs(args.published, features, args.maps)}
    seconds: dict[str, list[float]] = {name: [] for name in both}
    cache = {name: draw(0) for name, draw in both.items()}  # once for warming up
    for seed in range(args.rounds):
        for name, draw in both.items():
            begun = time.perf_counter()
            draw(seed)
            seconds[name].append(time.perf_counter() - begun)
    for name, times in seconds.items():
        print(f"{name}: {median(times):.2f} s ({min(times):.2f} to {max(times):.2f}), cache {cache[name]:,} bytes")
    ratios = [other / own for own, other in zip(seconds["ours"], seconds["published"], strict=True)]
    print(f"published / ours: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of the time")
    print(f"ours / published: {cache['ours'] / cache['published']:.3f} of the cache")


if __name__ == "__main__":
    main()
