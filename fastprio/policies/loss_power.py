"""LossPower: priority is a power of the loss, as in proportional prioritized experience replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._kernels import get_bit, kernel, mark, power
from fastprio.policies.arguments import flag, real
from fastprio.policies.base import Clock, Columns, Observation, register
from fastprio.policies.importance import Importance
from fastprio.policies.primitives import LEAST, MOST
from fastprio.policies.schedules import span

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64, Uint8
    from fastprio._random import Rng


# Results are written into arrays that the caller makes: handing one back costs a compiled loop more than all its work.


@kernel
def _observe(
    column: Float32,
    seen: Uint8,
    indices: Int64,
    loss: Float32,
    alpha: float,
    eps: float,
    ema: float,
    largest: Float64,
    priorities: Float32,
) -> None:
    raw = np.empty(indices.size, np.float64)
    top = largest[0]
    for j in range(indices.size):
        i = indices[j]
        value = np.float64(loss[j])
        if ema > 0.0:
            if get_bit(seen, i):
                value = ema * np.float64(column[i]) + (1.0 - ema) * value
            mark(seen, seen, indices[j : j + 1])  # a later row may be of the same example
        column[i] = np.float32(value)
        raw[j] = np.float64(column[i]) + eps
        top = max(top, raw[j])
    largest[0] = top
    for j in range(indices.size):  # a loop of its own: it becomes vector code
        # Whatever is above zero stays drawable, and finite.
        priorities[j] = np.float32(min(max(power(raw[j], alpha), LEAST if raw[j] > 0.0 else 0.0), MOST))


@register("loss")
class LossPower(Importance):
    """Priority p_i = (loss_i + eps)^alpha, drawn with P(i) = p_i / sum p; weight w_i = (N P(i))^-beta.

    Args:
        alpha: >= 0; 0 draws uniformly, 1 in proportion to the loss.
        beta: how much of the bias the weights take away: 0 none, 1 all of it (the expected mean of weight * loss is
            then the mean loss of the data set). A pair goes linearly from the first to the second over training,
            and stays at the first where the store has no ``epochs=``.
        eps: > 0 keeps examples with loss 0 drawable. In units of the loss.
        ema: in [0, 1): share of the old value in the remembered loss; 0 remembers the last one.
        max_normalize: divide a batch's weights by the largest, as the paper does, so that they only scale down.
            Off by default: the weights' mean is at most one as they are, and unbiased at beta = 1.

    Losses are >= 0 (pass ``abs(td_error)`` for temporal differences); ValueError otherwise.
    An example never scored gets the largest (loss + eps)^alpha seen so far, at least 1.

    Cost: 4 bytes an example beside the tree.
    Source: Schaul et al., "Prioritized Experience Replay", arXiv 1511.05952, proportional variant; alpha = 0.6 and
    beta from 0.4 to 1 are the paper's. On noisy data this fails: arXiv 2107.07741.
    """

    columns = {"loss": "float32"}  # noqa: RUF012 (never changed)
    acts = "draw, weight"
    least_loss = 0.0
    infallible = True

    def __init__(
        self,
        alpha: float = 0.6,
        beta: float | tuple[float, float] = (0.4, 1.0),
        eps: float = 1e-6,
        ema: float = 0.0,
        max_normalize: bool = False,
    ) -> None:
        self.alpha, self.beta = real("alpha", alpha, 0), span("beta", beta, least=0)
        self.eps, self.ema = real("eps", eps, 0), real("ema", ema, 0, 1, below=True)
        self.max_normalize = flag("max_normalize", max_normalize)
        self.state = {"largest": np.ones(1)}

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the loss (or its moving average) and returns its power."""
        if obs.origin == "reference":
            return None
        priorities = np.empty(indices.size, np.float32)
        _observe(
            columns["loss"],
            columns["seen"],
            indices,
            obs.loss,
            self.alpha,
            self.eps,
            self.ema,
            self.state["largest"],
            priorities,
        )
        return priorities

    def unseen(self) -> float:
        """The largest priority so far, in today's units."""
        return float(min(power(float(self.state["largest"][0]), self.alpha), MOST))
