"""Trains the multi-scale tokenizer: reconstruction, quantiser, perceptual and adversarial terms."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.evaluation.classifier import StillLifeClassifier
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig
from var_toolkit.training.batches import Batch
from var_toolkit.training.codebook_upkeep import CodebookHits, initialise_codebook, revive, usage
from var_toolkit.training.data_sources import pictures_of, require_size
from var_toolkit.training.discriminator import PatchDiscriminator, hinge_loss
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import Loss, Objective, Phase, Workplace
from var_toolkit.training.perceptual import PerceptualDistance
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import network_from, start_from

FIRST_PICTURES = 64  # whose residuals become the first codes


@dataclass(frozen=True)
class TokenizerOptions:
    """Weights of the loss terms (0 switches a term off) and what keeps the codebook alive."""

    l1: float = 0.2
    l2: float = 1.0
    quantiser: float = 1.0
    perceptual: float = 0.0
    perceptual_network: str | None = None  # directory of a trained still-life classifier
    adversarial: float = 0.0
    adversarial_start: int = 0  # first step of the generator's adversarial term
    adaptive: bool = False  # scale the adversarial term to the reconstruction's gradient at the last layer
    discriminator_width: int = 32
    initial: str | None = None  # directory of weights to start from
    train_only: Literal["all", "decoder"] = "all"
    revive_every: int = 100  # steps without a hit after which a code is moved; 0 for never
    revive_until: float = 0.7  # share of the run during which codes may be moved

    def __post_init__(self) -> None:
        for name in ("l1", "l2", "quantiser", "perceptual", "adversarial", "adversarial_start", "revive_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.perceptual and self.perceptual_network is None:
            raise ValueError("perceptual needs perceptual_network: the directory of a trained still-life classifier")
        if self.train_only == "decoder" and self.initial is None:
            raise ValueError("train_only: decoder needs initial: the directory of a trained tokenizer")


@objective("tokenizer")
class TokenizerObjective(Objective):
    """Generator phase, and a discriminator phase once the adversarial term is on.

    With `train_only: decoder` encoder, quant_conv and quantize are frozen: token ids stay what they are, so that a
    transformer trained on them stays valid while decoder and post_quant_conv learn sharper pictures.
    """

    options_type = TokenizerOptions
    record: CodebookHits
    log_note = "codebook_used counts codes with at least one hit since the last such line; coarse scales use few codes"

    @classmethod
    def config_type(cls) -> type:
        return MultiScaleVQConfig

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        if recipe.parallel == "fsdp":
            raise ValueError(f"{where}: parallel is 'fsdp'; the tokenizer objective trains with ddp only")

    def __init__(self, recipe: Recipe, workplace: Workplace) -> None:
        self.recipe, self.options = recipe, recipe.objective_options
        device = workplace.team.device
        self.tokenizer = self.empty_network().to(device)
        require_size(recipe.data, self.tokenizer.picture_side)
        start_from(self.tokenizer, self.options.initial)
        self.distance = self._distance().to(device) if self.options.perceptual else None
        self.source, self.held_out = pictures_of(recipe, workplace)
        self.record = CodebookHits(len(self.tokenizer.scales), recipe.model.vocab_size).to(device)
        self.networks = {"tokenizer": self.tokenizer}
        self._prepare()
        self.discriminator: PatchDiscriminator | None = None
        if self.options.adversarial:
            self.discriminator = PatchDiscriminator(self.options.discriminator_width).to(device)
            self.networks["discriminator"] = self.discriminator
        self.last_revival = self.options.revive_until * recipe.total_steps(len(self.source))

    def _prepare(self) -> None:
        """Freezes what is not trained, or gives a new codebook its first codes."""
        if self.options.train_only == "decoder":
            for part in (self.tokenizer.encoder, self.tokenizer.quant_conv, self.tokenizer.quantize):
                part.requires_grad_(False)
        if self.options.initial is None:
            # Spread over all pictures: in class folders, neighbours are of one class.
            rows = torch.linspace(0, len(self.source) - 1, min(len(self.source), FIRST_PICTURES)).long()
            first = next(iter(self.source.batches([rows], 0)))
            draws = Draws(self.recipe.seed, 0, 0, 1, len(rows), rows.device)
            assert first.pictures is not None
            initialise_codebook(self.tokenizer, first.pictures, draws)

    def _distance(self) -> PerceptualDistance:
        classifier = network_from(self.options.perceptual_network, StillLifeClassifier, what="perceptual_network")
        return PerceptualDistance(classifier)

    def empty_network(self) -> MultiScaleVQ:
        return MultiScaleVQ(self.recipe.model)

    def phases(self, step: int) -> list[Phase]:
        adversary = self.discriminator is not None and step >= self.options.adversarial_start
        made = _Made()

        def generator(batch: Batch, draws: Draws) -> Loss:
            return self._generator_loss(batch, made, adversary)

        def critic(batch: Batch, draws: Draws) -> Loss:
            return self._critic_loss(batch, made)

        first = Phase(("tokenizer",), generator)
        return [first, Phase(("discriminator",), critic)] if self.discriminator is not None else [first]

    def _generator_loss(self, batch: Batch, made: "_Made", adversary: bool) -> Loss:
        real, o = _pictures(batch), self.options
        result = self.networks["tokenizer"](real)
        made.pictures = result.pictures.detach()
        self.record.count(result.tokens)
        pictures = result.pictures.float()
        terms = {"l1": F.l1_loss(pictures, real), "l2": F.mse_loss(pictures, real), "quantiser": result.quantizer_loss}
        total = o.l1 * terms["l1"] + o.l2 * terms["l2"]
        if self.distance is not None:
            terms["perceptual"] = self.distance(pictures, real)
            total = total + o.perceptual * terms["perceptual"]
        if adversary and self.discriminator is not None:
            terms["adversarial"] = -self.discriminator(pictures).mean()
            strength = self._balance(total, terms["adversarial"]) if o.adaptive else 1.0
            total = total + o.adversarial * strength * terms["adversarial"]
        total = total + o.quantiser * result.quantizer_loss
        psnr = -10 * torch.log10(terms["l2"].detach() / 4)
        return Loss(total, {"loss": total.detach(), "psnr": psnr} | {k: v.detach() for k, v in terms.items()})

    def _balance(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Ratio of gradient norms at the decoder's last convolution (VQGAN, arXiv 2012.09841, equation 7)."""
        weight = self.tokenizer.decoder.conv_out.weight
        norms = [torch.autograd.grad(x, weight, retain_graph=True)[0].norm() for x in (reconstruction, adversarial)]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()

    def _critic_loss(self, batch: Batch, made: "_Made") -> Loss:
        both = torch.cat([_pictures(batch), made.pictures.float()]).contiguous(memory_format=torch.channels_last)
        real, fake = self.networks["discriminator"](both).chunk(2)
        loss = hinge_loss(real, fake)
        verdicts = {"verdict_real": real.detach().mean(), "verdict_fake": fake.detach().mean()}
        return Loss(loss, {"critic": loss.detach(), **verdicts})

    def after_step(self, batch: Batch, draws: Draws) -> dict[str, float]:
        done, every = draws.step + 1, self.options.revive_every
        if not every or done % every:
            return {}
        hits_SV = self.record.take()
        if self.options.train_only == "all" and done < self.last_revival:
            revive(self.tokenizer, hits_SV.sum(0) == 0, _pictures(batch), draws)
        return usage(hits_SV)

    def validate(self, network: nn.Module) -> dict[str, float]:
        errors = [self._errors(network, _pictures(batch)) for batch in self.held_out]
        return {"psnr": float((-10 * torch.log10(torch.cat(errors) / 4)).mean())} if errors else {}

    @staticmethod
    def _errors(network: nn.Module, pictures: Tensor) -> Tensor:
        assert isinstance(network, MultiScaleVQ)
        return (network.reconstruct(pictures) - pictures).square().mean((1, 2, 3))

    def preview(self, network: nn.Module) -> Tensor | None:
        """Rows of eight held-out pictures, each above its reconstruction."""
        first = self.held_out.first()
        if first is None:
            return None
        assert isinstance(network, MultiScaleVQ)
        real = _pictures(first)[:16]
        pairs = zip(real.split(8), network.reconstruct(real).split(8), strict=True)
        return torch.cat([part for pair in pairs for part in pair])


class _Made:
    """The generator's pictures of one step, handed from its phase to the discriminator's."""

    pictures: Tensor


def _pictures(batch: Batch) -> Tensor:
    assert batch.pictures is not None
    return batch.pictures
