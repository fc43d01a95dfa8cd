"""Small FlowARs and a small autoencoder, which several folders of tests share."""

import torch
from golden.cases import fill

from var_toolkit.core.bind import Run, run_of
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.flow import Flow
from var_toolkit.models.ecar import ECAR, ECARConfig
from var_toolkit.models.flowar import FlowAR, FlowARConfig
from var_toolkit.tokenizers.kl import KLConfig, KLTokenizer


def golden_flowar(cross: bool) -> FlowAR:
    """The network of the golden cases, whose maps are enlarged to 16 x 16 first."""
    sizes = {"embed_dim": 64, "encoder_depth": 2, "decoder_depth": 2, "num_heads": 2, "head_width": 128}
    return fill(FlowAR(FlowARConfig(patch_nums=(1, 2, 4), input_side=16, cross_attention=cross, **sizes)))


def tiny_config(**changes) -> FlowARConfig:
    """Five classes, maps of side 1, 2 and 3 with four channels."""
    sizes = {"embed_dim": 32, "encoder_depth": 1, "decoder_depth": 2, "num_heads": 2, "head_width": 64, "head_depth": 2}
    return FlowARConfig(**{"num_classes": 5, "patch_nums": (1, 2, 3), "latent_channels": 4, **sizes, **changes})


def tiny_flowar(**changes) -> FlowAR:
    """A network in which every part affects the output; at the published initialisation block gates are almost 0."""
    network = fill(FlowAR(tiny_config(**changes)))
    torch.nn.init.normal_(network.class_emb.weight, generator=torch.Generator().manual_seed(0))
    return network


def tiny_ecar() -> ECAR:
    """A network of maps of side 1, 2 and 4 in which every part affects the output."""
    return fill(ECAR(ECARConfig(**vars(tiny_config(patch_nums=(1, 2, 4)))))).eval()


def tiny_kl(*patch_nums: int, **changes) -> KLTokenizer:
    """An autoencoder of four channels and two pixels per latent position; its scaling is 0.5."""
    scales = Schedule(patch_nums or (1, 2, 3))
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    torch.manual_seed(0)
    return KLTokenizer(KLConfig(**{**sizes, "sample_size": 2 * scales.finest, **changes}).build(0.5), scales).eval()


def plan_of(tokenizer, backbone, flow: Flow | None = None, **settings) -> Run:
    """A run of one network."""
    return run_of(tokenizer, backbone, head=flow or Flow(steps=4), **settings)
