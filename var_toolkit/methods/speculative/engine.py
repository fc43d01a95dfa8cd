"""The engine of speculative decoding for next-token models: drafts, one pass of the target, a verdict, and again.

Every image advances at its own pace, so none depends on the others of its batch (the published code of Speculative
Jacobi advances all rows by the shortest, which is not exact). Randomness has a stream for drafts, one for verdicts and
one for the tokens that the target draws itself, each used once for every purpose and round.

The host reads from the device once a round: which drafts were accepted. An n-gram proposer also reads the new tokens,
and a confidence threshold adds a read for each level of drafts.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, N drafts, M positions with
drafts, S drafts for one position, A tokens decided in a round, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from var_toolkit.core.cache import RaggedCache
from var_toolkit.core.engine import Decoded, ScaleEvent, labels_of_rows
from var_toolkit.core.filters import pick
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.next_token import choices
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.plan import Plan, Stage, is_next_token
from var_toolkit.methods.speculative.drafts import Draft
from var_toolkit.methods.speculative.lengths import Account, LengthPolicy, Record
from var_toolkit.methods.speculative.rules import Rule, Verdict
from var_toolkit.methods.speculative.tally import Tally


class Run:
    """One batch under way, which proposers read."""

    def __init__(self, stage: Stage, labels_R: Tensor, noise: Noise) -> None:
        self.stage, self.labels_R, self.noise = stage, labels_R, noise
        self.total = stage.backbone.config.tokens
        self.images = len(labels_R) // stage.rows
        self.tokens_BL = labels_R.new_zeros(self.images, self.total)
        self.counts = [0] * self.images  # decided tokens of each image, which is the position of the next
        self.positions_B = labels_R.new_zeros(self.images)  # the same as a tensor
        self.round = 0
        self.checks = FiniteCheck()

    @property
    def left(self) -> list[int]:
        """Tokens that are still to come, of each image."""
        return [self.total - count for count in self.counts]

    def last(self) -> Tensor:
        """The last decided token of each image, (B, 1)."""
        return self.tokens_BL.gather(1, self.positions_B.unsqueeze(1) - 1)

    def extend(self, tokens_BA: Tensor, new: Sequence[int]) -> None:
        """Append the first `new` tokens of each row to those that are decided."""
        if min(new) == max(new) == tokens_BA.shape[1]:
            self.tokens_BL.scatter_(1, self._ranks(tokens_BA) + self.positions_B.unsqueeze(1), tokens_BA)
            self.positions_B = self.positions_B + max(new)
        else:
            new_B = torch.tensor(new).to(tokens_BA.device)
            pairs = [(row, rank) for row, count in enumerate(new) for rank in range(count)]
            rows_X, ranks_X = torch.tensor(pairs).to(tokens_BA.device).unbind(1)
            self.tokens_BL[rows_X, self.positions_B[rows_X] + ranks_X] = tokens_BA[rows_X, ranks_X]
            self.positions_B = self.positions_B + new_B
        self.counts = [count + more for count, more in zip(self.counts, new, strict=True)]

    @staticmethod
    def _ranks(tokens_BA: Tensor) -> Tensor:
        return torch.arange(tokens_BA.shape[1], device=tokens_BA.device)


@dataclass(frozen=True)
class Checked:
    """A round that is over."""

    draft: Draft | None
    p: Tensor  # (B, 1 + N, V): what the target would draw from behind each node
    verdict: Verdict | None  # of the M positions, (B, M)
    new: list[int]  # tokens that each image gains: the accepted drafts and one more, or none at all
    tokens: Tensor  # (B, A): these tokens, from the left
    features: Tensor  # (R, A, C): the target's, where it predicted them


class Session(Protocol):
    """A proposer at work on one batch."""

    def learn(self, run: Run, checked: Checked) -> None:
        """See what became of the last round; also of the first pass, which had no drafts."""
        ...

    def propose(self, run: Run, depths: Sequence[int]) -> tuple[Draft | None, list[int]]:
        """Drafts of at most so many levels for each image, and how many passes each of them alone would take."""
        ...


class Proposer(Protocol):
    """Settings of a proposer."""

    def begin(self, run: Run, lengths: LengthPolicy) -> Session: ...

    def cost(self, stage: Stage) -> float:
        """Of a proposer's pass, in passes of the target."""
        ...

    @property
    def nodes(self) -> int:
        """Drafts of a round at most."""
        ...

    @property
    def networks(self) -> Sequence[Any]:
        """What it draws with, beside the target."""
        ...


