"""VarianceReduction: train on what is drawn from a larger pool in proportion to its score, where that pays."""

from __future__ import annotations

from typing import Any

import torch

from fastprio._random import Rng
from fastprio.policies.arguments import flag, real
from fastprio.policies.base import Clock
from fastprio.policies.observations import observations
from fastprio.selectors.base import Selector, register
from fastprio.selectors.pool import OnItsWay, drawn, masses, tau_of
from fastprio.selectors.queue import Selection


@register("variance_reduction")
class VarianceReduction(Selector):
    """Draws ``batch_size`` of a pool of B with replacement, P_i = g_i = score_i / sum score, with weights 1 / (B g_i).

    The pool is the loader's batch, of three times ``batch_size``, say. The mean of weight * loss is unbiased for the
    pool's mean loss over all examples with a score above zero. tau = sqrt(B sum g^2) = sqrt(1 + CV^2) says how uneven
    the scores are; its moving average, from 0 on, is known a step late, so that nothing waits for the device. Where it
    is not above ``threshold`` no scores are computed, and the whole pool is trained on as it is; ``mean`` then gets
    tau from the training losses. Several ranks go by the mean of their averages.

    Scores are what ``score`` returns: losses, or ``gradient_norm(logits, targets)``. (Then pass
    ``mean(losses, scores=gradient_norm(...))``; a PriorityLoader is told of the scores, not of losses.) A score that is
    zero, negative or not finite is never drawn, unless all are so; then all are equally likely. Where most scores are
    small the weights of those drawn are large: a learning rate that is right for uniform batches may be too high.

    Args:
        batch_size: b, how many are drawn of a pool (of a smaller pool: as many as it has), and the size of the
            batches that are trained on.
        threshold: >= 0, which tau must exceed; None: (B + 3 b) / (3 b) of the first pool.
        momentum: of the moving average of tau, in [0, 1).
        unbiased: False is the variant of arXiv 2107.07741: every pool is scored, and the weights are all one.
        seed: in [0, 2^64).

    Source: Katharopoulos and Fleuret, "Not All Samples Are Created Equal", ICML 2018; threshold and momentum 0.9 are
    its code's, where pools have B = 3 b and come uniform with replacement, here as the loader gives them. Its uniform
    step trains on b examples, here on the pool in batches of b; tau is up to date there, here a step late.
    """

    forwards = "a pool of 3 b, when it pays"

    def __init__(
        self,
        batch_size: int,
        threshold: float | None = None,
        momentum: float = 0.9,
        unbiased: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        self.threshold = None if threshold is None else real("threshold", threshold, 0, hint=", or None")
        self.momentum, self.unbiased = real("momentum", momentum, 0, 1, below=True), flag("unbiased", unbiased)
        # coming: the newest tau, not in the average yet; 0: none. agreed: of all ranks. first_pool: its size.
        coming = torch.zeros((), dtype=torch.float64)
        self.state = {"tau": 0.0, "coming": coming, "agreed": None, "first_pool": 0}

    def needs_scores(self, clock: Clock) -> bool:
        """Whether the average of tau, as far as it is known, is above the threshold."""
        if not self.unbiased:
            return True
        self.state["first_pool"] = self.state["first_pool"] or self.pool
        threshold = self.threshold
        if threshold is None:
            threshold = (self.state["first_pool"] + 3 * self.batch_size) / (3 * self.batch_size)
        tau = self.state["tau"] if self.state["agreed"] is None else self.state["agreed"]
        return bool(tau > threshold)

    def __call__(
        self, losses: torch.Tensor, *, indices: Any = None, columns: Any = None, clock: Clock, rng: Rng
    ) -> Selection:
        """Draws in proportion to the scores."""
        mass = masses(losses)
        self._note(mass)
        u = torch.from_numpy(rng.random(min(self.batch_size, len(losses))))
        at = drawn(mass, u.to(losses.device, non_blocking=True))
        if not self.unbiased:
            return Selection(at)
        weights = mass.sum() / (len(losses) * mass[at])
        return Selection(at, weights.clamp(max=torch.finfo(torch.float32).max).float())

    def observe(self, losses: torch.Tensor, *, clock: Clock) -> None:
        """Takes tau from the scores of a batch that was trained on as it was."""
        self._note(masses(losses))

    @property
    def shared(self) -> float:
        """The average of tau."""
        return float(self.state["tau"])

    def agree(self, mean: float) -> None:
        """The mean of the ranks' averages decides."""
        self.state["agreed"] = mean

    def _note(self, mass: torch.Tensor) -> None:
        before = float(self.state["coming"])
        if before:
            self.state["tau"] = self.momentum * self.state["tau"] + (1 - self.momentum) * before
        self.state["coming"] = OnItsWay(tau_of(mass))


def gradient_norm(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """float32 [n]: ||softmax(logits) - one_hot(target)||_2, the norm of cross entropy's gradient at the last layer.

    Args: logits: floating [n, K]. targets: int64 [n].
    """
    return observations(("error_norm",), logits, targets)["error_norm"]
