"""The networks of LlamaGen's golden cases, and smaller ones, which several folders of tests share."""

import torch
from golden.cases import fill, load_case
from golden.recipe import fill_
from runs import run_with

from var_toolkit.models.llamagen import RasterGPT, RasterGPTConfig
from var_toolkit.tokenizers.raster_vq import RasterVQ, RasterVQConfig, tokenizer_from_tensors


def golden_gpt() -> RasterGPT:
    """The transformer of the golden cases: 10 classes, 64 codes, 4 x 4 tokens."""
    sizes = {"depth": 3, "embed_dim": 128, "num_heads": 4, "num_classes": 10, "vocab_size": 64, "side": 4}
    return fill(RasterGPT(RasterGPTConfig(**sizes)))


def vq_tensors() -> dict[str, torch.Tensor]:
    """The state dict of the golden tokenizer, under the published names."""
    shapes = load_case("llamagen-vq").facts["state_dict"]["vq"]
    return fill_({name: torch.zeros(shape) for name, (shape, _) in shapes.items()})


def golden_vq() -> RasterVQ:
    """The tokenizer of the golden cases: 64 px, 64 codes."""
    return tokenizer_from_tensors(vq_tensors(), {}, (4,), "vq_ds16_c2i.pt")


def tiny_gpt_config(**changes) -> RasterGPTConfig:
    """Five classes, 3 x 3 tokens of 16 codes."""
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_hidden": 48, "num_classes": 5, "vocab_size": 16}
    return RasterGPTConfig(**{**sizes, "side": 3, **changes})


def tiny_gpt(**changes) -> RasterGPT:
    """A network in which every part affects the output; at initialisation all tokens are equally likely."""
    return fill(RasterGPT(tiny_gpt_config(**changes)))


def tiny_vq(**changes) -> RasterVQ:
    """Images of 6 px as 3 x 3 tokens of 16 codes."""
    sizes = {"vocab_size": 16, "code_dim": 4, "z_channels": 8, "ch": 8, "ch_mult": (1, 1), "num_res_blocks": 1}
    return fill(RasterVQ(RasterVQConfig(**{**sizes, "side": 3, "norm_groups": 4, **changes})))


plan_of = run_with
