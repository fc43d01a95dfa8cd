"""Speculation by name: makes a proposer, a rule and a length policy for a model from the settings that users type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from var_toolkit.core.plan import DRAFT, Plan, Tokens
from var_toolkit.formats.frequent_codes import FILE
from var_toolkit.heads.categorical import Categorical
from var_toolkit.methods.collaborative import require_one_tokenizer
from var_toolkit.methods.speculative.as_plain import AsPlain
from var_toolkit.methods.speculative.decayed import Decayed
from var_toolkit.methods.speculative.eagle import Eagle
from var_toolkit.methods.speculative.grouped import Grouped
from var_toolkit.methods.speculative.growing import Shape
from var_toolkit.methods.speculative.jacobi import Jacobi
from var_toolkit.methods.speculative.judge import Judged, read_judge
from var_toolkit.methods.speculative.kseq import KSeq
from var_toolkit.methods.speculative.lantern import Lantern
from var_toolkit.methods.speculative.lengths import Adaptive, Fixed
from var_toolkit.methods.speculative.medusa import Medusa
from var_toolkit.methods.speculative.next_scale import NextScale, require_same_images
from var_toolkit.methods.speculative.ngram import NGram
from var_toolkit.methods.speculative.rules import Rule, Standard
from var_toolkit.methods.speculative.small_model import EarlyExit, SmallModel
from var_toolkit.methods.speculative.verify import Proposer, Speculation
from var_toolkit.ranges import checked
from var_toolkit.setting_table import PROPOSERS, RULES, SETTINGS

JACOBI_WINDOW, WINDOW, SCALES, EXIT_LAYERS, CHAINS, NEIGHBOURS = 16, 5, 2, 2, 4, 1000
DRAFTS = 1000  # of a tree
AUTO = "auto"  # the draft length
JUDGE = "stilllife-gpt-judge"  # which comes with the package
HEADS = ("medusa", "hydra")  # proposers whose draft models reach only so far


@dataclass(frozen=True, eq=False)
class DraftModel:
    """What drafts for a target: a smaller backbone, or a head on the target's own features."""

    network: Any
    name: str
    guided: bool = False  # a backbone: as the target is
    tokenizer: Any = None  # of a backbone
    frequent: tuple[int, ...] | None = None  # codes, the most frequent first, where they are known


class Model(Protocol):
    """A pipeline, as far as speculation is concerned."""

    backbone: Any
    tokenizer: Any
    draft_model: DraftModel | None


def speculative(plan: Plan, given: Mapping[str, Any], model: Model) -> Plan:
    """The plan with the speculation that settings by name ask for, at those steps that draw discrete tokens.

    ValueError in one line if they do not fit the model or each other.
    """
    proposer, rule = given.get("speculate"), given.get("accept", "standard")
    if proposer is None:
        raise ValueError(f"{min(given)} is for speculative decoding; give speculate as well: {', '.join(PROPOSERS)}")
    for name, value, allowed in (("speculate", proposer, PROPOSERS), ("accept", rule, RULES)):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    _require_owned(given, proposer, rule)
    by_token = isinstance(plan.steps[0].places, Tokens)
    _require_target(plan, model, proposer, by_token)
    verify = _as_plain(given, model) if proposer == "auto" else (_by_token if by_token else _by_scale)(given, model)
    return plan.changed(verify=verify)


def _as_plain(given: Mapping[str, Any], model: Model) -> AsPlain:
    if given.get("accept", "standard") != "standard":
        raise ValueError("speculate auto gives the tokens of plain decoding; leave accept out, or use speculate jacobi")
    length = given.get("draft_length", AUTO)
    return AsPlain(min(JACOBI_WINDOW if length == AUTO else length, model.tokenizer.scales.total))


def _by_token(given: Mapping[str, Any], model: Model) -> Speculation:
    rule = given.get("accept", "standard")
    shape, lengths = _extent(model, given, given["speculate"], rule)
    return Speculation(_proposer(model, given["speculate"], shape, lengths, given), _rule(model, rule, given), lengths)


