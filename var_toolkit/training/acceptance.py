"""The expected acceptance of a proposer's drafts by a target, and losses that increase it.

A draft sampled from q is accepted with probability sum(min(p, q)) = 1 - TV(p, q) (arXiv 2211.17192, theorem 3.5). Pure
functions of logits. Letters: B images, L tokens, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def acceptance(draft_BLV: Tensor, target_BLV: Tensor) -> Tensor:
    """The probability that a draft of each token is accepted, (B, L)."""
    draft, target = _probabilities(draft_BLV), _probabilities(target_BLV)
    return torch.minimum(draft, target).sum(dim=1).view(draft_BLV.shape[:2])


def soft_cross_entropy(draft_BLV: Tensor, target_BLV: Tensor) -> Tensor:
    """-sum p log q, (B, L): KL(target || draft) up to a constant. Target logits may be -inf."""
    target, losses = _probabilities(target_BLV), F.log_softmax(draft_BLV.flatten(0, 1), dim=1).neg()
    return (target * losses).sum(dim=1).view(draft_BLV.shape[:2])


def tvd_plus_plus(draft_BLV: Tensor, target_BLV: Tensor) -> Tensor:
    """Total variation, a scalar, with the gradient of TVD++ (arXiv 2403.00858, section 3).

    The gradient of the total variation is a policy gradient: the policy is the proposer, with reward 1 for tokens that
    have a higher probability under the target. TVD++ standardises the reward by its mean and standard deviation. Both
    are computed over the batch, and the expectation of the policy is the exact sum over the vocabulary, where the paper
    uses samples.
    """
    draft, target = _probabilities(draft_BLV), _probabilities(target_BLV)
    with torch.no_grad():
        reward = (target > draft).float()
        mean = (draft * reward).sum(dim=1).mean()
        deviation = (mean * (1 - mean)).sqrt().clamp(min=1e-3)  # of a 0/1 reward
        advantage = (reward - mean) / deviation
        variation = (target - draft).clamp(min=0).sum(dim=1).mean()
    policy = -(draft * advantage).sum(dim=1).mean()
    return variation + policy - policy.detach()


def _probabilities(logits_BLV: Tensor) -> Tensor:
    # Flat, because a softmax over an inner dimension is several times slower.
    return logits_BLV.flatten(0, 1).softmax(dim=1)
