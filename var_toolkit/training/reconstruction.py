"""What training a tokenizer of any kind shares: reconstruction, perceptual and adversarial terms."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.training.batches import Batch
from var_toolkit.training.data_sources import HeldOut
from var_toolkit.training.discriminator import PatchDiscriminator, hinge_loss
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import NO_BLOCKS, WHOLE_BATCH, Loss, Objective, Phase, Workplace
from var_toolkit.training.perceptual import PerceptualDistance, perceptual_network
from var_toolkit.training.recipe import Recipe

SMALLEST_SLOPE = 0.01  # of images of -1 to 1; where nothing changes, the root keeps a gradient


@dataclass(frozen=True)
class ReconstructionOptions:
    """Weights of the loss terms; 0 switches a term off."""

    l1: float = 0.2
    l2: float = 1.0
    edges: float = 0.0  # against blur, see `edge_loss`
    perceptual: float = 0.0
    perceptual_network: str | None = None  # timm:NAME, or where a classifier or detector lies
    adversarial: float = 0.0
    adversarial_start: int = 0  # first step of the generator's adversarial term
    adaptive: bool = False  # scale the adversarial term to the reconstruction's gradient at the last layer
    discriminator_width: int = 32
    initial: str | None = None  # directory of weights to start from

    def __post_init__(self) -> None:
        self._require_not_negative("l1", "l2", "edges", "perceptual", "adversarial", "adversarial_start")
        if self.perceptual and self.perceptual_network is None:
            raise ValueError(
                "perceptual needs perceptual_network: timm:NAME (such as timm:vgg16.tv_in1k), or the directory of a "
                "trained still-life classifier or detector of scenes"
            )

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")


class ReconstructionObjective(Objective):
    """Generator phase, and a discriminator phase once the adversarial term is on.

    Those that go on from it name the network (`name`), say what it returns for images (`_reconstructed`) and where
    its last convolution is (`_last_weight`). One that does not reconstruct the images themselves also says what it
    reads and what that is to become (`_pair`), and how (`_made`).
    """

    name: str
    data_kinds = ("still-lifes", "scenes", "folders", "captions")
    refused = WHOLE_BATCH | NO_BLOCKS
    options: Any
    held_out: HeldOut
    autoencoder: Any  # the network, before DDP wraps it

    @classmethod
    def outline(cls, recipe: Recipe) -> dict[str, nn.Module]:
        """The network, and the discriminator if there is one."""
        return super().outline(recipe) | cls._critics(recipe)

    @staticmethod
    def _critics(recipe: Recipe) -> dict[str, nn.Module]:
        options = recipe.objective_options
        return {"discriminator": PatchDiscriminator(options.discriminator_width)} if options.adversarial else {}

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Images."""
        return (torch.zeros(rows, 3, recipe.data.size, recipe.data.size),) if hasattr(recipe.data, "size") else None

    def _open(self, autoencoder: nn.Module, workplace: Workplace) -> None:
        """Take in the network to train, and make what the loss needs beside it."""
        device, options = workplace.team.device, self.options
        self.autoencoder = autoencoder
        self.networks = {self.name: autoencoder}
        self.distance: PerceptualDistance | None = None
        if options.perceptual:
            self.distance = PerceptualDistance(perceptual_network(options.perceptual_network)).to(device)
        self.discriminator: PatchDiscriminator | None = None
        if options.adversarial:
            self.discriminator = PatchDiscriminator(options.discriminator_width).to(device)
            self.networks["discriminator"] = self.discriminator

    @abstractmethod
    def _reconstructed(self, given: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Images, what their code adds to the loss (weighted), and that by name (not weighted)."""

    def _pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the network reads, and the images that it is to make of that."""
        return images(batch), images(batch)

    def _made(self, network: Any, given: Tensor) -> Tensor:
        """Images by the network that would be delivered, in [-1, 1]."""
        made: Tensor = network.reconstruct(given)
        return made

    @abstractmethod
    def _last_weight(self) -> Tensor:
        """Of the decoder's last convolution."""

    def phases(self, step: int) -> list[Phase]:
        adversary = self.discriminator is not None and step >= self.options.adversarial_start
        made = _Made()

        def generator(batch: Batch, draws: Draws) -> Loss:
            return self._generator_loss(batch, made, adversary)

        def critic(batch: Batch, draws: Draws) -> Loss:
            return self._critic_loss(made)

        first = Phase((self.name,), generator)
        return [first, Phase(("discriminator",), critic)] if self.discriminator is not None else [first]

    def _generator_loss(self, batch: Batch, made: "_Made", adversary: bool) -> Loss:
        o = self.options
        given, real = self._pair(batch)
        drawn, code_loss, code_terms = self._reconstructed(given)
        made.images, made.wanted = drawn.detach(), real
        drawn = drawn.float()
        terms = {"l1": F.l1_loss(drawn, real), "l2": F.mse_loss(drawn, real), **code_terms}
        total = o.l1 * terms["l1"] + o.l2 * terms["l2"]
        if o.edges:
            terms["edges"] = edge_loss(drawn, real)
            total = total + o.edges * terms["edges"]
        if self.distance is not None:
            terms["perceptual"] = self.distance(drawn, real)
            total = total + o.perceptual * terms["perceptual"]
        if adversary and self.discriminator is not None:
            terms["adversarial"] = -self.discriminator(drawn).mean()
            strength = self._balance(total, terms["adversarial"]) if o.adaptive else 1.0
            total = total + o.adversarial * strength * terms["adversarial"]
        total = total + code_loss
        psnr = -10 * torch.log10(terms["l2"].detach() / 4)
        return Loss(total, {"loss": total.detach(), "psnr": psnr} | {k: v.detach() for k, v in terms.items()})

    def _balance(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Ratio of gradient norms at the decoder's last convolution (VQGAN, arXiv 2012.09841, equation 7)."""
        weight = self._last_weight()
        norms = [torch.autograd.grad(x, weight, retain_graph=True)[0].norm() for x in (reconstruction, adversarial)]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()

    def _critic_loss(self, made: "_Made") -> Loss:
        both = torch.cat([made.wanted, made.images.float()]).contiguous(memory_format=torch.channels_last)
        real, fake = self.networks["discriminator"](both).chunk(2)
        loss = hinge_loss(real, fake)
        verdicts = {"verdict_real": real.detach().mean(), "verdict_fake": fake.detach().mean()}
        return Loss(loss, {"critic": loss.detach(), **verdicts})

    def validate(self, network: nn.Module) -> dict[str, float]:
        errors = [self._errors(network, batch) for batch in self.held_out]
        return {"psnr": float((-10 * torch.log10(torch.cat(errors) / 4)).mean())} if errors else {}

    def _errors(self, network: Any, batch: Batch) -> Tensor:
        given, wanted = self._pair(batch)
        return (self._made(network, given) - wanted).square().mean((1, 2, 3))

    def preview(self, network: Any) -> Tensor | None:
        """Rows of eight held-out images, each above its reconstruction."""
        first = self.held_out.first()
        if first is None:
            return None
        given, wanted = (some[:16] for some in self._pair(first))
        pairs = zip(wanted.split(8), self._made(network, given).split(8), strict=True)
        return torch.cat([part for pair in pairs for part in pair])


class _Made:
    """The generator's images of one step, and what they were to be, handed from its phase to the discriminator's."""

    images: Tensor
    wanted: Tensor


def edge_loss(drawn_B3hw: Tensor, real_B3hw: Tensor) -> Tensor:
    """How far edges differ in strength: the mean difference of their local strengths, a scalar.

    The strength at a pixel is the root mean square of the slope of brightness around it. A blurred edge has a smaller
    one than a sharp edge of the same contrast, and one that is a pixel away costs little; so an edge whose place is
    uncertain is drawn sharp, where losses of single pixels would blur it.
    """
    return F.l1_loss(_edge_strength(drawn_B3hw), _edge_strength(real_B3hw))


def _edge_strength(images_B3hw: Tensor) -> Tensor:
    brightness = images_B3hw.mean(1, keepdim=True)
    across = F.pad(brightness.diff(dim=3), (0, 1))
    down = F.pad(brightness.diff(dim=2), (0, 0, 0, 1))
    return (F.avg_pool2d(across.square() + down.square(), 3, stride=1, padding=1) + SMALLEST_SLOPE**2).sqrt()


def images(batch: Batch) -> Tensor:
    """The images of a batch that has them."""
    assert batch.images is not None
    return batch.images