def _by_scale(given: Mapping[str, Any], model: Model) -> NextScale:
    """Of a VAR: a smaller one drafts whole scales."""
    for name in ("draft_tree", "draft_confidence", "draft_codes"):
        if name in given:
            raise ValueError(f"{name} is for next-token models; a VAR's drafts are whole scales: use draft_length")
    if given.get("accept") == "kseq":
        raise ValueError("accept kseq is for next-token models; a VAR has one draft for each position")
    if given.get("accept") == "judge":
        raise ValueError("accept judge is for next-token models, whose pass has features at each draft")
    window = given.get("draft_length", SCALES)
    if isinstance(window, str):
        raise ValueError(f"draft_length is {window!r}; for a VAR it must be a number of scales, 1 (plain) or more")
    drafter = _draft_model(model, "draft")
    require_same_images(drafter.network, model.backbone, model.backbone.scales)
    if drafter.tokenizer is not None:
        require_one_tokenizer(model.tokenizer, drafter.tokenizer, ("target", "draft model"))
    return NextScale(_rule(model, given.get("accept", "standard"), given), window)


def _draft_model(model: Model, speculate: str) -> DraftModel:
    if model.draft_model is None:
        raise ValueError(f"speculate {speculate} needs a draft model; give draft_model (--draft-model)")
    return model.draft_model


def _require_owned(given: Mapping[str, Any], proposer: str, rule: str) -> None:
    for name in given:
        owners = SETTINGS[name].of
        if owners and proposer not in owners and rule not in owners:
            kind, chosen = ("speculate", proposer) if owners[0] in PROPOSERS else ("accept", rule)
            raise ValueError(f"{name} is for {kind} {' or '.join(owners)}, not for {chosen}")
    if rule == "kseq" and proposer in ("jacobi", "ngram"):
        raise ValueError(f"accept kseq needs independent drafts, which {proposer} has not; use draft or eagle")


def _require_target(plan: Plan, model: Model, proposer: str, by_token: bool) -> None:
    name = type(model.backbone).__name__
    if not all(isinstance(step.head, Categorical) for step in plan.steps):
        raise ValueError(f"{name} draws continuous tokens; speculation is for discrete ones")
    if {step.network for step in plan.steps} != {plan.steps[0].network}:
        raise ValueError("one draft model cannot draft for two models that share an image; remove speculate")
    if not by_token and proposer != "draft":
        raise ValueError(f"speculate {proposer} is for next-token models (LlamaGen); {name} has speculate draft")


def _tree(tree: Any, model: Model) -> tuple[int, ...]:
    """The children of every node of a level; ValueError if the tree does not fit the model."""
    config = model.backbone.config
    if not isinstance(tree, tuple | list) or not tree or not all(type(width) is int for width in tree):
        raise ValueError(f"draft_tree is {tree!r}; it must be numbers of drafts, one for each level, such as 4,2,1")
    if len(tree) >= config.tokens or max(tree) > config.vocab_size:
        raise ValueError(
            f"draft_tree is {list(tree)}; an image has {config.tokens} tokens of {config.vocab_size} codes"
        )
    if sum(prod(tree[: depth + 1]) for depth in range(len(tree))) > DRAFTS:
        raise ValueError(f"draft_tree is {list(tree)}; it must have {DRAFTS} drafts at most")
    return tuple(tree)


def _extent(model: Model, given: Mapping[str, Any], proposer: str, rule: str) -> tuple[Shape, Fixed]:
    """The drafts of a round, and how far they go."""
    tree, length = given.get("draft_tree"), given.get("draft_length")
    if tree is not None and length is not None:
        raise ValueError("draft_tree and draft_length both say how far to draft; give one of them")
    window = JACOBI_WINDOW if proposer == "jacobi" else WINDOW
    if proposer in HEADS:
        window = min(WINDOW, 1 + getattr(_draft_model(model, proposer).network.config, "heads", WINDOW))
    if tree is not None:
        window = len(_tree(tree, model)) + 1
    elif length is not None and length != AUTO:
        window = min(checked("draft_length", length), model.tokenizer.scales.total)
    policy = (Adaptive if length == AUTO else Fixed)(window, given.get("draft_confidence", 0.0))
    chains = rule == "kseq"
    first = CHAINS if chains else 1
    widths = tuple(tree) if tree is not None else (first, *(1,) * (window - 2))[: window - 1]
    shape = Shape(widths, chains)
    _ = shape.nodes  # which raises ValueError for impossible widths
    return shape, policy


