"""Small models that read text, and an encoder without weights, which several folders of tests share."""

import torch
from golden.cases import fill
from small_llamagen import tiny_vq

from var_toolkit.conditions.text import PromptEmbeds
from var_toolkit.models.llamagen_t2i import TextRasterGPT, TextRasterGPTConfig
from var_toolkit.pipeline import Pipeline

CHANNELS = 6


class Letters:
    """An encoder that reads one token a letter, and records what it is asked, and how often it is released."""

    name, license = "letters", "cc0-1.0"

    def __init__(self):
        self.asked, self.released = [], 0

    def check(self, prompts):
        if odd := [text for text in prompts if "?" in text]:
            raise ValueError(f"prompt {odd[0]!r} has a question mark")

    def encode(self, prompts):
        self.asked += prompts
        generator = torch.Generator().manual_seed(5)
        table = torch.randn(256, CHANNELS, generator=generator)
        rows = [table[torch.tensor([ord(letter) for letter in text] or [0])][None] for text in prompts]
        return PromptEmbeds.join([PromptEmbeds(row, torch.ones(row.shape[:2], dtype=torch.bool)) for row in rows])

    def to(self, device):
        return self

    def release(self):
        self.released += 1


def tiny_text_gpt(**changes) -> TextRasterGPT:
    """A text of up to 8 tokens, then 3 x 3 tokens of 16 codes."""
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_hidden": 48, "vocab_size": 16, "side": 3}
    config = TextRasterGPTConfig(**{**sizes, "text_channels": CHANNELS, "text_tokens": 8, **changes})
    network = fill(TextRasterGPT(config))
    torch.nn.init.normal_(network.cls_embedding.uncond_embedding, generator=torch.Generator().manual_seed(3))
    return network


def text_pipeline(**parts) -> Pipeline:
    """A whole model of text."""
    return Pipeline(tiny_vq(), tiny_text_gpt(), **{"text_encoder": Letters(), **parts})
