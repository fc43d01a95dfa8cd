"""Speculation by name: makes a proposer, a rule and a length policy for a model from the settings that users type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from var_toolkit.core.plan import Plan, is_continuous, is_next_token
from var_toolkit.methods.collaborative import require_one_tokenizer
from var_toolkit.methods.speculative.decayed import Decayed
from var_toolkit.methods.speculative.eagle import Eagle
from var_toolkit.methods.speculative.engine import Proposer, Speculation
from var_toolkit.methods.speculative.grouped import Grouped
from var_toolkit.methods.speculative.growing import Shape
from var_toolkit.methods.speculative.jacobi import Jacobi
from var_toolkit.methods.speculative.kseq import KSeq
from var_toolkit.methods.speculative.lantern import Lantern, neighbours, normalised_codes
from var_toolkit.methods.speculative.lengths import Adaptive, Fixed
from var_toolkit.methods.speculative.next_scale import NextScale
from var_toolkit.methods.speculative.ngram import NGram
from var_toolkit.methods.speculative.rules import Rule, Standard
from var_toolkit.methods.speculative.small_model import SmallModel
from var_toolkit.models.draft_heads import EagleHead, ExitHead, early_exit
from var_toolkit.ranges import checked

PROPOSERS = ("jacobi", "draft", "early-exit", "ngram", "eagle")
RULES = ("standard", "kseq", "lantern", "grouped", "decayed")
JACOBI_WINDOW, WINDOW, SCALES, EXIT_LAYERS, CHAINS, NEIGHBOURS = 16, 5, 2, 2, 4, 1000
DRAFTS = 1000  # of a tree
AUTO = "auto"  # the draft length
# Settings that belong to some proposers or to one rule.
OF_PROPOSERS = {
    "draft_tree": ("draft", "early-exit", "ngram", "eagle"),
    "draft_confidence": ("draft", "early-exit", "eagle"),
    "jacobi_start": ("jacobi",),
    "jacobi_keep": ("jacobi",),
    "exit_layers": ("early-exit",),
}
OF_RULES = {
    "delta": "lantern",
    "factor": "lantern",
    "neighbours": "lantern",
    "raw_codes": "lantern",
    "group": "grouped",
    "boost": "decayed",
    "decay": "decayed",
}
OTHERS = ("speculate", "accept", "draft_length")
SETTINGS = (*OTHERS, *OF_PROPOSERS, *OF_RULES)


@dataclass(frozen=True, eq=False)
class DraftModel:
    """What drafts for a target: a smaller backbone, or a head on the target's own features."""

    network: Any
    name: str
    guided: bool = False  # a backbone: as the target is
    tokenizer: Any = None  # of a backbone


def speculative(plan: Plan, given: Mapping[str, Any], draft_model: DraftModel | None) -> Plan:
    """The plan with the speculation that settings by name ask for.

    ValueError in one line if they do not fit the model or each other.
    """
    proposer, rule = given.get("speculate"), given.get("accept", "standard")
    if proposer is None:
        raise ValueError(f"{min(given)} is for speculative decoding; give speculate as well: {', '.join(PROPOSERS)}")
    _require_known("speculate", proposer, PROPOSERS)
    _require_known("accept", rule, RULES)
    _require_owned(given, proposer, rule)
    _require_target(plan, proposer)
    build = _by_token if is_next_token(plan.stages[0].backbone) else _by_scale
    return replace(plan, stages=(replace(plan.stages[0], speculation=build(plan, given, draft_model)),))


def _by_token(plan: Plan, given: Mapping[str, Any], model: DraftModel | None) -> Speculation:
    rule = given.get("accept", "standard")
    shape, lengths = _extent(plan, given, given["speculate"], rule)
    return Speculation(
        _proposer(plan, given["speculate"], shape, lengths, given, model), _rule(plan, rule, given), lengths
    )


