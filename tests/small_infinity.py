"""The networks of Infinity's golden cases, made from tensors under their published names, and smaller ones."""

from collections.abc import Callable

import torch
from golden.cases import Case, fill
from golden.recipe import tensor_for

from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.conditions.words import WordEncoder, WordEncoderConfig
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Plan, Scale, Step
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.published import networks_from_tensors
from var_toolkit.heads.bits import Bits
from var_toolkit.models.infinity import Infinity, InfinityConfig
from var_toolkit.models.varedit import VAREdit, VAREditConfig
from var_toolkit.pipeline import Pipeline
from var_toolkit.tokenizers.bsq import MultiScaleBSQ, MultiScaleBSQConfig


def published_tensors(case: Case, part: str) -> dict[str, torch.Tensor]:
    """The state dict of a network of a case."""
    weights = case.facts["weights"]
    shapes = weights["models"][part]["state_dict"]
    arrays = {name: tensor_for(name, tuple(shape), weights["salt"]) for name, shape in shapes.items()}
    return {
        name: torch.zeros(tuple(shapes[name])) if found is None else torch.from_numpy(found)
        for name, found in arrays.items()
    }


def varedit_networks(case: Case, reference: list[int]) -> dict[str, torch.nn.Module]:
    """As `golden_networks`, of VAREdit, with positions on `reference` rows and columns."""
    models = {"backbone": "infinity", "tokenizer": "tokenizer"}
    tensors = {part: published_tensors(case, name) for part, name in models.items() if name in models_of(case)}
    told = {"backbone": {"reference_map": reference}}
    return networks_from_tensors("varedit", tensors, told, dict.fromkeys(tensors, "case"))


def golden_networks(case: Case) -> dict[str, torch.nn.Module]:
    """The networks of a case by part: backbone and, where it has one, tokenizer."""
    models = {"backbone": "infinity", "tokenizer": "tokenizer"}
    tensors = {part: published_tensors(case, name) for part, name in models.items() if name in models_of(case)}
    return networks_from_tensors("infinity", tensors, {}, dict.fromkeys(tensors, "case"))


def models_of(case: Case) -> list[str]:
    """The names of the networks of a case."""
    return list(case.facts["weights"]["models"])


def schedule_of(case: Case) -> Schedule:
    """The token maps of a case."""
    return Schedule(tuple((h, w) for _, h, w in case.facts["config"]["schedule_thw"]))


def embeds(packed: torch.Tensor, lengths: list[int]) -> PromptEmbeds:
    """Texts that are packed one after another, as padded features."""
    features = torch.nn.utils.rnn.pad_sequence(list(packed.split(lengths)), batch_first=True)
    return PromptEmbeds(features, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def small_infinity(**changes) -> Infinity:
    """A network in which every part affects the output: 4 bits, maps of up to 3 x 3 tokens, text of 16 channels."""
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "token_bits": 4, "text_channels": 16, "text_longest": 6}
    own = {"patch_nums": (1, 2, 3), "aspect_ratios": False, "reference_side": 3, "levels": 3}
    return fill(Infinity(InfinityConfig(**{**sizes, **own, **changes})))


def small_bsq(**changes) -> MultiScaleBSQ:
    """Images of 6 px as maps of up to 3 x 3 tokens of 4 bits."""
    sizes = {"codebook_dim": 4, "ch": 8, "ch_mult": (1, 1), "num_res_blocks": 1, "norm_groups": 4}
    return fill(MultiScaleBSQ(MultiScaleBSQConfig(**{**sizes, "patch_nums": (1, 2, 3), **changes})))


def words_pipeline(network: Callable[..., torch.nn.Module] | None = None, **changes) -> Pipeline:
    """A whole model, which knows the words "red" and "cube"; of Infinity by default."""
    encoder = WordEncoder(WordEncoderConfig(words=("cube", "red"), width=16, depth=1, num_heads=2, longest=6))
    return Pipeline(small_bsq(), (network or small_infinity)(**changes), text_encoder=fill(encoder))


def small_varedit(**changes) -> VAREdit:
    """As `small_infinity`, for edits."""
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "token_bits": 4, "text_channels": 16, "text_longest": 6}
    own = {"patch_nums": (1, 2, 3), "aspect_ratios": False, "reference_side": 3, "levels": 3}
    return fill(VAREdit(VAREditConfig(**{**sizes, **own, **changes})))


class PublishedNoise(Noise):
    """The published draw, argmax of p / noise over the two values of a bit, as one uniform number a bit."""

    def __init__(self, noise_BLd2):
        super().__init__([0] * len(noise_BLd2))
        zero, one = noise_BLd2.unbind(-1)
        self.uniform_BLd = one / (zero + one)

    def uniforms(self, stream, position, tokens, width):
        return self.uniform_BLd[:, position : position + tokens]


def plan_of_run(schedule, told, depth):
    """The plan of a published run: guidance and temperature are one number, or one for each scale."""
    count = len(schedule)
    cfg, tau = (told[name] if isinstance(told[name], list) else [told[name]] * count for name in ("cfg", "tau"))
    heads = [Bits(told["top_k"], told["top_p"], one) for one in tau]
    (mixed,) = told["cfg_insertion_layer"]  # 0: logits; -n: features, after the layer that is the n-th from the end
    layer = range(depth)[mixed] if mixed else None
    steps = (Step(Scale(k), guidance=cfg[k] - 1, head=heads[k], mixed_after=layer) for k in range(count))
    return Plan(schedule, tuple(steps))
