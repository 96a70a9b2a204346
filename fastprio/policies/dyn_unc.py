"""DynUnc: from some epoch on, train on the examples whose predictions moved most over training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import kernel
from fastprio.policies.base import Clock, Columns, Observation, register
from fastprio.policies.fixed_set import FixedSet
from fastprio.policies.primitives import at_least_one, fetch, highest, push

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastprio._arrays import Float32, Float64, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.policies.primitives import Mask
    from fastprio.store import ScoreStore


@kernel
def _add_windows(indices: Int64, p: Float32, ring: Float32, counts: Uint8, deviations: Float64, windows: Any) -> None:
    width = ring.shape[1]
    for j in range(indices.size):
        i = indices[j]
        push(ring, counts, indices[j : j + 1], p[j : j + 1])
        if counts[i] < width or windows[i] == 65535:
            continue
        mean = 0.0
        for k in range(width):
            mean += np.float64(ring[i, k])
        mean /= width
        squares = 0.0
        for k in range(width):
            squares += (np.float64(ring[i, k]) - mean) ** 2
        deviations[i] += np.sqrt(squares / (width - 1))
        windows[i] += 1


@register("dyn_unc")
class DynUnc(FixedSet):
    """Score: 10 * the mean, over all stretches of ``window`` presentations, of the deviation of p(label) in it.

    The deviation is the unbiased one, sqrt(sum (p - mean)^2 / (window - 1)). Trains on everything until epoch ``after``
    begins; then, of the m examples with a score, on the floor(keep m) highest (at least one), chosen once, equal
    scores by chance, and on those without.

    Args:
        after: the first epoch with fewer examples, from 0; >= window, before which there are no scores.
        keep: share of the scored examples that is trained on from then on, in (0, 1].
        window: presentations in a stretch, in [2, 127].

    Only presentations in training count. An example with fewer than ``window`` of them, or none, is kept.
    Cost: 11 bytes and a bit an example, and 4 * window.

    Source: He et al., "Large-scale Dataset Pruning with Dynamic Uncertainty", arXiv 2306.05175; the score is its
    code's, window 10 is ours. after and keep depend on the data and have no default; the paper reports no loss with
    75 % of ImageNet. For a new model on the kept examples, start it at epoch ``after``.
    """

    requires = ("p_label",)
    example = {"after": 12, "keep": 0.5}  # noqa: RUF012
    infallible = True

    def __init__(self, after: int, keep: float, window: int = 10) -> None:
        super().__init__(after, keep)
        self.window = integer("window", window, 2, 127)
        if self.after < self.window:
            raise ValueError(f"after = {after}: expected at least window = {window}, before which there are no scores")

    @property
    def columns(self) -> Mapping[str, str | tuple[str, int]]:  # type: ignore[override]
        """A ring as wide as the window."""
        return {
            **FixedSet.columns,
            "ring": ("float32", self.window),
            "counts": "uint8",
            "deviations": "float64",
            "windows": "uint16",
        }

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Adds the window that ends with each presentation in training."""
        if obs.origin == "train":
            own = columns["ring"], columns["counts"], columns["deviations"], columns["windows"]
            fetch(indices, *own)
            _add_windows(indices, obs.p_label, *own)
        return None

    def scores(self, store: ScoreStore) -> Float64:
        """float64 [size]: the scores, NaN where there is none yet."""
        windows = store.column("windows")
        with np.errstate(invalid="ignore"):
            scores: Float64 = 10 * store.column("deviations") / windows
        return scores

    def chosen(self, store: ScoreStore, rng: Rng) -> Mask:
        """The highest of those that have a score, and those without."""
        scores = self.scores(store).astype(np.float32)
        scored = ~np.isnan(scores)
        count = at_least_one(int(np.count_nonzero(scored)), self.keep)
        return highest(scores, count, rng, among=scored) | ~scored
