"""How well images fit their prompts, by CLIP (CLIPScore, arXiv 2104.08718)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from var_toolkit.conditions.text_encoders import EXTRA, read_pretrained

BATCH = 32


class ClipScore:
    """The score of a CLIP model of transformers, such as `openai/clip-vit-large-patch14`, or of a directory of one.

    ValueError of one line if transformers or the files are missing.
    """

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        if find_spec("transformers") is None:
            raise ValueError(f"CLIPScore needs transformers: {EXTRA}")
        import transformers

        what = "CLIP model"
        self.source, self.device = source, torch.device(device)
        self._network: Any = read_pretrained(transformers.CLIPModel.from_pretrained, source, what).to(self.device)
        self._network.eval().requires_grad_(False)
        self._tokenizer: Any = read_pretrained(transformers.AutoTokenizer.from_pretrained, source, what)
        self._processor: Any = read_pretrained(transformers.CLIPImageProcessor.from_pretrained, source, what)

    def __call__(self, images_B3hw: Tensor, prompts: Sequence[str]) -> Tensor:
        """100 times the cosine of image and prompt, at least 0, (B), of uint8 images. ValueError if numbers differ."""
        if len(images_B3hw) != len(prompts):
            raise ValueError(
                f"there are {len(images_B3hw)} images and {len(prompts)} prompts; give one prompt per image"
            )
        parts = range(0, len(prompts), BATCH)
        return torch.cat([self._scores(images_B3hw[i : i + BATCH], list(prompts[i : i + BATCH])) for i in parts])

    @torch.inference_mode()
    def _scores(self, images_B3hw: Tensor, prompts: list[str]) -> Tensor:
        longest = self._network.config.text_config.max_position_embeddings
        text = self._tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        pixels = self._processor(images_B3hw, return_tensors="pt")["pixel_values"]
        found = self._network(
            input_ids=text["input_ids"].to(self.device),
            attention_mask=text["attention_mask"].to(self.device),
            pixel_values=pixels.to(self.device),
        )
        cosines = (found.image_embeds * found.text_embeds).sum(1)  # both have length 1
        return (100 * cosines).clamp(min=0).float().cpu()