@dataclass(frozen=True, repr=False)
class Speculation:
    """A proposer, a rule and a length policy: how a stage of a next-token model draws its map."""

    proposer: Proposer
    rule: Rule
    lengths: LengthPolicy

    @property
    def networks(self) -> Sequence[Any]:
        """Those that draft, the target's own layers not counted again."""
        return self.proposer.networks

    def require_fit(self, stage: Stage) -> None:
        """ValueError unless the stage draws a map token by token."""
        if not is_next_token(stage.backbone):
            name = type(stage.backbone).__name__
            raise ValueError(f"{name} draws whole maps at once; this speculation is for next-token models")

    @torch.inference_mode()
    def decode(
        self, plan: Plan, labels_B: Tensor, noise: Noise, *, on_scale: Callable[[ScaleEvent], None] | None = None
    ) -> Decoded:
        """As `sampling.engine.decode`, which calls it."""
        (stage,) = plan.stages
        tokens_BL, tally = self.draw(stage, labels_of_rows(stage, labels_B), noise)
        latent = plan.tokenizer.pyramid.grow(None, plan.tokenizer.pyramid.embed(tokens_BL), 0)
        if on_scale is not None:
            on_scale(ScaleEvent(0, tokens_BL, latent, plan.tokenizer))
        return Decoded([tokens_BL], latent, tally.forward_passes, 0, tally.cache_bytes, tally)

    def draw(self, stage: Stage, labels_R: Tensor, noise: Noise) -> tuple[Tensor, Tally]:
        """The map of each image, (B, L), and what it took."""
        run = Run(stage, labels_R, noise)
        target, session = Target(run, self.proposer.nodes), self.proposer.begin(run, self.lengths)
        books = _Books(run, self.lengths, self.proposer.cost(stage))
        draft, passes = None, [0] * run.images
        while True:
            checked = target.check(draft, self.rule)
            books.enter(checked, passes)
            if not any(run.left):
                break
            run.round += 1
            depths = books.depths()
            if any(depths):
                session.learn(run, checked)
                draft, passes = session.propose(run, depths)
            else:  # nor ever again: images that gave up drafting, and those near their end, stay so
                draft, passes = None, [0] * run.images
        run.checks.require()
        return run.tokens_BL, books.closed(target.cache.nbytes)

    def __repr__(self) -> str:
        """All settings in words, without the tensors."""
        return f"{self.proposer}, {self.rule}, {self.lengths}"


class _Books:
    """What became of the drafts of each image, and how far it drafts next."""

    def __init__(self, run: Run, lengths: LengthPolicy, cost: float) -> None:
        self.run, self.lengths, self.cost = run, lengths, cost
        self.windows = [lengths.first] * run.images
        self.accounts = [Account() for _ in run.counts]
        self.tally = Tally(images=run.images, decided=run.total * run.images)
        self.tally.paces = [[] for _ in run.counts]

    def enter(self, checked: Checked, passes: Sequence[int]) -> None:
        """A round that is over; the first pass had no drafts and belongs to none."""
        offered = [0] * self.run.images if checked.draft is None else checked.draft.depths
        for row, (drafted, new) in enumerate(zip(offered, checked.new, strict=True)):
            if new == 0:
                continue
            self.tally.target_passes += 1
            self.tally.paces[row].append(new)
            if self.run.round > 0:
                self._enter(row, Record(drafted, new - 1, passes[row]))

    def _enter(self, row: int, record: Record) -> None:
        self.windows[row] = self.lengths.after(self.windows[row], record)
        self.accounts[row].add(record)
        self.tally.draft_passes += record.passes
        self.tally.drafted += record.drafted
        self.tally.accepted_counts[record.accepted] += 1

    def depths(self) -> list[int]:
        """How many tokens to draft for each image: none where that does not pay, and none behind its end."""
        return [
            max(0, min(window, left) - 1) if account.pays(self.cost) else 0
            for window, left, account in zip(self.windows, self.run.left, self.accounts, strict=True)
        ]

    def closed(self, cache_bytes: int) -> Tally:
        """The numbers of the whole run."""
        self.tally.fall_backs = sum(not account.pays(self.cost) for account in self.accounts)
        self.tally.forward_passes, self.tally.cache_bytes = self.run.round + 1, cache_bytes
        return self.tally


