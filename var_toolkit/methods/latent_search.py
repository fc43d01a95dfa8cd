"""Search by scales (after LSRS): a small network chooses among candidates of coarse scales.

It reads the latent after a scale, before the costly scales are drawn, so the search takes hardly any time. Needs a
scorer that was trained for the model (`objective: latent-scorer`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from var_toolkit.core.plan import Plan, Scale
from var_toolkit.core.search import Candidates
from var_toolkit.formats.directory import CONFIG, load_network
from var_toolkit.models.latent_scorer import LatentScorer
from var_toolkit.registry import Embedded


def latent_search(plan: Plan, network: Any, *, candidates: int, scorer: str) -> Plan:
    """The plan with candidates at the scales that a scorer network was made for. ValueError if it draws none."""
    found = Candidates(candidates, scorer)
    steps = tuple(
        replace(step, search=found if isinstance(step.places, Scale) and step.scale in network.config.scales else None)
        for step in plan.steps
    )
    if not any(step.search for step in steps):
        raise ValueError(f"candidates are drawn of scales {list(network.config.scales)}; this plan draws none of them")
    return replace(plan, steps=steps)


def read_scorer(name: str) -> LatentScorer:
    """The scorer in a directory, or that comes with the package. ValueError of one line if there is none."""
    folder = Path(name) if (Path(name) / CONFIG).is_file() else Embedded.folder(name)
    if not folder.is_dir():
        raise ValueError(f"latent_scorer {name}: no such network comes with the package; give the final/ of a run")
    found = load_network(folder)
    if not isinstance(found, LatentScorer):
        raise ValueError(f"latent_scorer {name} holds a {type(found).__name__}; it must hold a LatentScorer")
    return found.requires_grad_(False)
