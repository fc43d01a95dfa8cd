"""Runs of one or two networks, as several folders of tests need them."""

from dataclasses import replace

from var_toolkit.core.bind import Run, bind
from var_toolkit.core.plan import DRAFT, Plan, plan_of
from var_toolkit.methods.collaborative import collaborative, refiner_role, require_one_tokenizer
from var_toolkit.methods.masked_passes import masked_passes
from var_toolkit.methods.variant import variant


def plan_with(network, *, guidance=0.0, guided_tokens=None, refine=None, clean=False, verify=None, **head) -> Plan:
    """The plan of one network; `head` are settings of its own kind of head."""
    passes = None if refine is None else masked_passes(refine, network.scales)
    return plan_of(
        network,
        guidance=guidance,
        head=replace(network.default_head, **head),
        masked=passes,
        guided=None if guided_tokens is None else range(guided_tokens),
        clean=clean,
        verify=verify,
    )


def run_with(tokenizer, network, *, draft=None, **settings) -> Run:
    """The run of one network, with another that drafts for it."""
    networks = {"backbone": network} | ({} if draft is None else {DRAFT: draft})
    return bind(plan_with(network, **settings), networks, tokenizer)


def rebound(run: Run, plan: Plan) -> Run:
    """Another plan for the networks of a run."""
    return bind(plan, run.networks, run.tokenizer)


def code_of(drafter: Run, refiner: Run, *, draft_scales: int) -> Run:
    """CoDe of two runs."""
    require_one_tokenizer(drafter.tokenizer, refiner.tokenizer)
    networks = {**drafter.networks, **{refiner_role(role): network for role, network in refiner.networks.items()}}
    return bind(collaborative(drafter.plan, refiner.plan, draft_scales=draft_scales), networks, drafter.tokenizer)


def variant_of(run: Run, *, subnet: int, full_scales: int) -> Run:
    """VARiant of a run."""
    return rebound(run, variant(run.plan, subnet=subnet, full_scales=full_scales))
