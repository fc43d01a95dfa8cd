"""A next-token model so small that all of its sequences can be listed: two codes, 3 x 3 tokens."""

from itertools import product

import torch
from torch import Tensor

from var_toolkit.conditions.condition import Request, of_labels
from var_toolkit.core.noise import Noise
from var_toolkit.methods.speculative.tally import Tally
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.verify import Rounds, Speculation, speculate
from var_toolkit.models.draft_heads import EagleHead, EagleHeadConfig
from var_toolkit.models.llamagen import RasterGPT, RasterGPTConfig
from var_toolkit.models.medusa_heads import HydraHeads, MedusaHeads, MedusaHeadsConfig

CODES, SIDE = 2, 3
SIZES = {"embed_dim": 16, "num_heads": 2, "mlp_hidden": 24, "vocab_size": CODES, "side": SIDE}
SEQUENCES = torch.tensor(list(product(range(CODES), repeat=SIDE**2)))


def toy(seed: int, depth: int = 2, **changes: int) -> RasterGPT:
    """A network with opinions: what it likes depends on all tokens before."""
    return _with_opinions(RasterGPT(RasterGPTConfig(depth=depth, num_classes=2, **{**SIZES, **changes})), seed)


def toy_head(seed: int) -> EagleHead:
    """A head that has learnt nothing."""
    return _with_opinions(EagleHead(EagleHeadConfig(**SIZES)), seed)


def toy_heads(seed: int, kind: type[MedusaHeads] = HydraHeads) -> MedusaHeads:
    """Heads that have learnt nothing."""
    return _with_opinions(kind(MedusaHeadsConfig(SIZES["embed_dim"], CODES, heads=3, hidden=8)), seed)


def _with_opinions(network, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.5, generator=generator)
    return network.eval()


def request(images: int) -> Request:
    """As many images of class 0."""
    return of_labels(torch.zeros(images, dtype=torch.int64), 2)


def truth(sampling: TokenSampling) -> Tensor:
    """The probability of every sequence."""
    with torch.inference_mode():
        labels = request(len(SEQUENCES)).rows(None, sampling.rows).labels
        logits = sampling.network(labels, SEQUENCES[:, :-1].repeat(sampling.rows, 1))
        positions = torch.arange(SIDE**2).expand(len(SEQUENCES), -1)
        chosen = sampling.head.probabilities(sampling.choices(logits, positions)).log()
    return chosen.gather(-1, SEQUENCES.unsqueeze(-1)).sum((1, 2)).exp()


def distance(tokens_BL: Tensor, chances: Tensor) -> float:
    """Total variation of the last five tokens from the truth: what went wrong earlier shows there, with less noise."""
    endings = CODES**5
    index = (tokens_BL[:, -5:] * CODES ** torch.arange(4, -1, -1)).sum(1)
    shares = torch.bincount(index, minlength=endings) / len(tokens_BL)
    return float((shares - chances.view(-1, endings).sum(0)).abs().sum() / 2)


def drawn(speculation: Speculation, sampling: TokenSampling, seeds: range, draft=None) -> tuple[Tensor, Tally]:
    """Maps of class 0, a seed each; `draft` is the network that drafts."""
    rounds = Rounds(sampling, request(len(seeds)), Noise(seeds), networks={"draft": draft})
    return rounds.tokens_BL, speculate(rounds, speculation, speculation.rule)
