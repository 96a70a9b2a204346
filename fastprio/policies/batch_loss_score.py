"""BatchLossScore: scores for losses known only as a batch's mean, for another policy to plan by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastprio._kernels import kernel
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.last_loss import host_of, plain_config

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@kernel
def _observe(score: Float32, indices: Int64, loss: Float32, alpha: float, by_mean: bool) -> None:
    total = 0.0
    for j in range(loss.size):
        total += loss[j]
    for j in range(indices.size):
        i = indices[j]
        score[i] = alpha * score[i] + (1.0 - alpha) * (total / loss.size if by_mean else loss[j])


@register("bls")
class BatchLossScore(Policy):
    """Score s_i <- alpha s_i + (1 - alpha) L for all i of a batch with mean loss L; another policy plans by s.

    s begins at 0. Where the training loop has only the mean of a batch of n, pass ``loss.expand(n)``: what ``step``
    returns is then the mean times the mean of the weights. Of per-example losses the mean is taken here.

    Args:
        alpha: in [0, 1), share of the old score.
        host: the name of a policy that plans by column "loss" alone, such as "infobatch" or "seta": it finds s there.
        host_config: the host's arguments by name; None: its defaults.

    A batch is what one ``step`` or ``update`` has, of all ranks together; a row is a move. Losses of a
    score pass are taken as they come, a row each: have it return the mean of each of its batches, expanded.
    An example never scored is what it is for the host. Cost: 4 bytes an example.

    Source: "Batch Loss Score" (BLS), CVPR 2026, code mrazhou/BLS; alpha = 0.9 is the default of that code's class (its
    README has 0.7).
    """

    columns = {"loss": "float32"}  # noqa: RUF012 (never changed)
    acts = "epoch, weight"
    shardable = False
    infallible = True

    def __init__(
        self, alpha: float = 0.9, host: str = "infobatch", host_config: Mapping[str, Any] | None = None
    ) -> None:
        self.alpha = real("alpha", alpha, 0, 1, below=True)
        self._host = host_of(host, host_config)
        self.host, self.host_config = host, plain_config(self._host, host_config)
        self.needs_epochs = self._host.needs_epochs

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Moves the scores, of losses from training and from scoring alike."""
        if obs.origin != "reference":
            _observe(columns["loss"], indices, obs.loss, self.alpha, obs.origin == "train")
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """The host's."""
        return self._host.plan(store, clock, rng)
