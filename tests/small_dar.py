"""The networks of D-AR's golden cases, and smaller ones, which several folders of tests share."""

import torch
from golden.cases import Case, fill, load_case
from golden.recipe import fill_

from var_toolkit.formats.published import networks_from_tensors
from var_toolkit.models.dar import DAR, DARConfig
from var_toolkit.tokenizers.pixel_flow import PixelFlowVQ, PixelFlowVQConfig, tokenizer_from_tensors


def tensors_of(case: Case, part: str) -> dict[str, torch.Tensor]:
    """The state dict of a golden network under the published names; what the recipe keeps is zero."""
    shapes = case.facts["state_dict"][part]
    return fill_({name: torch.zeros(shape) for name, (shape, _) in shapes.items()}, case.facts["salt"])


def golden_flow() -> PixelFlowVQ:
    """The tokenizer of its golden case."""
    case = load_case("dar-tokenizer")
    config, side = case.facts["config"], int(case.facts["config"]["num_all_queries"] ** 0.5)
    return tokenizer_from_tensors(tensors_of(case, "vq"), config, (side,), "tokenizer.pt")


def golden_dar() -> tuple[PixelFlowVQ, DAR]:
    """The tokenizer and the transformer of the golden case of drawing."""
    case = load_case("dar-generate")
    tensors = {"tokenizer": tensors_of(case, "vq"), "backbone": tensors_of(case, "gpt")}
    config = {"tokenizer": case.facts["tokenizer"], "backbone": case.facts["config"]}
    made = networks_from_tensors("dar", tensors, config, {"tokenizer": "tokenizer.pt", "backbone": "dar.pt"})
    return made["tokenizer"], made["backbone"]


def tiny_flow_config(**changes) -> PixelFlowVQConfig:
    """Images of 6 px as 9 tokens of 16 codes, in groups of three."""
    widths = {"encoder_dim": 64, "decoder_dim": 64, "flow_dim": 64}
    depths = {"encoder_depth": 1, "decoder_depth": 1, "flow_depth": 1}
    sizes = {"vocab_size": 16, "code_dim": 4, "side": 3, "groups": 3, "image_side": 6, "positions": 12}
    patches = {"encoder_patch": 3, "flow_patch": 2}
    return PixelFlowVQConfig(**{**widths, **depths, **sizes, **patches, **changes})


def tiny_flow(**changes) -> PixelFlowVQ:
    """A tokenizer in which every part affects the images."""
    return fill(PixelFlowVQ(tiny_flow_config(**changes)))


def tiny_dar(**changes) -> DAR:
    """Five classes, nine tokens of 16 codes."""
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_hidden": 48, "num_classes": 5, "vocab_size": 16}
    return fill(DAR(DARConfig(**{**sizes, "side": 3, **changes})))
