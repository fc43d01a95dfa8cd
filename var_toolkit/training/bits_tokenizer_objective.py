"""Trains the bitwise tokenizer of Infinity (arXiv 2412.04431, section 3.1), whose codes have no weights."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from var_toolkit.tokenizers.bsq import MultiScaleBSQ, MultiScaleBSQConfig
from var_toolkit.training.data_sources import images_of, require_size
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.reconstruction import ReconstructionObjective, ReconstructionOptions
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from


@dataclass(frozen=True)
class BitsTokenizerOptions(ReconstructionOptions):
    """Weights of what the quantiser adds to the loss, and how soft its bits are for the entropy term."""

    commitment: float = 0.25
    entropy: float = 0.001  # as published: 0.1 over a sharpness of 100
    sharpness: float = 100.0
    train_only: Literal["all", "decoder"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("commitment", "entropy", "sharpness")
        if self.train_only == "decoder" and self.initial is None:
            raise ValueError("train_only: decoder needs initial, the directory of a trained tokenizer")


@objective("bits-tokenizer")
class BitsTokenizerObjective(ReconstructionObjective):
    """Reconstruction through bits.

    With `train_only: decoder` the encoder is frozen. Bits do not change, so transformers trained on them remain valid
    while the decoder learns sharper images.
    """

    name = "tokenizer"
    options_type = BitsTokenizerOptions
    options: BitsTokenizerOptions
    autoencoder: MultiScaleBSQ
    log_note = "balance is the entropy of the bits of a batch, 1 where each is as often 0 as 1"

    @classmethod
    def config_type(cls) -> type:
        return MultiScaleBSQConfig

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options = recipe, recipe.objective_options
        tokenizer = self.empty_network().to(workplace.team.device)
        require_size(recipe.data, tokenizer.image_side)
        start_from(tokenizer, self.options.initial)
        self._open(tokenizer, workplace)
        self.record = nn.Module()
        self.source, self.held_out = images_of(recipe, workplace, flat=True)
        self.freeze(tokenizer)

    def freeze(self, network: Any) -> None:
        """Leave the tokens as they are, if only the decoder is trained."""
        network.encoder.requires_grad_(self.options.train_only == "all")

    def empty_network(self) -> MultiScaleBSQ:
        return MultiScaleBSQ(self.recipe.model)

    def _reconstructed(self, real: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        o, found = self.options, self.networks["tokenizer"](real, self.options.sharpness)
        added = o.commitment * found.commitment + o.entropy * found.entropy
        terms = {"commitment": found.commitment, "entropy": found.entropy, "balance": _balance(found.tokens)}
        return found.images, added, terms

    def _last_weight(self) -> Tensor:
        return self.autoencoder.decoder.conv_out.weight


def _balance(bits: list[Tensor]) -> Tensor:
    """The entropy of each bit over the tokens of a scale, in bits, averaged over bits and scales."""
    shares = torch.stack([one.float().mean((0, 1)) for one in bits])
    return torch.special.entr(torch.stack((shares, 1 - shares))).sum(0).mean() / torch.tensor(2.0).log()
