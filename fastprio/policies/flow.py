"""FLOW: fine-tuning in which the examples that the pre-trained model finds easy weigh most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._kernels import mark
from fastprio.policies.arguments import flag, real
from fastprio.policies.base import Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import exponential

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@register("flow")
class FLOW(Policy):
    """Weights the loss of an example by w_i = exp(-reference_i / tau), from its loss under the pre-trained model.

    Weights are fixed for the whole of training and not normalised: the loss is the mean of w_i loss_i. Before the first
    epoch the pre-trained model scores every example, ``loader.score(pretrained, loss_fn, origin="reference")``. Every
    example comes once an epoch.

    Args:
        tau: > 0, in units of the loss; None: the median of the reference losses, taken when the first epoch begins
            and then kept.
        draws: draw in proportion to w_i instead, with weights 1: the same expected gradient up to its scale.

    Losses of training are not used. Reference losses are >= 0 (ValueError). Where all of them are 0 every weight is 1.
    Cost: 4 bytes and a bit an example.
    Source: Sanyal et al., "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting", ICML 2025; the median is the
    paper's, another tau and drawing are ours. Its code for images takes the reference losses anew from each
    augmented view, with a frozen model.
    """

    columns = {"reference": "float32", "referenced": "bit"}  # noqa: RUF012 (never changed)
    forwards = "all, once"
    acts = "draw, weight"
    shardable = False
    infallible = True

    def __init__(self, tau: float | None = None, draws: bool = False) -> None:
        hint = ", or None for the median"
        self.tau = None if tau is None else real("tau", tau, 0, above=True, hint=hint)
        self.draws = flag("draws", draws)
        self.state = {"tau": self.tau}

    @property
    def observes(self) -> bool:
        """No: what it learns comes before training."""
        return False

    def check(self, obs: Observation) -> None:
        """Refuses reference losses below zero."""
        super().check(obs)
        if obs.origin == "reference" and obs.loss.min(initial=0) < 0:
            row = int(obs.loss.argmin())
            raise ValueError(f"losses[{row}] = {obs.loss[row]}: expected reference losses >= 0")

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the reference loss."""
        if obs.origin == "reference":
            columns["reference"][indices] = obs.loss
            mark(columns["referenced"], columns["referenced"], indices)
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Everything once; the first time, takes the median."""
        reference = store.column("reference")
        lacking = len(store) - int(np.unpackbits(store.column("referenced")).sum(dtype=np.int64))
        if lacking:
            raise ValueError(
                f"policy 'flow': {lacking} of {len(store)} examples have no reference loss; before training call "
                'loader.score(pretrained, loss_fn, origin="reference")'
            )
        if self.state["tau"] is None:
            tau = float(np.median(reference.astype(np.float64)))
            if tau == 0 and reference.any():
                raise ValueError("tau: the median of the reference losses is 0, and they are not all 0; pass tau > 0")
            self.state["tau"] = tau
        if not self.draws:
            return Plan()
        store.tree.fill(self._weights(reference))
        return None

    def weights(self, columns: Columns, indices: Int64, probabilities: Float64, clock: Clock) -> Float32 | None:
        """exp(-reference / tau)."""
        return None if self.draws else self._weights(columns["reference"][indices])

    def _weights(self, reference: Float32) -> Float32:
        weights = np.empty(reference.size, np.float32)
        tau = self.state["tau"]
        exponential(reference, -1.0 / tau if tau else 0.0, weights)
        return weights