def _proposer(model: Model, name: str, shape: Shape, lengths: Fixed, given: Mapping[str, Any]) -> Proposer:
    if name == "jacobi":
        return Jacobi(lengths.window, given.get("jacobi_start", "repeat"), given.get("jacobi_keep", False))
    if name == "ngram":
        return NGram(shape)
    codes = _draft_codes(model, name, given.get("draft_codes"))
    if name == "early-exit":
        return _early_exit(model, shape, given.get("exit_layers"), codes)
    drafter = _draft_model(model, name)
    if name == "eagle":
        return Eagle(shape, codes)
    if name in HEADS:
        return Medusa(shape, sequential=name == "hydra", codes=codes)
    found = SmallModel(shape, drafter.guided, codes)
    found.require_fit(model.backbone, {DRAFT: drafter.network})
    if drafter.tokenizer is not None:
        require_one_tokenizer(model.tokenizer, drafter.tokenizer, ("target", "draft model"))
    return found


def _draft_codes(model: Model, name: str, count: int | None) -> tuple[int, ...] | None:
    """The most frequent codes; None for all."""
    if count is None:
        return None
    drafter = _draft_model(model, name)
    if drafter.frequent is None:
        raise ValueError(
            f"draft_codes needs to know which codes are frequent, and {drafter.name} has no {FILE}, which training "
            "writes; leave draft_codes out, or write that file"
        )
    codes = drafter.frequent[: checked("draft_codes", count)]
    return None if len(codes) == model.backbone.config.vocab_size else codes


def _early_exit(model: Model, shape: Shape, layers: int | None, codes: tuple[int, ...] | None) -> EarlyExit:
    """With a trained head the conditional row alone, as the head learns it; without, guided as the target is."""
    head = model.draft_model
    if head is None:
        return EarlyExit(shape, layers=layers or min(EXIT_LAYERS, model.backbone.config.depth - 1))
    trained: int = getattr(head.network.config, "layers", EXIT_LAYERS)
    return EarlyExit(shape, guided=False, codes=codes, layers=layers or trained, with_head=True)


def _rule(model: Model, name: str, given: Mapping[str, Any]) -> Rule:
    rules: dict[str, Callable[[], Rule]] = {
        "standard": Standard,
        "kseq": KSeq,
        "lantern": lambda: _lantern(model, given),
        "judge": lambda: _judge(given),
        "grouped": lambda: Grouped(given.get("group", 3)),
        "decayed": lambda: Decayed(given.get("boost", 1.1), given.get("decay", 0.7)),
    }
    return rules[name]()


def _judge(given: Mapping[str, Any]) -> Judged:
    """With the weights of the judge, which a plan holds as numbers."""
    if "judge" not in given:
        raise ValueError(f"accept judge needs a trained judge; give judge, such as {JUDGE!r} for stilllife-gpt")
    return Judged.by(read_judge(given["judge"]), given.get("judge_threshold", 0.5))


def _lantern(model: Model, given: Mapping[str, Any]) -> Lantern:
    """With a delta of 0.1 unless a delta or a lambda is given; codes are compared as the tokenizer compares them."""
    delta, factor = given.get("delta"), given.get("factor")
    if delta is None and factor is None:
        delta = 0.1
    codes = len(model.tokenizer.pyramid.embedding.weight)
    count = given.get("neighbours", min(NEIGHBOURS, codes - 1))
    if count >= codes:
        raise ValueError(f"neighbours is {count}; it must be from 1 to {codes - 1}, one less than the codes")
    return Lantern(count, delta, factor, given.get("raw_codes", False))