class Target:
    """The large network and its cache, which holds all but the last decided token between rounds."""

    def __init__(self, run: Run, nodes: int) -> None:
        self.run, self.network = run, cast(Any, run.stage.backbone)
        self.cache: RaggedCache = self.network.new_ragged_cache(len(run.labels_R), 1 + run.total + nodes)
        self.uniform_BL = run.noise.uniform(Stream.TOKEN, 0, run.total)

    def check(self, draft: Draft | None, rule: Rule) -> Checked:
        """One pass over the last decided token and its drafts; appends the accepted drafts, and one token more."""
        run = self.run
        hidden_RLC = self._read(draft)
        what = f"the target's logits from token {min(run.counts)} on"
        logits = choices(run.stage, self.network.next_logits(hidden_RLC), self._positions(draft), run.checks, what)
        p = logits.softmax(-1)
        checked = self._plain(p, hidden_RLC) if draft is None else self._judged(draft, p, hidden_RLC, rule)
        run.extend(checked.tokens, checked.new)
        self.cache.rewind(run.counts * run.stage.rows)
        return checked

    def _plain(self, p: Tensor, hidden_R1C: Tensor) -> Checked:
        """A token for each image, without drafts."""
        tokens_B1 = pick(p, self._uniform(self.run.positions_B.unsqueeze(1)))
        return Checked(None, p, None, [min(1, left) for left in self.run.left], tokens_B1, hidden_R1C)

    def _judged(self, draft: Draft, p: Tensor, hidden_RLC: Tensor, rule: Rule) -> Checked:
        """The accepted drafts, and a token after them."""
        run, verdict = self.run, self._verdict(draft, p, rule)
        paths = _paths(draft, verdict)
        new = [len(path) if left else 0 for path, left in zip(paths, run.left, strict=True)]
        nodes_BA = _padded(paths).to(p.device)
        tokens_BA = self._tokens(draft, p, verdict, nodes_BA, paths)
        if not draft.topology.is_chain:  # which lies where it belongs already
            root_B1 = run.positions_B.unsqueeze(1)
            self.cache.move(run.positions_B.repeat(run.stage.rows), (root_B1 + nodes_BA).repeat(run.stage.rows, 1))
        return Checked(draft, p, verdict, new, tokens_BA, along(hidden_RLC, nodes_BA.repeat(run.stage.rows, 1)))

    def _read(self, draft: Draft | None) -> Tensor:
        run, copies = self.run, self.run.stage.rows
        if self.cache.length == 0:
            none_R0 = run.labels_R.new_empty(len(run.labels_R), 0)
            return cast(Tensor, self.network.next_hidden(run.labels_R, none_R0, cache=self.cache))
        tokens_BL, branches = run.last(), None
        if draft is not None:
            tokens_BL = torch.cat((tokens_BL, draft.tokens), dim=1)
            root_R = run.positions_B.repeat(copies)
            branches = draft.topology.branches(
                range(draft.topology.nodes), root_R, root_R, longest=max(run.counts), first=0
            )
        hidden = self.network.next_hidden(None, tokens_BL.repeat(copies, 1), cache=self.cache, branches=branches)
        return cast(Tensor, hidden)

    def _positions(self, draft: Draft | None) -> Tensor:
        """Of the tokens behind each node, in the map, (B, 1 + N)."""
        counts_B1 = self.run.positions_B.unsqueeze(1)
        return counts_B1 if draft is None else counts_B1 + draft.topology.depths.to(counts_B1.device)

    def _verdict(self, draft: Draft, p: Tensor, rule: Rule) -> Verdict:
        """For every position with drafts, because the accepted path is known only afterwards."""
        if draft.kind not in rule.kinds:
            raise ValueError(f"{rule} judges {' or '.join(rule.kinds)} drafts; these are {draft.kind}")
        drafted = draft.drafted()
        positions, count = drafted.tokens.shape[1], draft.tokens.shape[1]
        # A number for each draft, so that it does not depend on how far others of the batch have drafted.
        uniform_BN = self.run.noise.uniform(Stream.ACCEPT, 0, count, attempt=self.run.round)
        children_MS = draft.topology.children.clamp(min=0).to(p.device)
        return rule.judge(p[:, :positions], drafted, uniform_BN[:, children_MS])

    def _tokens(self, draft: Draft, p: Tensor, verdict: Verdict, nodes_BA: Tensor, paths: list[list[int]]) -> Tensor:
        """The drafts along each path, and behind them one token from what is left there, (B, A)."""
        p = torch.cat((verdict.residual, p[:, verdict.residual.shape[1] :]), dim=1)
        accepted_B1 = torch.tensor([[len(path) - 1] for path in paths]).to(p.device)
        last_B1V = along(p, nodes_BA.gather(1, accepted_B1))
        drawn_B1 = pick(last_B1V, self._uniform(self.run.positions_B.unsqueeze(1) + accepted_B1))
        drafts_BA = draft.tokens.gather(1, (nodes_BA[:, 1:] - 1).clamp(min=0))
        return torch.cat((drafts_BA, drawn_B1), dim=1).scatter(1, accepted_B1, drawn_B1)

    def _uniform(self, positions_B1: Tensor) -> Tensor:
        """The numbers that draw the tokens of these positions; a finished image gets any."""
        return self.uniform_BL.gather(1, positions_B1.clamp(max=self.run.total - 1))


def along(values_RLX: Tensor, index_RA: Tensor) -> Tensor:
    """Some positions of each row, (R, A, X)."""
    return values_RLX.gather(1, index_RA.unsqueeze(-1).expand(-1, -1, values_RLX.shape[-1]))


def _paths(draft: Draft, verdict: Verdict) -> list[list[int]]:
    """The nodes of each image from the root along the accepted drafts.

    The one read of a round by the host, which has to know how far each image has come.
    """
    children = draft.topology.children_lists
    return [_path(choice, children) for choice in verdict.choice.tolist()]


def _path(choice: list[int], children: list[list[int]]) -> list[int]:
    path = [0]
    while path[-1] < len(children) and choice[path[-1]] < len(children[0]):
        path.append(1 + children[path[-1]][choice[path[-1]]])
    return path


def _padded(paths: list[list[int]]) -> Tensor:
    """Paths as one tensor, int64; shorter ones go on with the root."""
    longest = max(map(len, paths))
    return torch.tensor([path + [0] * (longest - len(path)) for path in paths])
