"""Speculative decoding of next-token models: drafts, one pass of the target, a verdict, and again.

Every image advances at its own pace, so none depends on the others of its batch (the published code of Speculative
Jacobi advances all rows by the shortest, which is not exact). Randomness has a stream for drafts, one for verdicts and
one for the tokens that the target draws itself, each used once for every purpose and round.

The host reads from the device once a round: which drafts were accepted. An n-gram proposer also reads the new tokens,
and a confidence threshold adds a read for each level of drafts.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, N drafts, M positions with
drafts, S drafts for one position, A tokens decided in a round, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from var_toolkit.conditions.condition import Asked
from var_toolkit.core.bind import Bound, Run
from var_toolkit.core.cache import RaggedCache
from var_toolkit.core.engine import Drawing
from var_toolkit.core.filters import pick
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.parts import Part
from var_toolkit.core.plan import Verify
from var_toolkit.core.preserved import Preserved
from var_toolkit.heads.categorical import only
from var_toolkit.methods.speculative.drafts import Draft
from var_toolkit.methods.speculative.lengths import Account, LengthPolicy, Record
from var_toolkit.methods.speculative.rules import Rule, Verdict
from var_toolkit.methods.speculative.tally import Tally
from var_toolkit.methods.speculative.token_sampling import TokenSampling


class Rounds:
    """One batch under way, which proposers read. `begun` (B, n) are tokens that were decided before."""

    def __init__(
        self,
        sampling: TokenSampling,
        request: Asked,
        noise: Noise,
        *,
        networks: Mapping[str, Any] | None = None,
        begun: Tensor | None = None,
        total: int | None = None,
        preserved: Preserved | None = None,
        checks: FiniteCheck | None = None,
    ) -> None:
        self.sampling, self.request, self.noise, self.networks = sampling, request, noise, networks or {}
        self.network, self.images = sampling.network, len(request)
        self.total = total or self.network.scales.total  # tokens when this is over
        known = 0 if begun is None else begun.shape[1]
        device = next(self.network.parameters()).device
        self.tokens_BL = torch.zeros(self.images, self.total, dtype=torch.int64, device=device)
        if begun is not None:
            self.tokens_BL[:, :known] = begun
        self.first = known
        self.counts = [known] * self.images  # decided tokens of each image, which is the position of the next
        self.positions_B = torch.full((self.images,), known, dtype=torch.int64, device=device)  # the same as a tensor
        self.round = 0
        self.preserved, self.checks = preserved, checks or FiniteCheck()

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

    def learn(self, run: Rounds, checked: Checked) -> None:
        """See what became of the last round; also of the first pass, which had no drafts."""
        ...

    def propose(self, run: Rounds, depths: Sequence[int]) -> tuple[Draft | None, list[int]]:
        """Drafts of at most so many levels for each image, and how many passes each of them alone would take."""
        ...


class Proposer(Part):
    """Settings of a proposer. The networks that it drafts with are named by role."""

    roles: ClassVar[tuple[str, ...]] = ()
    needs_all_features: ClassVar[bool] = False  # of the target, so that it cannot start behind other steps

    def begin(self, run: Rounds, lengths: LengthPolicy) -> Session:
        """Start to draft for a batch."""
        raise NotImplementedError

    def require_fit(self, target: Any, networks: Mapping[str, Any]) -> None:
        """ValueError unless its networks can draft for a target."""

    def cost(self, target: TokenSampling, networks: Mapping[str, Any]) -> float:
        """Of a proposer's pass, in passes of the target."""
        return 0.0

    @property
    def nodes(self) -> int:
        """Drafts of a round at most."""
        raise NotImplementedError

    def described(self, networks: Mapping[str, Any]) -> str:
        """The settings in words."""
        return str(self)


@dataclass(frozen=True)
class Speculation(Verify):
    """A proposer, a rule and a length policy: how a next-token model draws consecutive tokens."""

    proposer: Proposer
    rule: Rule
    lengths: LengthPolicy

    def networks(self) -> tuple[str, ...]:
        """The roles of the networks that draft."""
        return self.proposer.roles

    def bound(self, run: Run, steps: Sequence[Bound]) -> Speculator:
        """What draws the tokens of some steps. ValueError unless they are drawn alike, token by token."""
        return Speculator(self, TokenSampling.of_steps(steps), run, steps)


class Speculator:
    """A speculation with its networks."""

    def __init__(self, settings: Speculation, sampling: TokenSampling, run: Run, steps: Sequence[Bound]) -> None:
        settings.proposer.require_fit(sampling.network, run.networks)
        if settings.proposer.needs_all_features and steps[0].step.places.covered(run.schedule).start > 0:
            name = type(settings.proposer).__name__
            raise ValueError(f"{name} drafts from the first token on; let no step precede it")
        self.settings, self.sampling, self.run = settings, sampling, run
        self.stop = steps[-1].step.places.covered(run.schedule).stop

    @cached_property
    def rule(self) -> Rule:
        """The rule for the codes of the tokenizer."""
        return self.settings.rule.bound(self.run.pyramid)

    def draw(self, drawing: Drawing) -> None:
        """Draw the tokens of the steps."""
        rounds = Rounds(
            self.sampling,
            drawing.request,
            drawing.noise,
            networks=self.run.networks,
            begun=drawing.begun,
            total=self.stop,
            preserved=drawing.preserved,
            checks=drawing.checks,
        )
        tally = speculate(rounds, self.settings, self.rule)
        drawing.add(tally, tally.forward_passes, tally.cache_bytes)
        drawing.put_tokens(rounds.tokens_BL[:, rounds.first :])

    def __str__(self) -> str:
        settings = self.settings
        return f"{settings.proposer.described(self.run.networks)}, {settings.rule}, {settings.lengths}"


