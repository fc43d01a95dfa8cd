"""Trains LlamaGen's GPT by teacher forcing, after the published recipe (arXiv 2406.06525, section 3.1)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from var_toolkit.core.bind import Run, run_of
from var_toolkit.guidance import weight
from var_toolkit.models.family import Family
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.registry import Sampling
from var_toolkit.tokenizers.pixel_flow import PixelFlowVQ
from var_toolkit.tokenizers.raster_vq import RasterVQ
from var_toolkit.training.batches import Batch
from var_toolkit.training.recipe import Recipe
from var_toolkit.training.registry import objective
from var_toolkit.training.var_objective import VarObjective, require_equal, require_share, sum_of_factors_


@dataclass(frozen=True)
class RasterGPTOptions:
    """Settings that are defaults in the published recipe, and the initial weights."""

    class_dropout: float = 0.1
    label_smoothing: float = 0.0
    initial: str | None = None  # directory of weights to start from
    class_embedding: Literal["table", "still-life-factors"] = "table"

    def __post_init__(self) -> None:
        require_share(class_dropout=self.class_dropout, label_smoothing=self.label_smoothing)


@objective("raster-gpt")
class RasterGPTObjective(VarObjective):
    """Cross-entropy on every token of the map, from the class and the tokens before it."""

    options_type: ClassVar[type] = RasterGPTOptions
    network_type: ClassVar[Any] = RasterGPT
    tokenizer_type: ClassVar[Any] = RasterVQ
    sampling = Sampling(cfg=2.0, top_k=0, top_p=0.0)  # as published for the small models

    @classmethod
    def of_family(cls, family: Family) -> type[VarObjective]:
        """The same objective for the networks of another family, of maps of tokens or of sequences (D-AR)."""
        if family.tokenizer.network != PixelFlowVQ.__name__:
            return super().of_family(family)
        return type(cls.__name__, (cls,), {"network_type": family.network, "tokenizer_type": PixelFlowVQ})

    @classmethod
    def _check_scales(cls, recipe: Recipe, where: str) -> None:
        """Nothing to check: there is one map, of any size."""

    @classmethod
    def example(cls, recipe: Recipe, rows: int) -> Any:
        """Labels, and all tokens but the last."""
        return torch.zeros(rows, dtype=torch.long), torch.zeros(rows, recipe.model.side**2 - 1, dtype=torch.long)

    def _require_fit(self, tokenizer: Any) -> None:
        require_equal(self.recipe.model, tokenizer, {"side": "side", "vocab_size": "vocab_size"})

    def _begin(self, network: Any) -> None:
        network.init_weights()
        if self.options.class_embedding == "still-life-factors":
            sum_of_factors_(network.class_emb.weight)
        if self.options.initial is not None:
            self._start(network, self.options.initial)

    def _run(self, network: nn.Module, **settings: Any) -> Run:
        assert isinstance(network, self.network_type)
        return run_of(self.tokenizer, network, **({"guidance": weight({}, self.sampling, network)} | settings))

    def _forced(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """All tokens (B, L), and the inputs of the network, which are all tokens but the last."""
        with torch.no_grad(), torch.autocast(batch.labels.device.type, enabled=False):
            tokens_BL = self._tokens(batch)[0]
        return tokens_BL, tokens_BL[:, :-1]
