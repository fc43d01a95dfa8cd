"""A next-token model so small that all of its sequences can be listed: two codes, 3 x 3 tokens."""

from itertools import product

import torch
from torch import Tensor

from var_toolkit.core.next_token import choices
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Stage
from var_toolkit.methods.speculative.engine import Speculation
from var_toolkit.methods.speculative.tally import Tally
from var_toolkit.models.draft_heads import EagleHead, EagleHeadConfig
from var_toolkit.models.llamagen import RasterGPT, RasterGPTConfig

CODES, SIDE = 2, 3
SIZES = {"embed_dim": 16, "num_heads": 2, "mlp_hidden": 24, "vocab_size": CODES, "side": SIDE}
SEQUENCES = torch.tensor(list(product(range(CODES), repeat=SIDE**2)))


def toy(seed: int, depth: int = 2, **changes: int) -> RasterGPT:
    """A network with opinions: what it likes depends on all tokens before."""
    return _with_opinions(RasterGPT(RasterGPTConfig(depth=depth, num_classes=2, **{**SIZES, **changes})), seed)


def toy_head(seed: int) -> EagleHead:
    """A head that has learnt nothing."""
    return _with_opinions(EagleHead(EagleHeadConfig(**SIZES)), seed)


def _with_opinions(network, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.5, generator=generator)
    return network.eval()


def rows(stage: Stage, images: int) -> Tensor:
    """Labels of as many images of class 0."""
    labels = torch.zeros(images, dtype=torch.int64)
    return labels if stage.rows == 1 else torch.cat((labels, torch.full_like(labels, 2)))


def truth(stage: Stage) -> Tensor:
    """The probability of every sequence."""
    with torch.inference_mode():
        logits = stage.backbone(rows(stage, len(SEQUENCES)), SEQUENCES[:, :-1].repeat(stage.rows, 1))
        places = torch.arange(SIDE**2).expand(len(SEQUENCES), -1)
        chosen = choices(stage, logits, places).log_softmax(-1)
    return chosen.gather(-1, SEQUENCES.unsqueeze(-1)).sum((1, 2)).exp()


def distance(tokens_BL: Tensor, chances: Tensor) -> float:
    """Total variation of the last five tokens from the truth: what went wrong earlier shows there, with less noise."""
    endings = CODES**5
    index = (tokens_BL[:, -5:] * CODES ** torch.arange(4, -1, -1)).sum(1)
    shares = torch.bincount(index, minlength=endings) / len(tokens_BL)
    return float((shares - chances.view(-1, endings).sum(0)).abs().sum() / 2)


def drawn(speculation: Speculation, stage: Stage, seeds: range) -> tuple[Tensor, Tally]:
    """Maps of class 0, a seed each."""
    with torch.inference_mode():
        return speculation.draw(stage, rows(stage, len(seeds)), Noise(seeds))
