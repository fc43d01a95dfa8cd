"""MARs of the golden cases and small ones, which several folders of tests share."""

from types import SimpleNamespace

import torch
from golden.cases import Case
from golden.recipe import fill_

from var_toolkit.core.noise import Noise, Stream
from var_toolkit.formats.published import backbone_from_tensors
from var_toolkit.models.acdit import ACDiTConfig
from var_toolkit.models.himar import HiMARConfig
from var_toolkit.models.mar import MAR, MARConfig
from var_toolkit.models.xar import XARConfig
from var_toolkit.tokenizers.latent_pyramid import LatentPyramid


def published_tensors(case: Case) -> dict[str, torch.Tensor]:
    """The weights of a case, under the published names."""
    shapes = case.facts["state_dict"]["mar"]
    return fill_({name: torch.zeros(shape) for name, (shape, _) in shapes.items()}, case.facts["salt"])


def golden_mar(case: Case) -> MAR:
    """The network of a case, read as its published file is."""
    return backbone_from_tensors("mar", published_tensors(case), case.facts["config"], "checkpoint-last.pth")


def counts(text):
    """How the published settings write a number of steps: one, or one for each section."""
    numbers = tuple(map(int, text.split(",")))
    return numbers[0] if len(numbers) == 1 else numbers


def tokenizer_of(network) -> SimpleNamespace:
    """Latents alone, without an autoencoder."""
    patch, channel_last = getattr(network.config, "patch_size", 1), getattr(network, "channel_last_patches", False)
    pyramid = LatentPyramid(network.scales, patch=patch, channel_last=channel_last)
    return SimpleNamespace(scales=network.scales, pyramid_of=lambda schedule: pyramid, pyramid=pyramid)


def tiny_mar_config(**changes) -> MARConfig:
    """Five classes, nine tokens of four channels."""
    sizes = {
        "embed_dim": 32, "encoder_depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 2,
        "decoder_num_heads": 2, "side": 3, "latent_channels": 4, "buffer_size": 2, "head_depth": 1, "head_width": 16,
    }  # fmt: skip
    return MARConfig(**{"num_classes": 5, **sizes, **changes})


def tiny_mar(salt: str = "", **changes) -> MAR:
    """A network in which every part has an influence."""
    network = MAR(tiny_mar_config(**changes))
    fill_(network.state_dict(), salt)
    return network.eval()


def tiny_himar_config(**changes) -> HiMARConfig:
    """Five classes, sixteen pivots and 25 tokens of four channels."""
    sizes = {
        "embed_dim": 32, "encoder_depth": 1, "decoder_depth": 2, "num_heads": 2, "side": 5, "pivot_side": 4,
        "latent_channels": 4, "buffer_size": 2, "head_depth": 1, "head_width": 16, "map_depth": 1, "map_width": 16,
        "map_heads": 2,
    }  # fmt: skip
    return HiMARConfig(**{"num_classes": 5, **sizes, **changes})


def tiny_acdit_config(**changes) -> ACDiTConfig:
    """Five classes, four blocks of four tokens of four channels."""
    sizes = {"embed_dim": 64, "depth": 2, "side": 4, "block_side": 2, "latent_channels": 4}
    return ACDiTConfig(**{"num_classes": 5, **sizes, **changes})


def tiny_xar_config(**changes) -> XARConfig:
    """Five classes, four cells of four tokens of four channels."""
    sizes = {"embed_dim": 64, "depth": 2, "side": 4, "block_side": 2, "latent_channels": 4}
    return XARConfig(**{"num_classes": 5, **sizes, **changes})


class StoredNoise(Noise):
    """The orders and the noise of a case: starts (B, L, c) and steps (T, B, L, c), by position."""

    def __init__(self, orders: torch.Tensor, starts: torch.Tensor, steps: torch.Tensor) -> None:
        super().__init__(range(len(orders)))
        self.orders, self.starts, self.steps = orders, starts, steps

    def order(self, first: int, count: int) -> torch.Tensor:
        """The published code draws from the end of its lists."""
        return self.orders.flip(1)

    def normal_at(self, stream, positions_BL, width, *, attempt=0):
        """The noise of some positions."""
        if stream is Stream.DIFFUSION:
            return self._of(self.starts, positions_BL)
        assert stream is Stream.DIFFUSION_STEPS
        return self._of(self.steps.permute(1, 2, 0, 3).flatten(2), positions_BL)

    def _of(self, by_position: torch.Tensor, positions_BL: torch.Tensor) -> torch.Tensor:
        return by_position.gather(1, positions_BL.unsqueeze(-1).expand(-1, -1, by_position.shape[-1]))
