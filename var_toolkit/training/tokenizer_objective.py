"""Trains tokenizers with a codebook: reconstruction, quantiser, perceptual and adversarial terms."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_type_hints

import torch
from torch import Tensor

from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ
from var_toolkit.training.batches import Batch
from var_toolkit.training.codebook_upkeep import CodebookHits, Coded, initialise_codebook, revive, usage
from var_toolkit.training.data_sources import images_of, require_size
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.reconstruction import ReconstructionObjective, ReconstructionOptions, images
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from

FIRST_IMAGES = 64  # number of images whose residuals initialise the codebook


@dataclass(frozen=True)
class TokenizerOptions(ReconstructionOptions):
    """The weight of the quantiser's loss, and the revival of unused codes."""

    quantiser: float = 1.0
    train_only: Literal["all", "decoder"] = "all"
    revive_every: int = 100  # steps without use after which a code is moved; 0: never
    revive_until: float = 0.7  # share of the run during which codes may be moved

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_not_negative("quantiser", "revive_every")
        if self.train_only == "decoder" and self.initial is None:
            raise ValueError("train_only: decoder needs initial, the directory of a trained tokenizer")


@objective("tokenizer")
class TokenizerObjective(ReconstructionObjective):
    """Reconstruction through the quantiser.

    With `train_only: decoder`, encoder, quant_conv and quantize are frozen. Token ids do not change, so transformers
    trained on them remain valid while decoder and post_quant_conv learn sharper images.
    """

    name = "tokenizer"
    options_type = TokenizerOptions
    options: TokenizerOptions
    network_type: ClassVar[Any] = MultiScaleVQ
    autoencoder: Coded
    record: CodebookHits
    log_note = "codebook_used counts codes with a hit since the previous such line; coarse scales use few codes"

    @classmethod
    def config_type(cls) -> type:
        return cast(type, get_type_hints(cls.network_type.__init__)["config"])

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options = recipe, recipe.objective_options
        tokenizer = self.empty_network().to(workplace.team.device)
        require_size(recipe.data, tokenizer.image_side)
        start_from(tokenizer, self.options.initial)
        self._open(tokenizer, workplace)
        self.source, self.held_out = images_of(recipe, workplace, flat=True)
        self.record = CodebookHits(len(tokenizer.scales), recipe.model.vocab_size).to(workplace.team.device)
        self._prepare(tokenizer)
        self.last_revival = self.options.revive_until * recipe.total_steps(len(self.source))

    def _prepare(self, tokenizer: Coded) -> None:
        """Freeze parts that are not trained; initialise a new codebook."""
        self.freeze(tokenizer)
        if self.options.initial is None:
            # Spread over all images, because neighbours in class folders have the same class.
            rows = torch.linspace(0, len(self.source) - 1, min(len(self.source), FIRST_IMAGES)).long()
            first = next(iter(self.source.batches([rows], 0)))
            draws = Draws(self.recipe.seed, 0, 0, 1, len(rows), rows.device)
            initialise_codebook(tokenizer, images(first), draws)

    def freeze(self, network: Any) -> None:
        """Leave the tokens as they are, if only the decoder is trained."""
        if self.options.train_only == "decoder":
            for part in (network.encoder, network.quant_conv, network.quantize):
                part.requires_grad_(False)

    def empty_network(self) -> Coded:
        return cast(Coded, self.network_type(self.recipe.model))

    def _reconstructed(self, real: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        result = self.networks["tokenizer"](real)
        self.record.count(result.tokens)
        loss = result.quantizer_loss
        return result.images, self.options.quantiser * loss, {"quantiser": loss}

    def _last_weight(self) -> Tensor:
        return self.autoencoder.decoder.conv_out.weight

    def after_step(self, batch: Batch, draws: Draws) -> dict[str, float]:
        done, every = draws.step + 1, self.options.revive_every
        if not every or done % every:
            return {}
        hits_SV = self.record.take()
        if self.options.train_only == "all" and done < self.last_revival:
            revive(self.autoencoder, hits_SV.sum(0) == 0, images(batch), draws)
        return usage(hits_SV)