def _by_scale(plan: Plan, given: Mapping[str, Any], model: DraftModel | None) -> NextScale:
    """Of a VAR: a smaller one drafts whole scales."""
    for name in ("draft_tree", "draft_confidence"):
        if name in given:
            raise ValueError(f"{name} is for next-token models; a VAR's drafts are whole scales: use draft_length")
    if given.get("accept") == "kseq":
        raise ValueError("accept kseq is for next-token models; a VAR has one draft for each position")
    window = given.get("draft_length", SCALES)
    if isinstance(window, str):
        raise ValueError(f"draft_length is {window!r}; for a VAR it must be a number of scales, 1 (plain) or more")
    if model is None:
        raise ValueError("speculate draft needs a draft model; give draft_model (--draft-model)")
    found = NextScale(model.network, _rule(plan, given.get("accept", "standard"), given), window)
    found.require_fit(plan.stages[0])
    require_one_tokenizer(plan.tokenizer, model.tokenizer, ("target", "draft model"))
    return found


def _require_known(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _require_owned(given: Mapping[str, Any], proposer: str, rule: str) -> None:
    for name in given:
        if proposer not in OF_PROPOSERS.get(name, PROPOSERS):
            raise ValueError(f"{name} is for speculate {' or '.join(OF_PROPOSERS[name])}, not for {proposer}")
        if OF_RULES.get(name, rule) != rule:
            raise ValueError(f"{name} is for accept {OF_RULES[name]}, not for {rule}")
    if rule == "kseq" and proposer in ("jacobi", "ngram"):
        raise ValueError(f"accept kseq needs independent drafts, which {proposer} has not; use draft or eagle")


def _require_target(plan: Plan, proposer: str) -> None:
    backbone = plan.stages[0].backbone
    if is_continuous(backbone):
        raise ValueError(f"{type(backbone).__name__} draws continuous tokens; speculation is for discrete ones")
    if len(plan.stages) > 1:
        raise ValueError(f"speculation needs a plan of one stage; this one has {len(plan.stages)}")
    if not is_next_token(backbone) and proposer != "draft":
        raise ValueError(
            f"speculate {proposer} is for next-token models (LlamaGen); {type(backbone).__name__} has speculate draft"
        )


def _tree(tree: Any, plan: Plan) -> tuple[int, ...]:
    """The children of every node of a level; ValueError if the tree does not fit the model."""
    config: Any = plan.stages[0].backbone.config
    if not isinstance(tree, tuple | list) or not tree or not all(type(width) is int for width in tree):
        raise ValueError(f"draft_tree is {tree!r}; it must be numbers of drafts, one for each level, such as 4,2,1")
    if len(tree) >= config.tokens or max(tree) > config.vocab_size:
        raise ValueError(
            f"draft_tree is {list(tree)}; an image has {config.tokens} tokens of {config.vocab_size} codes"
        )
    if sum(prod(tree[: depth + 1]) for depth in range(len(tree))) > DRAFTS:
        raise ValueError(f"draft_tree is {list(tree)}; it must have {DRAFTS} drafts at most")
    return tuple(tree)


def _extent(plan: Plan, given: Mapping[str, Any], proposer: str, rule: str) -> tuple[Shape, Fixed]:
    """The drafts of a round, and how far they go."""
    tree, length = given.get("draft_tree"), given.get("draft_length")
    if tree is not None and length is not None:
        raise ValueError("draft_tree and draft_length both say how far to draft; give one of them")
    window = JACOBI_WINDOW if proposer == "jacobi" else WINDOW
    if tree is not None:
        window = len(_tree(tree, plan)) + 1
    elif length is not None and length != AUTO:
        window = min(checked("draft_length", length), plan.tokenizer.scales.total)
    policy = (Adaptive if length == AUTO else Fixed)(window, given.get("draft_confidence", 0.0))
    chains = rule == "kseq"
    first = CHAINS if chains else 1
    widths = tuple(tree) if tree is not None else (first, *(1,) * (window - 2))[: window - 1]
    shape = Shape(widths, chains)
    _ = shape.nodes  # which raises ValueError for impossible widths
    return shape, policy


def _proposer(
    plan: Plan, name: str, shape: Shape, lengths: Fixed, given: Mapping[str, Any], model: DraftModel | None
) -> Proposer:
    if name == "jacobi":
        return Jacobi(lengths.window, given.get("jacobi_start", "repeat"), given.get("jacobi_keep", False))
    if name == "ngram":
        return NGram(shape)
    if name == "early-exit":
        return _early_exit(plan, shape, given.get("exit_layers"), model)
    if model is None:
        raise ValueError(f"speculate {name} needs a draft model; give draft_model (--draft-model)")
    return _eagle(plan, shape, model) if name == "eagle" else _small(plan, shape, model)


def _small(plan: Plan, shape: Shape, model: DraftModel) -> SmallModel:
    if not is_next_token(model.network):
        kind = type(model.network).__name__
        raise ValueError(f"draft model {model.name} is of kind {kind}; speculate draft needs a next-token model")
    target: Any = plan.stages[0].backbone
    for name in ("vocab_size", "side", "num_classes"):
        ours, theirs = getattr(target.config, name), getattr(model.network.config, name)
        if ours != theirs:
            raise ValueError(
                f"draft model {model.name} has {name} {theirs}, but the target has {ours}; use one that agrees"
            )
    require_one_tokenizer(plan.tokenizer, model.tokenizer, ("target", "draft model"))
    return SmallModel(model.network, shape, model.guided, model.name)


def _early_exit(plan: Plan, shape: Shape, layers: int | None, model: DraftModel | None) -> SmallModel:
    """With a trained head the conditional row alone, as the head learns it; without, guided as the target is."""
    target: Any = plan.stages[0].backbone
    if model is None:
        layers = layers or min(EXIT_LAYERS, target.config.depth - 1)
        return SmallModel(early_exit(target, layers), shape, name=f"an exit after {layers} layers")
    if not isinstance(model.network, ExitHead):
        raise ValueError(
            f"draft model {model.name} is a {type(model.network).__name__}; speculate early-exit takes an ExitHead"
        )
    layers = layers or model.network.config.layers
    return SmallModel(
        early_exit(target, layers, model.network), shape, guided=False, name=f"{model.name} after {layers} layers"
    )


def _eagle(plan: Plan, shape: Shape, model: DraftModel) -> Eagle:
    if not isinstance(model.network, EagleHead):
        raise ValueError(
            f"draft model {model.name} is a {type(model.network).__name__}; speculate eagle takes an EagleHead"
        )
    target: Any = plan.stages[0].backbone
    model.network.require_fit(target)
    return Eagle(model.network, shape)


def _rule(plan: Plan, name: str, given: Mapping[str, Any]) -> Rule:
    rules: dict[str, Callable[[], Rule]] = {
        "standard": Standard,
        "kseq": KSeq,
        "lantern": lambda: _lantern(plan, given),
        "grouped": lambda: Grouped(given.get("group", 3)),
        "decayed": lambda: Decayed(given.get("boost", 1.1), given.get("decay", 0.7)),
    }
    return rules[name]()


def _lantern(plan: Plan, given: Mapping[str, Any]) -> Lantern:
    """With a delta of 0.1 unless a delta or a lambda is given; codes are compared as the tokenizer compares them."""
    delta, factor = given.get("delta"), given.get("factor")
    if delta is None and factor is None:
        delta = 0.1
    codes_VC = plan.tokenizer.pyramid.embedding.weight.detach()
    count = given.get("neighbours", min(NEIGHBOURS, len(codes_VC) - 1))
    raw = given.get("raw_codes", False) or not is_next_token(plan.stages[0].backbone)
    return Lantern(neighbours(codes_VC if raw else normalised_codes(codes_VC), count), delta, factor, raw)
