"""Speculative decoding of next-token models: drafts, one pass of the target, a verdict, and again.

Every image advances at its own pace, so none depends on the others of its batch (the published code of Speculative
Jacobi advances all rows by the shortest, which is not exact). Randomness has a stream for drafts, one for verdicts and
one for the tokens that the target draws itself, each used once for every purpose and round.

All that a round computes stays on the device, lengths and paths as well. The host reads once a round: how many tokens
each image has gained and how far it drafts next, which decide the shapes of the next pass, and the new tokens, which
some proposers keep. It copies nothing to the device; an n-gram proposer copies its drafts. A confidence threshold adds
a read for each level of drafts.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, N drafts, M positions with
drafts, S drafts for one position, A tokens decided in a round, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from var_toolkit.core.noise import Noise, RoundNoise, Stream
from var_toolkit.core.parts import Part
from var_toolkit.core.plan import Verify
from var_toolkit.core.preserved import Preserved
from var_toolkit.heads.categorical import only
from var_toolkit.methods.speculative.drafts import Draft, PerImage, Topology
from var_toolkit.methods.speculative.lengths import Account, LengthPolicy, Record
from var_toolkit.methods.speculative.rules import Drafted, Rule
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
        zeros_B = torch.zeros(self.images, dtype=torch.int64, device=next(self.network.parameters()).device)
        self.none = PerImage([0] * self.images, zeros_B)
        self._written = zeros_B.new_zeros(self.images, self.total + 1)  # the last column takes what lies behind the end
        self.tokens_BL = self._written[:, : self.total]
        if begun is not None:
            self.tokens_BL[:, :known] = begun
        self.first = known
        self.counts = [known] * self.images  # decided tokens of each image, which is the position of the next
        self.positions_B = zeros_B + known  # the same as a tensor
        self.round = 0
        self.preserved, self.checks = preserved, checks or FiniteCheck()

    @property
    def left(self) -> list[int]:
        """Tokens that are still to come, of each image."""
        return [self.total - count for count in self.counts]

    def last(self) -> Tensor:
        """The last decided token of each image, (B, 1)."""
        return self.tokens_BL.gather(1, self.positions_B.unsqueeze(1) - 1)

    def extend(self, tokens_BA: Tensor, new_B: Tensor) -> None:
        """Append the first `new_B` tokens of each row to those that are decided; the others count for nothing."""
        ranks_A = torch.arange(tokens_BA.shape[1], device=tokens_BA.device)
        self._written.scatter_(1, (self.positions_B.unsqueeze(1) + ranks_A).clamp(max=self.total), tokens_BA)
        self.positions_B = self.positions_B + new_B

    def read(self, checked: Checked, next_BX: Tensor) -> tuple[Checked, list[list[int]]]:
        """What the host learns of a round, and some more numbers of each image: the one read of a round."""
        told = torch.cat((checked.gained.unsqueeze(1), next_BX, checked.tokens), dim=1).tolist()
        new, more = [row[0] for row in told], 1 + next_BX.shape[1]
        self.gain(new)
        listed = [row[more : more + count] for row, count in zip(told, new, strict=True)]
        tokens, features = (part[:, : max(new)] for part in (checked.tokens, checked.features))
        known = replace(checked, new=new, listed=listed, tokens=tokens, features=features)
        return known, [row[1:more] for row in told]

    def restart(self, count: int) -> None:
        """Take back what lies behind the first tokens, of each image the same number."""
        self.counts, self.positions_B = [count] * self.images, torch.full_like(self.positions_B, count)

    def gain(self, new: Sequence[int]) -> None:
        """Count new tokens of each image."""
        self.counts = [count + more for count, more in zip(self.counts, new, strict=True)]


@dataclass(frozen=True)
class Judgement:
    """What a rule says of the M positions with drafts."""

    rule: Rule
    p: Tensor  # (B, M, V): the target's
    drafted: Drafted
    uniform: Tensor  # (B, M, S)
    choice: Tensor  # (B, M): the draft that is accepted, or S if none is

    @cached_property
    def residual(self) -> Tensor:
        """What the token of each position is drawn from if no draft is accepted, (B, M, V)."""
        return self.rule.judge(self.p, self.drafted, self.uniform).residual

    def residual_at(self, position_B1: Tensor) -> Tensor:
        """The same of one position of each image, (B, 1, V)."""
        drafted = self.drafted
        one = drafted._replace(
            tokens=along(drafted.tokens, position_B1),
            valid=along(drafted.valid, position_B1),
            q=None if drafted.q is None else along(drafted.q, position_B1),
            depth=drafted.depth.gather(1, position_B1),
            opinion=None if drafted.opinion is None else along(drafted.opinion, position_B1),
        )
        return self.rule.judge(along(self.p, position_B1), one, along(self.uniform, position_B1)).residual


@dataclass(frozen=True)
class Checked:
    """A round that is over. `new` and `listed` are what the host has read of it."""

    draft: Draft | None
    p: Tensor  # (B, 1 + N, V): what the target would draw from behind each node
    judged: Judgement | None  # of a draft
    gained: Tensor  # (B): tokens that each image gains: the accepted drafts and one more, or none at all
    tokens: Tensor  # (B, A): these tokens, from the left, then any
    features: Tensor  # (R, A, C): the target's, where it predicted them
    new: Sequence[int] = ()
    listed: Sequence[list[int]] = ()  # the new tokens of each image

    @property
    def judgement(self) -> Judgement:
        """Of the drafts, where there were some."""
        assert self.judged is not None
        return self.judged


class Session(Protocol):
    """A proposer at work on one batch."""

    def learn(self, run: Rounds, checked: Checked) -> None:
        """See what became of the last round; also of the first pass, which had no drafts."""
        ...

    def propose(self, run: Rounds, depths: PerImage) -> tuple[Draft | None, PerImage]:
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
        settings.rule.require_fit(sampling.network)
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
        rounds = rounds_of(self.sampling, drawing, self.run, self.stop)
        tally = speculate(rounds, self.settings, self.rule)
        drawing.add(tally, tally.forward_passes, tally.cache_bytes)
        drawing.put_tokens(rounds.tokens_BL[:, rounds.first :])

    def __str__(self) -> str:
        settings = self.settings
        return f"{settings.proposer.described(self.run.networks)}, {settings.rule}, {settings.lengths}"


def rounds_of(sampling: TokenSampling, drawing: Drawing, run: Run, stop: int) -> Rounds:
    """The rounds that draw the tokens of a drawing up to `stop`."""
    return Rounds(
        sampling,
        drawing.request,
        drawing.noise,
        networks=run.networks,
        begun=drawing.begun,
        total=stop,
        preserved=drawing.preserved,
        checks=drawing.checks,
    )


@torch.inference_mode()
def speculate(run: Rounds, settings: Speculation, rule: Rule) -> Tally:
    """Decide all tokens of a batch (`run.tokens_BL`); returns what it took."""
    target, session = Target(run, settings.proposer.nodes), settings.proposer.begin(run, settings.lengths)
    books = _Books(run, settings.lengths, settings.proposer.cost(run.sampling, run.networks))
    draft, passes = None, run.none
    while True:
        checked = target.check(draft, rule)
        checked, told = run.read(checked, books.weigh(checked, passes))
        depths = books.enter(checked, passes, told)
        target.rewind()
        if not any(depths.known):
            break
        run.round += 1
        session.learn(run, checked)
        draft, passes = session.propose(run, depths)
    # Images that gave up drafting, and those near their end, stay so. Of their passes the host need not read anything.
    while any(run.left):
        run.round += 1
        target.check(None, rule)
        books.enter_plain()
        target.rewind()
    run.checks.require()
    return books.closed(target.cache.nbytes)


class _Books:
    """What became of the drafts of each image, and how far it drafts next."""

    def __init__(self, run: Rounds, lengths: LengthPolicy, cost: float) -> None:
        self.run, self.lengths, self.cost = run, lengths, cost
        device = run.positions_B.device
        self.windows_B = self.depths_B = torch.full((run.images,), lengths.first, device=device)
        self.account = Account.of_images(run.images, device) if cost > 0 else None  # drafts without cost always pay
        self.tally = Tally(images=run.images, decided=(run.total - run.first) * run.images)
        self.tally.paces = [[] for _ in run.counts]

    def weigh(self, checked: Checked, passes: PerImage) -> Tensor:
        """How far to draft next, and whether drafting is given up, of each image, (B, 2).

        None where drafting does not pay, and none behind the end. The first pass had no drafts and belongs to no round.
        """
        if self.run.round > 0:
            drafted_B = (checked.draft.depths if checked.draft is not None else self.run.none).tensor
            record = Record(drafted_B, checked.gained - 1, passes.tensor)
            self.windows_B = self.lengths.after(self.windows_B, record)
            if self.account is not None:
                self.account.add(record)
        given_up_B = self.run.none.tensor if self.account is None else (~self.account.pays(self.cost)).long()
        open_B = torch.minimum(self.windows_B, self.run.total - self.run.positions_B)
        self.depths_B = (open_B - 1).clamp(min=0) * (1 - given_up_B)
        return torch.stack((self.depths_B, given_up_B), dim=1)

    def enter(self, checked: Checked, passes: PerImage, told: Sequence[Sequence[int]]) -> PerImage:
        """Enter what the host has read of a round; returns how far to draft."""
        drafted = (checked.draft.depths if checked.draft is not None else self.run.none).known
        for row, new in enumerate(checked.new):
            self._enter(row, new, drafted[row], passes.known[row])
        self.tally.fall_backs = sum(given_up for _, given_up in told)
        return PerImage([depth for depth, _ in told], self.depths_B)

    def enter_plain(self) -> None:
        """Enter a pass without drafts, of which every image gains a token that is not finished."""
        new = [min(1, left) for left in self.run.left]
        self.run.gain(new)
        for row, more in enumerate(new):
            self._enter(row, more, 0, 0)

    def _enter(self, row: int, new: int, drafted: int, passes: int) -> None:
        if new == 0:
            return
        self.tally.target_passes += 1
        self.tally.paces[row].append(new)
        if self.run.round > 0:
            self.tally.draft_passes += passes
            self.tally.drafted += drafted
            self.tally.accepted_counts[new - 1] += 1

    def closed(self, cache_bytes: int) -> Tally:
        """The numbers of the whole run."""
        self.tally.forward_passes, self.tally.cache_bytes = self.run.round + 1, cache_bytes
        return self.tally


class Target:
    """The large network and its cache, which holds all but the last decided token between rounds."""

    def __init__(self, run: Rounds, nodes: int) -> None:
        self.run, self.network = run, run.network
        self.condition = run.network.condition(run.request.rows(run.network, run.sampling.rows))
        self.cache: RaggedCache = self.network.new_ragged_cache(run.images * run.sampling.rows, 1 + run.total + nodes)
        self.uniform_BL = run.noise.uniform(Stream.TOKEN, 0, run.total)
        self.verdicts = RoundNoise(run.noise, Stream.ACCEPT, nodes)

    def check(self, draft: Draft | None, rule: Rule) -> Checked:
        """One pass over the last decided token and its drafts; appends the accepted drafts, and one token more."""
        p, hidden_RLC = self.probabilities(draft)
        checked = self._plain(p, hidden_RLC) if draft is None else self._judged(draft, p, hidden_RLC, rule)
        self.run.extend(checked.tokens, checked.gained)
        return checked

    def probabilities(self, draft: Draft | None) -> tuple[Tensor, Tensor]:
        """What the tokens behind each node are drawn from, (B, 1 + N, V), and features (R, 1 + N, C), of one pass."""
        run, hidden_RLC = self.run, self._read(draft)
        what = f"the target's logits from token {min(run.counts)} on"
        positions = self._positions(draft)
        logits = run.sampling.choices(self.network.next_logits(hidden_RLC), positions, run.checks, what)
        given = self._given(positions)
        logits = logits if given is None else only(given[0], logits, given[1])
        return run.sampling.head.probabilities(logits), hidden_RLC

    def rewind(self) -> None:
        """Drop drafts that were not accepted from the cache, after the host has learnt how many were."""
        self.cache.rewind(self.run.counts * self.run.sampling.rows, self.run.positions_B.repeat(self.run.sampling.rows))

    def _plain(self, p: Tensor, hidden_R1C: Tensor) -> Checked:
        """A token for each image, without drafts."""
        tokens_B1 = pick(p, self.uniform(self.run.positions_B.unsqueeze(1)))
        return Checked(None, p, None, self._unfinished().long(), tokens_B1, hidden_R1C)

    def _judged(self, draft: Draft, p: Tensor, hidden_RLC: Tensor, rule: Rule) -> Checked:
        """The accepted drafts, and a token after them."""
        run, rows, judged = self.run, self.run.sampling.rows, self._judgement(draft, p, hidden_RLC, rule)
        if draft.topology.is_chain:
            accepted_B1 = (judged.choice == 0).cumprod(1).sum(1, keepdim=True)
            last_B1, drafts_BA, features = accepted_B1, draft.tokens, hidden_RLC
        else:
            nodes_BA, accepted_B1 = _path(draft.topology, judged.choice)
            last_B1, drafts_BA = (
                nodes_BA.gather(1, accepted_B1),
                draft.tokens.gather(1, (nodes_BA[:, 1:] - 1).clamp(min=0)),
            )
            features = along(hidden_RLC, nodes_BA.repeat(rows, 1))
            root_B1 = run.positions_B.unsqueeze(1)
            self.cache.move(run.positions_B.repeat(rows), (root_B1 + nodes_BA).repeat(rows, 1))
        drawn_B1 = pick(self._after(judged, p, last_B1), self.uniform(run.positions_B.unsqueeze(1) + accepted_B1))
        tokens_BA = torch.cat((drafts_BA, drawn_B1), dim=1).scatter(1, accepted_B1, drawn_B1)
        new_B = (accepted_B1.squeeze(1) + 1) * self._unfinished()
        return Checked(draft, p, judged, new_B, tokens_BA, features)

    @staticmethod
    def _after(judged: Judgement, p: Tensor, node_B1: Tensor) -> Tensor:
        """What the token behind the last accepted node is drawn from, (B, 1, V)."""
        inner = judged.choice.shape[1]
        rest_B1V = judged.residual_at(node_B1.clamp(max=inner - 1))
        return torch.where((node_B1 < inner).unsqueeze(-1), rest_B1V, along(p, node_B1))

    def _unfinished(self) -> Tensor:
        return self.run.positions_B < self.run.total

    def _read(self, draft: Draft | None) -> Tensor:
        run, copies = self.run, self.run.sampling.rows
        if self.cache.length == 0:
            begun_RL = run.tokens_BL[:, : run.first].repeat(copies, 1)
            return cast(Tensor, self.network.next_hidden(self.condition.tokens, begun_RL, cache=self.cache)[:, -1:])
        tokens_BL, branches = run.last(), None
        if draft is not None:
            tree, tokens_BL = draft.topology, torch.cat((tokens_BL, draft.tokens), dim=1)
            if not tree.is_chain:
                root_R = run.positions_B.repeat(copies)
                branches = tree.branches(range(tree.nodes), root_R, root_R, longest=max(run.counts), first=0)
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
        return counts_B1 if draft is None else counts_B1 + draft.topology.on(counts_B1.device).depths

    def _judgement(self, draft: Draft, p: Tensor, hidden_RLC: Tensor, rule: Rule) -> Judgement:
        """For every position with drafts, because the accepted path is known only afterwards."""
        if draft.kind not in rule.kinds:
            raise ValueError(f"{rule} judges {' or '.join(rule.kinds)} drafts; these are {draft.kind}")
        drafted, inner = draft.drafted(), draft.topology.inner
        opinion = rule.opinion(hidden_RLC[: self.run.images, 1:])
        if opinion is not None:
            drafted = drafted._replace(opinion=draft.by_position(opinion))
        given = self._given(self._positions(draft)[:, :inner])
        if given is not None:  # whatever the rule: at a preserved position no other token is accepted
            fits = ~given[1].unsqueeze(-1) | (drafted.tokens == given[0].unsqueeze(-1))
            drafted = drafted._replace(valid=drafted.valid & fits)
        # A number for each draft, so that it does not depend on how far others of the batch have drafted.
        uniform = draft.by_position(self.verdicts.of(self.run.round)[:, : draft.tokens.shape[1]])
        p = p[:, :inner]
        return Judgement(rule, p, drafted, uniform, rule.choice(p, drafted, uniform))

    def uniform(self, positions_BL: Tensor) -> Tensor:
        """The numbers that draw the tokens of these positions; a finished image gets any."""
        return self.uniform_BL.gather(1, positions_BL.clamp(max=self.run.total - 1))


def along(values_RLX: Tensor, index_RA: Tensor) -> Tensor:
    """Some positions of each row, (R, A, X)."""
    rows, length, _ = values_RLX.shape
    begin_R1 = length * torch.arange(rows, device=index_RA.device).unsqueeze(1)
    return values_RLX.flatten(0, 1).index_select(0, (begin_R1 + index_RA).flatten()).unflatten(0, index_RA.shape)


def _path(tree: Topology, choice_BM: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes of each image from the root along the accepted drafts, (B, 1 + levels), and how many drafts, (B, 1).

    Shorter paths go on with the root.
    """
    children_MS = tree.on(choice_BM.device).children
    node_B1 = torch.zeros_like(choice_BM[:, :1])
    accepted_B1, path = torch.ones_like(node_B1, dtype=torch.bool), [node_B1]
    for _ in tree.widths:
        chosen_B1 = choice_BM.gather(1, node_B1)
        accepted_B1 = accepted_B1 & (chosen_B1 < tree.siblings)
        child_B1 = 1 + children_MS[node_B1, chosen_B1.clamp(max=tree.siblings - 1)]
        node_B1 = torch.where(accepted_B1, child_B1, 0)
        path.append(node_B1)
    nodes_BA = torch.cat(path, dim=1)
    return nodes_BA, (nodes_BA > 0).sum(1, keepdim=True)