@torch.inference_mode()
def speculate(run: Rounds, settings: Speculation, rule: Rule) -> Tally:
    """Decide all tokens of a batch (`run.tokens_BL`); returns what it took."""
    target, session = Target(run, settings.proposer.nodes), settings.proposer.begin(run, settings.lengths)
    books = _Books(run, settings.lengths, settings.proposer.cost(run.sampling, run.networks))
    draft, passes = None, [0] * run.images
    while True:
        checked = target.check(draft, rule)
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
    return books.closed(target.cache.nbytes)


class _Books:
    """What became of the drafts of each image, and how far it drafts next."""

    def __init__(self, run: Rounds, lengths: LengthPolicy, cost: float) -> None:
        self.run, self.lengths, self.cost = run, lengths, cost
        self.windows = [lengths.first] * run.images
        self.accounts = [Account() for _ in run.counts]
        self.tally = Tally(images=run.images, decided=(run.total - run.first) * run.images)
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

    def __init__(self, run: Rounds, nodes: int) -> None:
        self.run, self.network = run, run.network
        self.condition = run.network.condition(run.request.rows(run.network, run.sampling.rows))
        self.cache: RaggedCache = self.network.new_ragged_cache(run.images * run.sampling.rows, 1 + run.total + nodes)
        self.uniform_BL = run.noise.uniform(Stream.TOKEN, 0, run.total)

    def check(self, draft: Draft | None, rule: Rule) -> Checked:
        """One pass over the last decided token and its drafts; appends the accepted drafts, and one token more."""
        run = self.run
        hidden_RLC = self._read(draft)
        what = f"the target's logits from token {min(run.counts)} on"
        positions = self._positions(draft)
        logits = run.sampling.choices(self.network.next_logits(hidden_RLC), positions, run.checks, what)
        given = self._given(positions)
        p = run.sampling.head.probabilities(logits if given is None else only(given[0], logits, given[1]))
        checked = self._plain(p, hidden_RLC) if draft is None else self._judged(draft, p, hidden_RLC, rule)
        run.extend(checked.tokens, checked.new)
        self.cache.rewind(run.counts * run.sampling.rows)
        return checked

    def _plain(self, p: Tensor, hidden_R1C: Tensor) -> Checked:
        """A token for each image, without drafts."""
        tokens_B1 = pick(p, self._uniform(self.run.positions_B.unsqueeze(1)))
        return Checked(None, p, None, [min(1, left) for left in self.run.left], tokens_B1, hidden_R1C)

    def _judged(self, draft: Draft, p: Tensor, hidden_RLC: Tensor, rule: Rule) -> Checked:
        """The accepted drafts, and a token after them."""
        run, rows, verdict = self.run, self.run.sampling.rows, self._verdict(draft, p, rule)
        paths = _paths(draft, verdict)
        new = [len(path) if left else 0 for path, left in zip(paths, run.left, strict=True)]
        nodes_BA = _padded(paths).to(p.device)
        tokens_BA = self._tokens(draft, p, verdict, nodes_BA, paths)
        if not draft.topology.is_chain:  # which lies where it belongs already
            root_B1 = run.positions_B.unsqueeze(1)
            self.cache.move(run.positions_B.repeat(rows), (root_B1 + nodes_BA).repeat(rows, 1))
        return Checked(draft, p, verdict, new, tokens_BA, along(hidden_RLC, nodes_BA.repeat(rows, 1)))

    def _read(self, draft: Draft | None) -> Tensor:
        run, copies = self.run, self.run.sampling.rows
        if self.cache.length == 0:
            begun_RL = run.tokens_BL[:, : run.first].repeat(copies, 1)
            return cast(Tensor, self.network.next_hidden(self.condition.tokens, begun_RL, cache=self.cache)[:, -1:])
        tokens_BL, branches = run.last(), None
        if draft is not None:
            tokens_BL = torch.cat((tokens_BL, draft.tokens), dim=1)
            root_R = run.positions_B.repeat(copies)
            branches = draft.topology.branches(
                range(draft.topology.nodes), root_R, root_R, longest=max(run.counts), first=0
            )
        hidden = self.network.next_hidden(None, tokens_BL.repeat(copies, 1), cache=self.cache, branches=branches)
        return cast(Tensor, hidden)

    def _given(self, positions_BL: Tensor) -> tuple[Tensor, Tensor] | None:
        """The preserved tokens at some positions, and where they are preserved."""
        preserved, last = self.run.preserved, self.run.network.scales.total - 1
        if preserved is None:
            return None
        at_BL = positions_BL.clamp(max=last)
        rows = (part[0].expand(len(at_BL), -1) for part in (preserved.tokens[0], preserved.mask[0]))
        return tuple(row.gather(1, at_BL) for row in rows)  # type: ignore[return-value]

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
        given = self._given(self._positions(draft)[:, :positions])
        if given is not None:  # whatever the rule: at a preserved position no other token is accepted
            fits = ~given[1].unsqueeze(-1) | (drafted.tokens == given[0].unsqueeze(-1))
            drafted = drafted._replace(valid=drafted.valid & fits)
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
