"""Trains VAREdit (arXiv 2508.15772) on pairs of rendered scenes, and a text encoder along with it.

The loss is Infinity's for the target image; the source image is shown, and text alone is dropped.
Letters: B images, S source tokens, C channels.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from var_toolkit.conditions.condition import Asked, Condition, Request
from var_toolkit.conditions.images import WithImage
from var_toolkit.conditions.words import WordEncoder
from var_toolkit.models.infinity import Infinity
from var_toolkit.models.varedit import VAREdit, VAREditConfig
from var_toolkit.registry import Sampling
from var_toolkit.training.batches import Batch, Source
from var_toolkit.training.code_cache import cached_features
from var_toolkit.training.copying_heads import copy_source
from var_toolkit.training.data_sources import HeldOut, edited_scenes, rendered
from var_toolkit.training.infinity_objective import InfinityObjective, TextToImage
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import Recipe, SceneEditsData
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import network_from, require_same_sizes

FITTED = 96  # pairs to which the heads that copy the source are fitted


class EditedScenes:
    """Latents of scenes before and after their edits, (N, C, h, w) each, with instructions.

    An edit and its inverse are shown in turns from epoch to epoch. Those held out have instructions that are never
    trained with.
    """

    def __init__(self, before: np.ndarray, after: np.ndarray, split: str, device: torch.device) -> None:
        self.before, self.after, self.split, self.device = before, after, split, device

    def __len__(self) -> int:
        return len(self.before)

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        for numbers in rows:
            yield self._batch(numbers, epoch)

    def _batch(self, numbers: Tensor, epoch: int) -> Batch:
        from var_toolkit.still_life.scene_edits import inverted

        before, after = (
            torch.from_numpy(values[numbers.numpy()]).to(self.device).float() for values in (self.before, self.after)
        )
        turned = torch.tensor([inverted(number, epoch) for number in numbers.tolist()], device=self.device)
        turned = turned.view(-1, 1, 1, 1)
        return Batch(
            numbers.to(self.device),
            features=torch.where(turned, before, after),
            sources=torch.where(turned, after, before),
            captions=tuple(self._instruction(number, epoch) for number in numbers.tolist()),
        )

    def _instruction(self, number: int, epoch: int) -> str:
        from var_toolkit.still_life.scene_edits import pair_of, training_instruction, unseen_instruction

        if self.split == "train":
            return training_instruction(number, epoch)
        return unseen_instruction(pair_of(number, self.split, epoch), number).text


@objective("varedit")
class VAREditObjective(InfinityObjective):
    """Cross-entropy of every bit of the target image, given the source image and the instruction."""

    data_kinds: ClassVar[tuple[str, ...]] = ("scene-edits",)
    network_type: ClassVar[type[Infinity]] = VAREdit
    sampling: ClassVar[Sampling] = Sampling(cfg=3.0, top_k=0, top_p=0.97, temperature=0.1)  # as published

    @classmethod
    def config_type(cls) -> type:
        return VAREditConfig

    @classmethod
    def check(cls, recipe: Recipe, *, where: str) -> None:
        super().check(recipe, where=where)
        if recipe.objective_options.text_encoder is not None:
            raise ValueError(f"{where}: text_encoder is of the objective infinity; varedit starts from that of initial")

    def _begin(self, network: TextToImage, initial: str) -> None:
        """An Infinity, or a VAREdit; words that its text encoder does not know begin with weights of their own."""
        saved = network_from(initial, Infinity, what="initial")
        encoder = network_from(initial, WordEncoder, what="initial")
        require_same_sizes(network.backbone, saved, initial, free={"reference_map"})
        require_same_sizes(network.encoder, encoder, initial, free={"words"})
        network.backbone.load_state_dict(saved.state_dict())
        network.encoder.load_state_dict(with_words(encoder, network.encoder))
        if not isinstance(saved, VAREdit):
            self._let_copy(network)

    @torch.no_grad()
    def _let_copy(self, network: TextToImage) -> None:
        """Fit heads that copy the source to the first pairs."""
        assert isinstance(self.source, EditedScenes)
        assert isinstance(network.backbone, VAREdit)
        network.to(self.source.device)
        (batch,) = self.source.batches([torch.arange(min(FITTED, len(self.source)))], 0)
        _, inputs = self._forced(batch, [])
        source, captions = self._source(batch), batch.captions or ()
        depth = len(network.backbone.blocks)
        for layer in sorted({0, depth // 2, depth - 1}):
            copy_source(network.backbone, layer, source, lambda: network(captions, source, inputs))

    def _known_words(self) -> tuple[str, ...]:
        """Those of the initial weights, and then those of instructions."""
        from var_toolkit.still_life.scene_edits import vocabulary

        initial = self.options.initial
        known = () if initial is None else network_from(initial, WordEncoder, what="initial").config.words
        return (*known, *(word for word in vocabulary() if word not in known))

    def _data(self, workplace: Workplace) -> tuple[Source, HeldOut]:
        assert isinstance(self.recipe.data, SceneEditsData)
        return rendered(self.recipe.data, partial(self._pairs, workplace), self.recipe, workplace)

    def _pairs(self, workplace: Workplace, count: int, split: str) -> EditedScenes:
        def latents(images: Any) -> np.ndarray:
            name, leads = Path(str(images.filename)).stem, workplace.team.leads
            return cached_features(self.tokenizer, images, workplace.cache_dir, name, progress=leads)

        before, after = map(latents, edited_scenes(workplace, count, split))
        return EditedScenes(before, after, split, workplace.team.device)

    def _shown(self, batch: Batch) -> tuple[Tensor, ...]:
        return (self._source(batch),)

    def _source(self, batch: Batch) -> Tensor:
        """The source tokens (B, S, C)."""
        assert batch.sources is not None
        return self.tokenizer.pyramid.unquantised(batch.sources)

    def _asked(self, request: Request, batch: Batch) -> Asked:
        source = Condition(prefix=self._source(batch)[: len(request)])
        return WithImage(request, Request(source, source))

    def preview(self, network: torch.nn.Module) -> Tensor | None:
        """Source images of the first held-out pairs, and below them what is drawn for their instructions."""
        first = self.held_out.first()
        if first is None:
            return None
        (few, *_) = first.split(max(1, len(first.labels) // 8))
        assert few.sources is not None
        return torch.cat((self.tokenizer.decode(few.sources), self._drawn(network, few)))


def with_words(saved: WordEncoder, other: WordEncoder) -> dict[str, Tensor]:
    """The weights of a trained encoder for the words of another one, which keeps the embeddings of new words."""
    weights = saved.state_dict()
    rows = other.embedding.weight.detach().clone()
    numbers = {word: number for number, word in enumerate(saved.config.words, start=1)}
    rows[0] = weights["embedding.weight"][0]
    for number, word in enumerate(other.config.words, start=1):
        if word in numbers:
            rows[number] = weights["embedding.weight"][numbers[word]]
    return {**weights, "embedding.weight": rows}
