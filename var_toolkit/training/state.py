"""Everything that a run changes: networks, their average, optimisers, the gradient scaler."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from var_toolkit.models.layers.blocks import checkpoint_blocks
from var_toolkit.processes import Team
from var_toolkit.training import parallel, schedules
from var_toolkit.training.batches import Batch
from var_toolkit.training.checkpoint import as_json
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import Objective, Phase
from var_toolkit.training.optimisers import optimisers
from var_toolkit.training.recipe import Recipe

ParamList = tuple[Tensor, ...] | list[Tensor]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# VAR's release: a small first loss scale, doubled every 1000 steps up to a cap.
FIRST_SCALE, SCALE_INTERVAL, LARGEST_SCALE = 2.0**11, 1000, 2.0**15


def warmed_up_average(decay: float) -> Callable[[ParamList, ParamList, Tensor | int], None]:
    """An exponential moving average with a smaller decay at first, so that untrained weights soon have no influence."""

    def update(average: ParamList, current: ParamList, averaged: Tensor | int) -> None:
        count = int(averaged)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(average, current, averaged)

    return update


class TrainingState:
    """Owns what the optimiser steps change, and reads and writes it for the checkpoint."""

    def __init__(self, recipe: Recipe, objective: Objective, team: Team, steps: int) -> None:
        self.recipe, self.objective, self.team, self.steps = recipe, objective, team, steps
        self.networks = dict(objective.networks)
        self.main = next(iter(self.networks))
        self.average = self._averaged() if recipe.ema is not None else None
        for name, network in self.networks.items():
            if recipe.checkpoint_activations:
                checkpoint_blocks(network)
            if recipe.compile:
                parallel.compile_(network, recipe.parallel, team)
            objective.networks[name] = parallel.wrapped(network, recipe.parallel, recipe.precision, team)
        # Only now: shards are other parameters.
        self.trainable = {n: [p for p in net.parameters() if p.requires_grad] for n, net in self.networks.items()}
        self.optimisers = {name: self._optimisers(network) for name, network in self.networks.items()}
        self.scaler = torch.amp.GradScaler(
            team.device.type, FIRST_SCALE, growth_interval=SCALE_INTERVAL, enabled=recipe.precision == "fp16"
        )

    def _averaged(self) -> AveragedModel:
        assert self.recipe.ema is not None
        average = AveragedModel(self.networks[self.main], multi_avg_fn=warmed_up_average(self.recipe.ema))
        if self.recipe.parallel == "fsdp" and self.team.size > 1:
            parallel.shard(average.module, self.recipe.precision)
        return average

    def _optimisers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        config, groups = self.recipe.optimiser, self.objective.param_groups(network)
        return optimisers(config, network, groups, config.peak(self.recipe.batch_size))

    @property
    def delivered(self) -> nn.Module:
        """The network that validation judges and the run delivers."""
        return self.average.module if self.average is not None else self.networks[self.main]

    def learning_rate(self, step: int) -> float:
        peak = self.recipe.optimiser.peak(self.recipe.batch_size)
        return schedules.learning_rate(self.recipe.schedule, peak, step, self.steps)

    def train_step(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """All phases of one step, then the average; numbers for the log, still on the device."""
        draws.reseed()
        self._set_rates(draws.step)
        terms: dict[str, Tensor] = {}
        for phase in self.objective.phases(draws.step):
            terms |= self._update(phase, batch, draws)
        if self.average is not None:
            self.average.update_parameters(self.networks[self.main])
        return terms

    def _set_rates(self, step: int) -> None:
        rate = self.learning_rate(step)
        decay = schedules.weight_decay(self.recipe.optimiser, step, self.steps)
        for optimiser in chain.from_iterable(self.optimisers.values()):
            for group in optimiser.param_groups:
                group["lr"] = rate
                group["weight_decay"] = decay if group["decay"] else 0.0

    def _update(self, phase: Phase, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        self._let_learn(phase.updates)
        terms = self._gradients(phase, batch, draws)
        for name in phase.updates:
            for optimiser in self.optimisers[name]:
                self.scaler.unscale_(optimiser)
            limit = self.recipe.grad_clip or math.inf
            norm = nn.utils.clip_grad_norm_(self.trainable[name], limit, foreach=True)
            terms[f"grad_norm_{name}"] = parallel.whole(norm.detach())
            for optimiser in self.optimisers[name]:
                self.scaler.step(optimiser)
                optimiser.zero_grad(set_to_none=True)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() > LARGEST_SCALE:
            self.scaler.update(LARGEST_SCALE)
        return terms

    def _gradients(self, phase: Phase, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Gradients of the mean loss of the micro-batches; the means of their numbers for the log."""
        count, terms = self.recipe.accumulate, list[dict[str, Tensor]]()
        for own, part in zip(draws.split(count), batch.split(count), strict=True):
            early = own.part < count - 1
            with parallel.without_averaging(self.objective.networks.values() if early else ()):
                with self.autocast():
                    loss = phase.loss(part, own)
                self.scaler.scale(loss.total / count).backward()
            terms.append(loss.terms)
        for network in self.networks.values():  # those that only helped may still be gathered
            parallel.reshard(network)
        if count == 1:
            return terms[0]
        return {name: torch.stack([one[name] for one in terms]).mean(0) for name in terms[0]}

    def autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self.recipe.precision)
        return torch.autocast(self.team.device.type, dtype=dtype, enabled=dtype is not None)

    def _let_learn(self, names: tuple[str, ...]) -> None:
        if len(self.networks) == 1:
            return
        for name, parameters in self.trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(name in names)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Every process must call this: a sharded network is gathered."""
        networks = self.networks.items()
        return {
            "recipe": as_json(self.recipe),
            "step": step,
            "networks": {name: parallel.network_state(network) for name, network in networks},
            "average": parallel.network_state(self.average.module) if self.average is not None else {},
            "averaged": int(self.average.n_averaged) if self.average is not None else 0,
            "optimisers": {
                key: parallel.optimiser_state(network, optimiser)
                for name, network in networks
                for key, optimiser in self._named_optimisers(name)
            },
            "record": self.objective.record.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, network in self.networks.items():
            parallel.load_network_state(network, state["networks"][name])
            for key, optimiser in self._named_optimisers(name):
                self._load_optimiser(network, optimiser, state["optimisers"][key], name)
        if self.average is not None:
            parallel.load_network_state(self.average.module, state["average"])
            self.average.n_averaged.fill_(state["averaged"])
        self.objective.record.load_state_dict(state["record"])
        self.scaler.load_state_dict(state["scaler"])

    def _load_optimiser(self, network: nn.Module, optimiser: torch.optim.Optimizer, saved: Any, name: str) -> None:
        try:
            parallel.load_optimiser_state(network, optimiser, saved)
        except ValueError:  # groups of other sizes
            raise ValueError(
                f"the checkpoint is of a version that trained other parameters of the network {name!r}; "
                "start afresh in another output directory"
            ) from None

    def _named_optimisers(self, network: str) -> list[tuple[str, torch.optim.Optimizer]]:
        """The optimisers of a network by their keys in checkpoints: AdamW's is that of the network."""
        return list(zip((network, f"{network} muon"), self.optimisers[network], strict=False))
