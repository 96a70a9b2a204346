"""ForgettingEvents: from some epoch on, train on the examples that were forgotten most often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._kernels import get_bit, kernel, put_bit
from fastprio.policies.base import Clock, Columns, Observation, register
from fastprio.policies.fixed_set import FixedSet
from fastprio.policies.primitives import at_least_one, highest, unpacked

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastprio._arrays import Float32, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.policies.primitives import Mask
    from fastprio.store import ScoreStore

NEVER_LEARNED = 1 << 16
"""The count of an example that was never predicted as its label: above any other."""


@kernel
def _count(indices: Int64, correct: Uint8, was: Uint8, ever: Uint8, forgotten: npt.NDArray[np.uint16]) -> None:
    for j in range(indices.size):
        i = indices[j]
        right = correct[j] != 0
        if get_bit(was, i) and not right and forgotten[i] < 65535:
            forgotten[i] += 1
        put_bit(was, i, right)
        if right:
            put_bit(ever, i, True)


@register("forgetting")
class ForgettingEvents(FixedSet):
    """Counts how often an example, once predicted as its label, no longer is at its next presentation.

    Trains on everything until epoch ``after`` begins, then on the floor(keep N) examples (at least one) with the
    highest counts, chosen once; equal counts by chance. What was never predicted as its label counts most of all.

    Args:
        after: the first epoch with fewer examples, from 0; >= 1.
        keep: share of the examples that is trained on from then on, in (0, 1].

    Only presentations in training count. An example never trained on counts as never learned. Counts stop at 65,535.
    Cost: 2 bytes and 3 bits an example.

    Source: Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019;
    the count is as in the code of Paul et al. (NeurIPS 2021). after and keep depend on the data and have no default.
    For a new model on the kept examples, start it at epoch ``after``.
    """

    columns = {  # noqa: RUF012 (never changed)
        **FixedSet.columns,
        "was_correct": "bit",
        "ever_correct": "bit",
        "forgotten": "uint16",
    }
    requires = ("correct",)
    example = {"after": 2, "keep": 0.5}  # noqa: RUF012
    infallible = True

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Counts the presentations of training."""
        if obs.origin == "train":
            _count(indices, obs.correct, columns["was_correct"], columns["ever_correct"], columns["forgotten"])
        return None

    def counts(self, store: ScoreStore) -> Int64:
        """int64 [size]: forgetting events in [0, 65535]; NEVER_LEARNED = 65536 where it was never learned."""
        counts: Int64 = store.column("forgotten").astype(np.int64)
        counts[~unpacked(store.column("ever_correct"), len(store))] = NEVER_LEARNED
        return counts

    def chosen(self, store: ScoreStore, rng: Rng) -> Mask:
        """The most often forgotten."""
        return highest(self.counts(store).astype(np.float32), at_least_one(len(store), self.keep), rng)
