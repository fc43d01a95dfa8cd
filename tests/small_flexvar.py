"""Small FlexVARs, which several folders of tests share."""

import torch
from golden.cases import fill
from small_llamagen import tiny_vq

from var_toolkit.models.flexvar import FlexVAR, FlexVARConfig
from var_toolkit.pipeline import Pipeline


def small_flexvar(depth: int = 2, **changes) -> FlexVAR:
    """A network in which every part affects the output: 5 classes, 16 codes, maps of up to 3 x 3 tokens."""
    sizes = {"embed_dim": 32, "num_heads": 2, "num_classes": 5, "vocab_size": 16, "latent_channels": 4}
    return fill(FlexVAR(FlexVARConfig(**{"depth": depth, "patch_nums": (1, 2, 3), **sizes, **changes})))


def small_flexvar_pipe(**changes) -> Pipeline:
    """A pipeline of it, for images of 6 px by default, two pixels for a token."""
    network = small_flexvar(**changes)
    torch.manual_seed(0)
    return Pipeline(tiny_vq().for_schedule(network.scales), network)
