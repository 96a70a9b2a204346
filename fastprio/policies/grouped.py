"""The base of policies over groups: a group of each example, and draws of a group and then of one of its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import as_indices, integer
from fastprio._kernels import kernel
from fastprio.policies.base import Clock, Plan, Policy
from fastprio.policies.primitives import by_group, draw_in_groups, exponential

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@kernel
def means_by_group(group: Any, indices: Int64, loss: Float32, means: Float64, rows: Int64) -> None:
    """The mean loss of a batch's rows of each group, and how many there are. means, rows: [count], zero at first."""
    for j in range(indices.size):
        k = group[indices[j]]
        if k >= rows.size:  # written since regroup has checked: the next plan says so
            continue
        means[k] += np.float64(loss[j])
        rows[k] += 1
    for k in range(rows.size):
        if rows[k] > 0:
            means[k] /= rows[k]


def softmax(values: Float64, temperature: float = 1.0) -> Float64:
    """float64 [n], in proportion to exp(value / temperature); without overflow, the same bits on every machine."""
    p = np.empty(len(values))
    with np.errstate(over="ignore"):  # exp of minus infinity is zero
        exponents = (values - values.max()) / temperature
    exponential(exponents, 1.0, p)
    p /= p.sum()
    return p


class Grouped(Policy):
    """Draws a group with probability p_k, then one of its N_k examples uniformly: P(i) = p_k / N_k.

    A derived class says p. Groups may be empty; they are passed over and the others' p scaled up.

    Args:
        groups: integers [N] in [0, count), each example's group. None: all are in group 0 until the user writes
            ``store.column("group")[:]`` and calls ``policy.regroup(store)``; so too after a store has grown, whose new
            examples are in group 0. What the store remembers comes first: a store that is loaded has its groups.
        count: how many groups there are, in [1, 65536].

    Cost: 6 bytes an example, 8 a group.
    """

    columns = {"group": "uint16", "by_group": "uint32"}  # noqa: RUF012 (never changed)
    shardable = False

    def __init__(self, groups: Any, count: int) -> None:
        self.groups, self.count = groups, integer("count", count, 1, 1 << 16)
        self.state = {"begins": np.zeros(self.count + 1, np.int64)}

    def p(self) -> Float64:
        """float64 [count]: the probabilities of the groups as they are now, >= 0."""
        raise NotImplementedError

    @property
    def sizes(self) -> Int64:
        """int64 [count]: how many examples each group has."""
        sizes: Int64 = np.diff(self.state["begins"])
        return sizes

    def start(self, store: ScoreStore) -> None:
        """Writes the groups into their column."""
        if self.groups is not None:
            groups = as_indices(self.groups, "groups")
            if len(groups) != len(store):
                raise ValueError(f"groups: expected {len(store)} of them, one for each example, got {len(groups)}")
            self._check("groups", groups)
            store.column("group")[:] = groups
        self.regroup(store)

    def regroup(self, store: ScoreStore) -> None:
        """Sorts the examples by the groups that are in the column now. Cost: O(size)."""
        with store.lock:
            groups = store.column("group")
            self._check("group", groups)
            store.column("by_group")[:], begins = by_group(groups, self.count)
            self.state["begins"] = begins

    def _check(self, name: str, groups: Any) -> None:
        bad = (groups < 0) | (groups >= self.count)
        if bad.any():
            at = int(bad.argmax())
            raise ValueError(f"{name}[{at}] = {groups[at]}: expected a group in [0, {self.count})")

    def resized(self, store: ScoreStore, before: int) -> None:
        """Sorts anew."""
        self.regroup(store)

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """None: every batch is drawn."""
        self._check("group", store.column("group"))
        return None

    def draw(self, store: ScoreStore, count: int, clock: Clock, rng: Rng) -> tuple[Int64, Float64] | None:
        """A group, then one of its examples, ``count`` times."""
        return draw_in_groups(store.column("by_group"), self.state["begins"], self.p(), count, rng)

    def config(self) -> dict[str, Any]:
        """Without the groups: a saved store has them in a column."""
        return {**super().config(), "groups": None}
