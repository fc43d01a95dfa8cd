"""Trains the head of a GPT's early exit, as in Kangaroo (arXiv 2404.18911): the target drafts for itself."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from var_toolkit.core.bind import Run
from var_toolkit.models.draft_heads import ExitHead, early_exit
from var_toolkit.models.llamagen import RasterGPT
from var_toolkit.training.distillation import MatchingObjective
from var_toolkit.training.objectives import NO_ADAPTER
from var_toolkit.training.registry import objective
from var_toolkit.training.starting_weights import start_from


@objective("exit-head")
class ExitHeadObjective(MatchingObjective):
    """The first layers of the target and the head; only the head is trained."""

    network_type = ExitHead
    refused = NO_ADAPTER

    def _require_target(self, model: Any, teacher: RasterGPT) -> None:
        with torch.device("meta"):
            head = ExitHead(model)
        early_exit(teacher, model.layers, head)  # raises ValueError if they do not match

    def _begin(self, network: Any) -> None:
        network.init_weights()
        start_from(network, self.options.initial)

    def _drafted(self, network: nn.Module, labels: Tensor, seen_BL: Tensor) -> Tensor:
        with torch.no_grad():
            exit_ = early_exit(self.teacher, self.recipe.model.layers)
            features_BLC = exit_.next_hidden(exit_.prefix(labels), seen_BL)
        return self.teacher.next_logits(network(features_BLC))

    def _run(self, network: nn.Module, **settings: Any) -> Run:
        exit_ = early_exit(self.teacher, self.recipe.model.layers, cast(ExitHead, network))
        return super()._run(exit_, **settings)
